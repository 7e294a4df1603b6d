//! Runs `cargo test`, shows what it prints, and keeps count: how many tests passed, and which took longest.

use std::io::{BufRead as _, BufReader, PipeReader};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};

/// How many tests are named at the end.
const SLOWEST: usize = 10;

/// What all the test programs of a run reported.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
    times: Vec<(Duration, String)>,
    /// The test program that is running, as cargo names it.
    program: String,
}

impl Totals {
    /// Runs a `cargo test` command to its end.
    ///
    /// # Errors
    /// If it fails, after everything that it printed was shown.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        command.stdout(writer.try_clone().context("cannot make a pipe")?);
        command.stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", shell::line(command)))?;
        // The command keeps its ends of the pipe open; the reader waits for all of them to close.
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let read = self.read(reader);
        let status = child.wait().context("cannot wait for cargo")?;
        read?;
        if !status.success() {
            bail!("`{}` failed: {status}", shell::line(command));
        }
        Ok(())
    }

    fn read(&mut self, output: PipeReader) -> Result<()> {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read what cargo prints")?;
            let line = String::from_utf8_lossy(&line);
            say(line.as_ref());
            self.count(&line);
        }
        Ok(())
    }

    /// Takes note of one line of output.
    fn count(&mut self, line: &str) {
        let line = line.trim();
        if let Some(program) = line.strip_prefix("Running ") {
            let program = program.rsplit('/').next().unwrap_or(program);
            let name = program.rsplit_once('-').map_or(program, |(name, _)| name);
            name.clone_into(&mut self.program);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
            self.skipped += number_before(result, " ignored");
        } else if let Some((name, time)) = timed(line) {
            self.times.push((time, format!("{}: {name}", self.program)));
        }
    }

    /// Prints the slowest tests, then the totals as the last line.
    pub(crate) fn print(mut self) {
        self.times.sort_unstable_by(|a, b| b.cmp(a));
        say("\nslowest tests:");
        for (time, name) in self.times.iter().take(SLOWEST) {
            say(format!("{:>8.1} s  {name}", time.as_secs_f64()));
        }
        say(format!(
            "\ntests: {} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        ));
    }
}

/// The arguments of `cargo test` that make it report the time of each test. The test harness of the
/// stable compiler knows how, but wants to hear that unstable options are welcome; told by way of the
/// runner, that is no reason to compile anything again.
pub(crate) fn timing_config() -> [String; 2] {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let runner = format!("target.{triple}.runner=[\"env\", \"RUSTC_BOOTSTRAP=1\"]");
    ["--config".to_owned(), runner]
}

/// The arguments behind `--` that go with [`timing_config`].
pub(crate) const TIMED: &[&str] = &["-Z", "unstable-options", "--report-time"];

/// The number in front of `unit`, such as 12 in `ok. 12 passed; 0 failed`.
fn number_before(text: &str, unit: &str) -> u64 {
    let before = text.split(unit).next().unwrap_or_default();
    let digits = before.rsplit(' ').next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// Name and time of a test, from a line like `test a::b ... ok <1.234s>`.
fn timed(line: &str) -> Option<(&str, Duration)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let time = outcome.rsplit_once('<')?.1.strip_suffix("s>")?;
    let time = Duration::try_from_secs_f64(time.parse().ok()?).ok()?;
    Some((name, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_read_from_what_cargo_prints() {
        let mut totals = Totals::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/store-0a1b2c3d4e5f)",
            "test a::quick ... ok <0.001s>",
            "test a::slow ... FAILED <12.500s>",
            "test b::off ... ignored, needs a VM",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 12.51s",
            "test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.51s",
        ] {
            totals.count(line);
        }
        assert_eq!((totals.passed, totals.failed, totals.skipped), (41, 1, 3));
        let slow = (Duration::from_millis(12_500), "store: a::slow".to_owned());
        assert_eq!(totals.times.iter().max(), Some(&slow));
        assert_eq!(totals.times.len(), 2);
    }
}
