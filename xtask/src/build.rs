//! Compiles the programs that the other commands use.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell;
use crate::workspace::Workspace;

/// The `cofferdam` command in the development profile, which the tests use as well.
pub(crate) fn cofferdam(workspace: &Workspace) -> Result<PathBuf> {
    cargo(workspace, &["build", "--package", "cli", "--locked"])?;
    Ok(workspace.target.join("debug/cofferdam"))
}

/// All programs and tests; gives the `cofferdam` command. Dependencies get the features that all who are
/// built together want, so what is built one by one is built anew.
pub(crate) fn everything(workspace: &Workspace) -> Result<PathBuf> {
    cargo(
        workspace,
        &["build", "--workspace", "--all-targets", "--locked"],
    )?;
    Ok(workspace.target.join("debug/cofferdam"))
}

/// The `cofferdam` command as users run it.
pub(crate) fn cofferdam_release(workspace: &Workspace) -> Result<PathBuf> {
    release(workspace, "cli", "cofferdam")
}

/// The program that fills stores.
pub(crate) fn soak_release(workspace: &Workspace) -> Result<PathBuf> {
    release(workspace, "soak", "soak")
}

/// The program of a package in the release profile.
fn release(workspace: &Workspace, package: &str, program: &str) -> Result<PathBuf> {
    let words = ["build", "--release", "--package", package, "--locked"];
    cargo(workspace, &words)?;
    Ok(workspace.target.join("release").join(program))
}

/// The program that measures transports between host and guest.
pub(crate) fn transport_example(workspace: &Workspace) -> Result<PathBuf> {
    let package = ["--package", "vsock-testbed", "--example", "transport"];
    let words = ["build", "--release", "--locked"];
    cargo(workspace, &[words.as_slice(), &package].concat())?;
    Ok(workspace.target.join("release/examples/transport"))
}

/// Runs cargo at the top of the workspace.
pub(crate) fn cargo(workspace: &Workspace, words: &[&str]) -> Result<()> {
    shell::run(shell::command("cargo", words).current_dir(&workspace.root))
}
