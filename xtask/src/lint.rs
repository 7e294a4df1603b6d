//! `cargo xtask lint`: format, clippy, documentation, dependencies. Warnings are errors here, not in the source.

use anyhow::Result;

use crate::build::cargo;
use crate::shell::{self, say};
use crate::tools;
use crate::workspace::Workspace;

/// Check format, lints, documentation and dependencies.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    cargo(&workspace, &["fmt", "--all", "--check"])?;
    unused_dependencies(&workspace)?;
    allowed_dependencies(&workspace)?;
    lock_of_libfuzzer(&workspace)?;
    let all = ["clippy", "--workspace", "--all-targets"];
    let words = ["--locked", "--quiet", "--", "-D", "warnings"];
    cargo(&workspace, &[&all[..], &words].concat())?;
    documentation(&workspace)
}

/// Dependencies that no source names.
fn unused_dependencies(workspace: &Workspace) -> Result<()> {
    let machete = tools::MACHETE.obtain(workspace)?;
    let mut command = shell::command(machete, [&workspace.root]);
    // It walks directories: what cargo made is not ours.
    shell::output(command.current_dir(&workspace.root)).map(drop)
}

/// Licences and sources as `deny.toml` allows them; advisories, if their list can be fetched.
fn allowed_dependencies(workspace: &Workspace) -> Result<()> {
    let deny = tools::DENY.obtain(workspace)?;
    // It reads every crate of the lock file, also those of other platforms.
    cargo(workspace, &["fetch", "--locked", "--quiet"])?;
    let run = |words: &[&str]| {
        let mut command = shell::command(&deny, words);
        shell::output(command.current_dir(&workspace.root))
    };
    run(&["--offline", "check", "bans", "licenses", "sources"])?;
    match run(&["fetch", "db"]) {
        Ok(_) => run(&["--offline", "check", "advisories"]).map(drop),
        Err(error) => {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or_default();
            say(format!("advisories were not checked: {last}"));
            Ok(())
        }
    }
}

/// The lock file of the workspace below `tests/fuzz`, which no other command reads, is up to date.
fn lock_of_libfuzzer(workspace: &Workspace) -> Result<()> {
    let manifest = "tests/fuzz/libfuzzer/Cargo.toml";
    let mut command = shell::command(
        "cargo",
        ["tree", "--locked", "--quiet", "--manifest-path", manifest],
    );
    shell::output(command.current_dir(&workspace.root)).map(drop)
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let all = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    let words = [&all[..], &["--locked", "--quiet"]].concat();
    shell::run(
        shell::command("cargo", words)
            .current_dir(&workspace.root)
            // Private items are documented here, so links to them lead somewhere.
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private-intra-doc-links",
            ),
    )
}
