//! `cargo xtask lint`: format, clippy, documentation. Warnings are errors here, not in the source.

use anyhow::Result;

use crate::build::cargo;
use crate::shell;
use crate::workspace::Workspace;

/// Check format, lints and documentation.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    cargo(&workspace, &["fmt", "--all", "--check"])?;
    cargo(
        &workspace,
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    let words = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
        "--quiet",
    ];
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
