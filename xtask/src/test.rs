//! `cargo xtask test` and `cargo xtask vm-test`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::build;
use crate::fuzz;
use crate::image;
use crate::peers::Peers;
use crate::requirements::harness_arguments;
use crate::runner::{self, Totals};
use crate::setup;
use crate::shell::{self, say};
use crate::soak;
use crate::tools;
use crate::workspace::{Workspace, make_dir};

/// VMs at the same time: each emulated one keeps a processor busy.
const VMS: &str = "2";

/// How many times as many random choices the proofs of the store make in a full run.
const FULL_PROOF_WIDTH: &str = "4";

/// Seconds that a stalled consumer stands still in a full run.
const FULL_STALL: &str = "60";

/// Run all tests: unit, integration, and whole builds in VMs.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Also what is too long for every change: more random orders, faults, cuts and hostile guests, longer
    /// stalls, ten minutes of soak, and a minute of each fuzz target.
    #[arg(long)]
    full: bool,
}

/// Run only the tests that build in VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    #[command(flatten)]
    tests: Args,
    /// All cells of the exit matrix instead: each way in which a build can end or be disturbed, in each of
    /// its phases. With a filter, only cells whose name contains it
    #[arg(long)]
    matrix: bool,
}

/// The test of all cells, which is too long for every run.
const MATRIX: &[&str] = &["--exact", "by_hand_every_cell", "--ignored", "--nocapture"];

/// Programs and places that the tests need.
struct Bench {
    workspace: Workspace,
    cofferdam: PathBuf,
    vm_image: PathBuf,
}

/// What became of attempts to get through a wall, as the tests of `tests/tests/hostile` write it down.
struct Attempts {
    dir: PathBuf,
    /// Whether all of those run that cost a hostile guest its VM, or a third of them.
    every: bool,
}

impl Attempts {
    /// An empty directory for them.
    fn new(workspace: &Workspace, every: bool) -> Result<Self> {
        let dir = workspace.target.join("attempts");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("cannot remove the attempts of an earlier run")?;
        }
        make_dir(&dir)?;
        Ok(Self { dir, every })
    }

    /// Names those that failed, and then says how many there were, if any.
    fn print(&self) -> Result<()> {
        let (mut contained, mut failed) = (0, 0);
        for file in fs::read_dir(&self.dir).context("cannot read the attempts")? {
            let lines = fs::read_to_string(file?.path()).context("cannot read the attempts")?;
            for line in lines.lines() {
                if line.starts_with("contained ") {
                    contained += 1;
                } else {
                    failed += 1;
                    say(line);
                }
            }
        }
        let all = contained + failed;
        if all > 0 {
            say(format!(
                "\n{all} attempts, {contained} contained, {failed} failed"
            ));
        }
        Ok(())
    }
}

/// Everything; the builds in VMs come last.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&[setup::VM, setup::CHECKERS, setup::TESTS])?;
    let workspace = Workspace::find()?;
    let bench = Bench {
        cofferdam: build::everything(&workspace)?,
        // Some integration tests boot it.
        vm_image: image::build(&workspace, &image::Args::default())?,
        workspace,
    };
    let mut totals = Totals::default();
    let attempts = Attempts::new(&bench.workspace, args.full)?;
    let done = all(&bench, args, &attempts, &mut totals);
    attempts.print()?;
    if !args.full {
        say("\n(`cargo xtask test --full` also runs what is too long for every change)");
    }
    totals.print();
    done
}

/// Whole builds in VMs.
pub(crate) fn run_vm(args: &VmArgs) -> Result<()> {
    setup::require(&[setup::VM, setup::CHECKERS, setup::TESTS])?;
    let workspace = Workspace::find()?;
    let bench = Bench {
        cofferdam: build::cofferdam(&workspace)?,
        vm_image: image::build(&workspace, &image::Args::default())?,
        workspace,
    };
    if args.matrix {
        return matrix(&bench, args.tests.filter.as_deref());
    }
    let mut totals = Totals::default();
    let attempts = Attempts::new(&bench.workspace, true)?;
    let done = builds_in_vms(&bench, &args.tests, &attempts, &mut totals);
    totals.print();
    attempts.print()?;
    done
}

/// All cells of the exit matrix. The test prints the table and how many have passed.
fn matrix(bench: &Bench, filter: Option<&str>) -> Result<()> {
    let accelerator = accelerator(&bench.workspace, &bench.cofferdam, &bench.vm_image)?;
    let mut command = shell::command("cargo", ["test", "--locked", "--workspace"]);
    command
        .args(["--test", "matrix", "--"])
        .args(MATRIX)
        .current_dir(&bench.workspace.root)
        .env("COFFERDAM_BIN", &bench.cofferdam)
        .env("COFFERDAM_VM_IMAGE", &bench.vm_image)
        .env("COFFERDAM_ACCEL", accelerator)
        .env("COFFERDAM_CELLS", filter.unwrap_or_default());
    shell::run(&mut command)
}

/// A failure does not hide what comes after it. The first one is returned.
fn all(bench: &Bench, args: &Args, attempts: &Attempts, totals: &mut Totals) -> Result<()> {
    let outcomes = [
        tests_of_crates(bench, args, totals),
        examples(bench, args, totals),
        random_builds(bench, args),
        builds_in_vms(bench, args, attempts, totals),
    ];
    outcomes.into_iter().collect()
}

