//! Counters of what happened.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;

/// Counters by name.
#[derive(Debug, Default)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.0 {
            writeln!(f, "{count:>9}  {what}")?;
        }
        Ok(())
    }
}

/// Writes a line to standard output. A closed pipe is not an error.
pub(crate) fn say(line: impl fmt::Display) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Writes a line to standard error.
pub(crate) fn complain(line: impl fmt::Display) {
    writeln!(std::io::stderr(), "{line}").ok();
}
