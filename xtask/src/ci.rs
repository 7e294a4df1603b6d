//! `cargo xtask ci`: everything that must hold before a change is merged.

use anyhow::Result;

use crate::shell::{self, say};
use crate::test;
use crate::workspace::Workspace;

/// Check format, lints and documentation, then run all tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that boot VMs.
    #[arg(long)]
    no_vm: bool,
}

/// Runs the command. Warnings are errors here, and nowhere else.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    say("== format");
    shell::run(workspace.cargo_unlocked("fmt").args(["--all", "--check"]))?;
    say("== lints");
    let mut clippy = workspace.cargo("clippy");
    shell::run(clippy.args([
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))?;
    say("== documentation");
    let mut doc = workspace.cargo("doc");
    doc.args([
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--quiet",
    ]);
    shell::run(doc.env("RUSTDOCFLAGS", "--deny warnings"))?;
    say("== tests");
    test::run(&test::Args { no_vm: args.no_vm })
}