/// Soak and, in a full run, fuzzing. They have no names to filter by.
fn random_builds(bench: &Bench, args: &Args) -> Result<()> {
    if args.filter.is_some() {
        return Ok(());
    }
    let minutes = if args.full { 10.0 } else { 1.0 };
    soak::drive(&bench.workspace, &soak::Args::of(minutes))?;
    if args.full {
        fuzz::run(&fuzz::Args::all(60))?;
    }
    Ok(())
}

/// All crates but `tests`.
const CRATES: [&str; 3] = ["--workspace", "--exclude", "tests"];

fn tests_of_crates(bench: &Bench, args: &Args, totals: &mut Totals) -> Result<()> {
    let peers = Peers::obtain(&bench.workspace)?;
    let mut command = cargo_test(bench, args, &[&CRATES[..], &["--all-targets"]].concat());
    command
        .args(["--"])
        .args(runner::TIMED)
        .args(harness_arguments());
    if args.full {
        command.env("STORE_PROOF_WIDTH", FULL_PROOF_WIDTH);
        command.env("COFFERDAM_STALL", FULL_STALL);
        command.env("COFFERDAM_EVERY_FRAME", "1");
    }
    totals.run(peers.tell(&mut command))
}

/// The examples of the documentation, which `--all-targets` leaves out.
fn examples(bench: &Bench, args: &Args, totals: &mut Totals) -> Result<()> {
    let words = [&CRATES[..], &["--doc"]].concat();
    totals.run(&mut cargo_test(bench, args, &words))
}

fn builds_in_vms(
    bench: &Bench,
    args: &Args,
    attempts: &Attempts,
    totals: &mut Totals,
) -> Result<()> {
    let accelerator = accelerator(&bench.workspace, &bench.cofferdam, &bench.vm_image)?;
    let targets = builds(&bench.workspace)?;
    let targets = targets.iter().flat_map(|name| ["--test", name]);
    let words: Vec<&str> = std::iter::once("--workspace").chain(targets).collect();
    let mut command = cargo_test(bench, args, &words);
    command.args(["--", "--test-threads", VMS]);
    command
        .args(runner::TIMED)
        .args(harness_arguments())
        .env("COFFERDAM_BIN", &bench.cofferdam)
        .env("COFFERDAM_ACCEL", accelerator)
        .env("COFFERDAM_ATTEMPTS", &attempts.dir)
        .env("COFFERDAM_HOSTILE_IMAGE", hostile_image(&bench.workspace)?)
        .env(
            "COFFERDAM_STOCK_DEVICE",
            tools::STOCK_DEVICE.obtain(&bench.workspace)?,
        );
    if attempts.every {
        command.env("COFFERDAM_EVERY_ATTEMPT", "1");
    }
    totals.run(&mut command)
}

/// The names of the test targets of the package `tests`. With its own name instead, dependencies would get
/// other features than with the whole workspace, and be compiled once more.
fn builds(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root.join("tests/tests");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names = entries
        .map(|entry| {
            let name = PathBuf::from(entry?.file_name()).with_extension("");
            Ok(name.to_string_lossy().into_owned())
        })
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The guest image whose agent is hostile.
fn hostile_image(workspace: &Workspace) -> Result<PathBuf> {
    let guest = image::compile_static(workspace, &["--package", "hostile-guest"])?;
    let args = image::Args::of(
        guest.join("hostile-guest"),
        workspace.target.join("hostile"),
    );
    image::build(workspace, &args)
}

/// `cargo test` with these words. What is wanted behind `--` is the caller's.
fn cargo_test(bench: &Bench, args: &Args, words: &[&str]) -> Command {
    let mut command = shell::command("cargo", ["test", "--locked", "--no-fail-fast"]);
    if !words.contains(&"--doc") {
        command.args(runner::timing_config());
    }
    command.args(words).args(&args.filter);
    command
        .current_dir(&bench.workspace.root)
        .env("COFFERDAM_VM_IMAGE", &bench.vm_image);
    command
}

/// Boots the VM once and says by which accelerator. Each test has a store of its own and would
/// otherwise have to find out anew that this machine's KVM does not work.
fn accelerator(workspace: &Workspace, cofferdam: &Path, vm_image: &Path) -> Result<String> {
    let said = shell::output(
        shell::command(cofferdam, ["doctor", "--boot", "--json"])
            .env("COFFERDAM_STORE", workspace.target.join("test-store"))
            .env("COFFERDAM_VM_IMAGE", vm_image),
    )
    .context("the builder VM does not boot")?;
    let report: Value = serde_json::from_slice(&said).context("report of `doctor --boot`")?;
    let accelerator = report.pointer("/boot/accelerator").and_then(Value::as_str);
    let accelerator = accelerator.context("`doctor --boot` names no accelerator")?;
    let wanted = std::env::var("COFFERDAM_ACCEL").unwrap_or_else(|_| "auto".to_owned());
    ensure!(
        wanted == "auto" || wanted == accelerator,
        "COFFERDAM_ACCEL asks for {wanted}, but the builder VM boots with {accelerator}; \
         `cofferdam doctor --boot` says why"
    );
    say(format!("the builder VM boots with {accelerator}"));
    Ok(accelerator.to_owned())
}
