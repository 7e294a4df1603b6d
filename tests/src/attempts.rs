//! Attempts to get through a wall, and the count of them.
//!
//! An attempt counts as contained only if it came to nothing and its control succeeded: the same thing
//! with that wall removed, or, where the wall is part of the product, done as an honest party does it. So
//! no attempt passes because it is broken.

use std::fs;
use std::path::Path;

/// Names the directory to which tests write what became of their attempts, one file per group. Unset, the
/// count is not kept.
const DIRECTORY: &str = "COFFERDAM_ATTEMPTS";

/// The attempts of one test.
#[derive(Debug)]
pub struct Attempts {
    group: &'static str,
    /// For each attempt, why it failed, or nothing.
    outcomes: Vec<(String, Option<String>)>,
}

impl Attempts {
    /// No attempts yet. `group` is unique among all tests.
    #[must_use]
    pub const fn of(group: &'static str) -> Self {
        Self {
            group,
            outcomes: Vec::new(),
        }
    }

    /// Takes note of an attempt: whether it came to nothing, whether its control succeeded, and what to
    /// print if not.
    pub fn note(&mut self, name: &str, contained: bool, control: bool, details: &str) {
        let failed = match (contained, control) {
            (true, true) => None,
            (false, _) => Some(format!("NOT CONTAINED: {details}")),
            (true, false) => Some(format!("its control failed: {details}")),
        };
        self.outcomes.push((name.to_owned(), failed));
    }

    /// Writes down the count.
    ///
    /// # Panics
    /// If an attempt was not contained, or a control failed.
    #[track_caller]
    pub fn finish(self) {
        let lines = self.outcomes.iter().map(|(name, failed)| {
            let verdict = if failed.is_some() {
                "failed"
            } else {
                "contained"
            };
            format!("{verdict} {}: {name}\n", self.group)
        });
        let lines: String = lines.collect();
        if let Some(dir) = std::env::var_os(DIRECTORY) {
            fs::write(Path::new(&dir).join(self.group), lines).expect("the count of attempts");
        }
        let failed = self.outcomes.iter().filter_map(|(name, failed)| {
            let why = failed.as_ref()?;
            Some(format!("{name}: {why}\n"))
        });
        let failed: String = failed.collect();
        assert!(failed.is_empty(), "{}:\n{failed}", self.group);
        assert!(!self.outcomes.is_empty(), "{}: no attempts", self.group);
    }
}
