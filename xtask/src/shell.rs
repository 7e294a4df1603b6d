//! Runs other programs and prints what goes on. A command that fails is an error that shows it.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints a line. A closed standard output is not worth failing for.
pub(crate) fn say(text: impl AsRef<str>) {
    writeln!(std::io::stdout(), "{}", text.as_ref()).ok();
}

/// Prints a line to standard error.
pub(crate) fn complain(text: impl AsRef<str>) {
    writeln!(std::io::stderr(), "{}", text.as_ref()).ok();
}

/// A command with its arguments, without standard input.
pub(crate) fn command<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command to its end and returns its standard output; its errors are shown on failure.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let done = command.output().with_context(|| cannot_start(command))?;
    if !done.status.success() {
        let errors = String::from_utf8_lossy(&done.stderr);
        bail!(
            "`{}` failed: {}\n{}",
            line(command),
            done.status,
            errors.trim_end()
        );
    }
    Ok(done.stdout)
}

/// As [`output`], for text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    let line = line(command);
    String::from_utf8(output(command)?).with_context(|| format!("output of `{line}`"))
}

/// The command as one would type it, more or less.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", line(command))
}
