//! The `--format` option of commands that list things.

use clap::ValueEnum;

/// Output format of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// One JSON object per line
    Json,
}
