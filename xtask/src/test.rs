//! `cargo xtask test`: all tests. `cargo xtask vm-test`: those that boot VMs.
//!
//! The tests of the crates need nothing but cargo. Those of the package `tests` use the finished
//! `cofferdam` program and a VM image, which are made first and handed over in the environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::image;
use crate::setup::{self, BUSYBOX, CPIO, E2FSPROGS, QEMU, REGISTRY, SKOPEO, UMOCI};
use crate::shell;
use crate::workspace::Workspace;

/// Run all tests: those of each crate, then whole builds in VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the tests of the crates, which boot no VM.
    #[arg(long)]
    pub(crate) no_vm: bool,
}

/// Run the tests that boot VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Arguments for `cargo test`, such as a part of a test's name or `-- --nocapture`.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    rest: Vec<String>,
}

/// Runs `cargo xtask test`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    setup::ensure(&[BUSYBOX, CPIO, E2FSPROGS, REGISTRY, SKOPEO, UMOCI])?;
    let mut cargo = workspace.cargo("test");
    cargo.args(["--workspace", "--exclude", "tests"]);
    shell::run(&mut cargo)?;
    if args.no_vm {
        return Ok(());
    }
    vm_tests(&workspace, &[])
}

/// Runs `cargo xtask vm-test`.
pub(crate) fn run_vm(args: &VmArgs) -> Result<()> {
    vm_tests(&Workspace::find()?, &args.rest)
}

/// The last thing that this prints is what cargo says about the tests.
fn vm_tests(workspace: &Workspace, rest: &[String]) -> Result<()> {
    setup::ensure(&[QEMU, BUSYBOX, UMOCI, SKOPEO, REGISTRY])?;
    let program = program(workspace, "dev")?;
    let image = image::build(workspace, &image::Args::default())?;
    let mut cargo = workspace.cargo("test");
    cargo.args(["--package", "tests"]).args(rest);
    hand_over(&mut cargo, &program, &image);
    shell::run(&mut cargo)
}

/// Compiles `cofferdam` and returns where it is.
pub(crate) fn program(workspace: &Workspace, profile: &str) -> Result<PathBuf> {
    let mut cargo = workspace.cargo("build");
    cargo.args([
        "--quiet",
        "--package",
        "cli",
        "--bin",
        "cofferdam",
        "--profile",
        profile,
    ]);
    shell::run(&mut cargo)?;
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(workspace.target.join(directory).join("cofferdam"))
}

/// Tells a command where program and image are.
fn hand_over(command: &mut Command, program: &Path, image: &Path) {
    command
        .env("COFFERDAM_BIN", program)
        .env("COFFERDAM_VM_IMAGE", image);
}
