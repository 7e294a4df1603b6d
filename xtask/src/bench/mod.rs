//! `cargo xtask bench NAME`: measures what the project promises about speed and memory.
//!
//! Machines are noisy, so what is compared runs interleaved in one run, medians are quoted, and a
//! ratio says more than a time. Nothing here passes or fails; tests do that.

mod boot;
mod cached;
mod net;
mod record;
mod store;
mod table;
mod transfer;
mod transport;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::build;
use crate::image;
use crate::setup;
use crate::shell;
use crate::workspace::Workspace;

use self::table::Report;

/// Measure speed and memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    name: Name,
    /// Less data and fewer rounds: ends within a minute.
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the figures to this file as well, as a page with the machine they come from. The record
    /// of the project is docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// The benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All of them, one after the other.
    All,
    /// Start of the monitor to the agent's greeting, against a bare busybox on the same kernel.
    Boot,
    /// Builds that find everything in the store.
    Cached,
    /// The network of steps against QEMU's user network.
    Net,
    /// The store with few and with many objects, and how fast bytes come in.
    Store,
    /// A large context through COPY and RUN: time and peak memory of both sides.
    Transfer,
    /// Ways for bytes between host and guest: our driver, the kernel's, and both without a VM.
    Transport,
}

/// What a benchmark works with.
#[derive(Debug)]
struct Bench {
    /// The release binary.
    cofferdam: PathBuf,
    /// The guest image.
    image: PathBuf,
    /// A directory for everything else.
    scratch: tempfile::TempDir,
    quick: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&[setup::VM])?;
    let workspace = Workspace::find()?;
    let mut reports = Vec::new();
    for name in args.name.single() {
        let report = name.measure(&workspace, args.quick)?;
        report.print();
        reports.push(report);
    }
    if let Some(file) = &args.json {
        table::write_json(&reports, file)?;
    }
    if let Some(file) = &args.markdown {
        record::write(&reports, args.quick, file)?;
    }
    Ok(())
}

impl Name {
    /// The benchmarks that this names.
    fn single(self) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|&name| name != Self::All && (self == Self::All || self == name))
            .collect()
    }

    fn measure(self, workspace: &Workspace, quick: bool) -> Result<Report> {
        let bench = Bench::new(workspace, quick)?;
        match self {
            Self::Boot => boot::run(&bench),
            Self::Cached => cached::run(&bench),
            Self::Net => net::run(workspace, &bench),
            Self::Store => store::run(workspace, &bench),
            Self::Transfer => transfer::run(&bench),
            Self::Transport => transport::run(workspace, &bench),
            Self::All => bail!("`all` is not a benchmark of its own"),
        }
    }
}

impl Bench {
    fn new(workspace: &Workspace, quick: bool) -> Result<Self> {
        Ok(Self {
            cofferdam: build::cofferdam_release(workspace)?,
            image: image::build(workspace, &image::Args::default())?,
            scratch: scratch(workspace)?,
            quick,
        })
    }

    /// A `cofferdam` command on the benchmark's own store.
    fn cofferdam<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = shell::command(&self.cofferdam, args);
        command
            .env("COFFERDAM_STORE", self.scratch.path().join("store"))
            .env("COFFERDAM_VM_IMAGE", &self.image);
        command
    }

    /// A fresh directory for a build context, with a static busybox in it.
    fn context(&self, name: &str) -> Result<PathBuf> {
        let dir = self.scratch.path().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::copy("/bin/busybox", dir.join("busybox"))
            .context("cannot copy /bin/busybox: install the package busybox-static")?;
        Ok(dir)
    }

    /// Builds a context and says how long that took.
    fn build(&self, context: &Path) -> Result<Duration> {
        let mut command = self.cofferdam(["build", "--progress", "plain", "."]);
        timed(command.current_dir(context))
    }

    /// As [`Self::build`], where nothing may be started: there is no search path.
    fn build_cached(&self, context: &Path) -> Result<Duration> {
        let mut command = self.cofferdam(["build", "--progress", "plain", "."]);
        timed(command.current_dir(context).env("PATH", "/nonexistent"))
    }
}

/// A directory on the disk that holds the target directory.
fn scratch(workspace: &Workspace) -> Result<tempfile::TempDir> {
    tempfile::tempdir_in(&workspace.target).context("cannot make a directory")
}

/// Runs a command, which must succeed, and says how long it took.
fn timed(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    shell::output(command)?;
    Ok(begin.elapsed())
}

/// Smallest, middle and largest of some times.
#[derive(Debug, Clone, Copy)]
struct Spread {
    min: Duration,
    median: Duration,
    max: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Result<Self> {
        times.sort_unstable();
        let (Some(&min), Some(&max)) = (times.first(), times.last()) else {
            bail!("nothing was measured");
        };
        let median = times.get(times.len() / 2).copied().unwrap_or(max);
        Ok(Self { min, median, max })
    }
}

/// Milliseconds, with fractions.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
