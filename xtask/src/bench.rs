//! `cargo xtask bench NAME`: measures, and prints a table.

use anyhow::Result;

/// Measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<()> {
    Ok(())
}
