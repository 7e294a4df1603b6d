//! `cargo xtask soak`: random builds that are killed at random, on one store.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::build;
use crate::setup;
use crate::shell::{self, say};
use crate::workspace::Workspace;

/// So small that builds meet with its end all the time: 4 MiB of it are the store's reserve, and
/// the results of all builds together take more than the rest.
const SMALL: &str = "10m";

/// Mounts a small file system where only this process and its children see it, and goes on.
const ON_SMALL: &str =
    "mount -t tmpfs -o size=\"$1\",mode=700 none \"$2\" && shift 2 && exec \"$@\"";

/// Build, prune and kill at random until the time is up; then the store must be clean.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long, half of it on a full small file system where this user may mount one.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) minutes: f64,
    /// Of the random choices.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Processes at the same time.
    #[arg(long, default_value_t = 4)]
    pub(crate) processes: u64,
}

impl Args {
    /// A run of this length, as a part of the tests.
    pub(crate) fn of(minutes: f64) -> Self {
        Self {
            minutes,
            seed: 1,
            processes: 4,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    build::cargo(&workspace, &["build", "--package", "soak", "--locked"])?;
    drive(&workspace, args)
}

/// Drives the program that was built.
pub(crate) fn drive(workspace: &Workspace, args: &Args) -> Result<()> {
    let program = workspace.target.join("debug/soak");
    if setup::is_root() {
        say("on a full small file system");
        soak(workspace, &program, args, true)?;
        say("on the disk");
    } else {
        say("on the disk; a small file system needs root to be mounted");
    }
    soak(workspace, &program, args, false)
}

/// Runs for half of the time. What is left of a run that found something stays.
fn soak(workspace: &Workspace, program: &Path, args: &Args, small: bool) -> Result<()> {
    let dir = tempfile::tempdir_in(&workspace.target).context("cannot make a directory")?;
    let store = dir.path().join("store");
    std::fs::create_dir(&store).context("cannot make the store")?;
    let mut command = if small {
        let mut command = shell::command("unshare", ["--mount", "sh", "-c", ON_SMALL, "sh", SMALL]);
        command.arg(&store).arg(program);
        command
    } else {
        shell::command(program, [""; 0])
    };
    command.arg("run").arg("--dir").arg(dir.path());
    command.arg(format!("--minutes={}", args.minutes / 2.0));
    command.arg(format!("--seed={}", args.seed));
    command.arg(format!("--processes={}", args.processes));
    let done = shell::run(&mut command);
    if done.is_err() {
        say(format!("it is left in {}", dir.keep().display()));
    }
    done
}
