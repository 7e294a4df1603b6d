//! Which build checks are reported: the `check` directive.

use std::collections::BTreeSet;

use super::error::Fault;

/// What the `check` directive asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    skip_all: bool,
    skip: BTreeSet<String>,
    /// Anything reported fails the build.
    pub error: bool,
}

impl Checks {
    /// Reads `skip=A,B;error=true;experimental=C`.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let mut checks = Self::default();
        for option in text.split(';') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "skip" => checks.add_skipped(value),
                "error" => checks.error = boolean(value)?,
                // No check is experimental here, so there is nothing to switch on.
                "experimental" => {}
                _ => return Err(Fault::new(format!("invalid check option \"{option}\""))),
            }
        }
        Ok(checks)
    }

    /// The same, with the `# check=` comments above an instruction taken into account.
    pub(crate) fn with_comments(&self, comments: &[String]) -> Self {
        let mut checks = self.clone();
        for comment in comments {
            let Some(options) = comment.strip_prefix("check=") else {
                continue;
            };
            let options = options.split_whitespace().next().unwrap_or_default();
            for option in options.split(';') {
                if let Some(rules) = option.strip_prefix("skip=") {
                    checks.add_skipped(rules);
                }
            }
        }
        checks
    }

    /// Whether a rule is not to be reported.
    #[must_use]
    pub fn skips(&self, rule: &str) -> bool {
        self.skip_all || self.skip.contains(rule)
    }

    fn add_skipped(&mut self, rules: &str) {
        for rule in rules.split(',') {
            match rule.trim() {
                "all" => self.skip_all = true,
                rule => drop(self.skip.insert(rule.to_owned())),
            }
        }
    }
}

fn boolean(text: &str) -> Result<bool, Fault> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Fault::new(format!(
            "invalid value \"{text}\" for the check option error"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let checks = Checks::parse("skip=A,B;error=true").unwrap();
        assert!(checks.skips("A") && checks.skips("B") && !checks.skips("C") && checks.error);
        assert!(Checks::parse("skip=all").unwrap().skips("C"));
        assert!(Checks::parse("skip=A;").is_err());
        assert!(Checks::parse("error=maybe").is_err());
    }

    #[test]
    fn a_comment_skips_for_one_instruction() {
        let checks = Checks::default();
        let above = checks.with_comments(&["check=skip=A".to_owned(), "other".to_owned()]);
        assert!(above.skips("A") && !checks.skips("A"));
    }
}
