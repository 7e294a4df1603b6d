//! The `check` directive: which build checks are reported.

use std::collections::BTreeSet;

use crate::error::Fault;

/// The settings of the `check` directive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    skip_all: bool,
    skip: BTreeSet<String>,
    /// Whether any reported check fails the build.
    pub error: bool,
}

impl Checks {
    /// Parses `skip=A,B;error=true;experimental=C`.
    ///
    /// # Errors
    /// On an unknown option, or a value of `error` that is not a boolean.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut checks = Self::default();
        for option in text.split(';') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "skip" => checks.add_skipped(value),
                "error" => checks.error = boolean(value)?,
                // There are no experimental checks to enable.
                "experimental" => {}
                _ => return Err(Fault::new(format!("invalid check option \"{option}\""))),
            }
        }
        Ok(checks)
    }

    /// These settings, combined with the `# check=` comments above an instruction.
    #[must_use]
    pub fn with_comments(&self, comments: &[String]) -> Self {
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

    /// Whether a rule is skipped.
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
            "invalid value \"{text}\" for the check option \"error\": use true or false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed() {
        let checks = Checks::parse("skip=A,B;error=true").unwrap();
        assert!(checks.skips("A") && checks.skips("B") && !checks.skips("C") && checks.error);
        assert!(Checks::parse("skip=all").unwrap().skips("C"));
        assert!(Checks::parse("skip=A;").is_err());
        assert!(Checks::parse("error=maybe").is_err());
    }

    #[test]
    fn a_comment_skips_a_rule_for_one_instruction() {
        let checks = Checks::default();
        let above = checks.with_comments(&["check=skip=A".to_owned(), "other".to_owned()]);
        assert!(above.skips("A") && !checks.skips("A"));
    }
}
