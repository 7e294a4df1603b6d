//! Writes data to standard output and messages to standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::exit::Failure;
use crate::sanitize::sanitize_lines;

/// Writes a message to standard error. It may name what others chose, so it is sanitized.
pub(crate) fn message(text: &str) {
    writeln!(io::stderr(), "{}", sanitize_lines(text)).ok();
}

/// Writes the data of a command to standard output, as [`try_print`] does, and succeeds.
pub(crate) fn print(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<ExitCode, Failure> {
    let printed = try_print(write).context("cannot write to standard output");
    printed.map_err(Failure::host)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes data to standard output. A closed pipe is not an error: the reader has seen enough.
pub(crate) fn try_print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
