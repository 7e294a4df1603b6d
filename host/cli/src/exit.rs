//! How a command ends: classes, exit statuses and the text of errors.

use std::io;

use anyhow::Error;

use crate::progress::clean;

/// Whose fault an error is. Each class has an exit status of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A step failed, or the Dockerfile, the context or an argument about them is wrong.
    User,
    /// The command line makes no sense.
    Usage,
    /// Nobody's: a step that was done again made something else than before.
    Differs,
    /// A limit was reached.
    Limit,
    /// The host, the VM or a registry failed.
    Host,
    /// The user cancelled.
    Cancelled,
}

impl Class {
    /// The exit status of the process.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Usage => 2,
            Self::Differs => 3,
            Self::Limit => 124,
            Self::Host => 125,
            Self::Cancelled => 130,
        }
    }

    /// The name in events and files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Usage => "usage",
            Self::Differs => "differs",
            Self::Limit => "limit",
            Self::Host => "host",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An error that ends the command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) error: Error,
    /// The place in the Dockerfile, with lines around it.
    pub(crate) excerpt: Option<String>,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Where all output of the failed step is.
    pub(crate) log: Option<std::path::PathBuf>,
}

impl Failure {
    pub(crate) fn new(class: Class, error: impl Into<Error>) -> Self {
        Self {
            class,
            error: error.into(),
            excerpt: None,
            hint: None,
            log: None,
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Class::Usage, Error::msg(text.into()))
    }

    /// Trouble of the host.
    pub(crate) fn host(error: impl Into<Error>) -> Self {
        Self::new(Class::Host, error)
    }

    /// What the user sees: the place, then the error with all its causes, once each. What a guest
    /// wrote may be part of it, so it is made safe to show.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = self.text().join("\n");
        text.lines().map(|line| clean(line.as_bytes())).collect()
    }

    fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(excerpt) = &self.excerpt {
            lines.extend(excerpt.trim_end().lines().map(str::to_owned));
        }
        lines.push(format!("ERROR: {}", chain(&self.error)));
        lines.extend(self.hint.iter().map(|hint| format!("hint: {hint}")));
        if let Some(log) = &self.log {
            lines.push(format!(
                "all output of the step is in {}; `cofferdam history logs` shows it",
                log.display()
            ));
        }
        lines
    }
}

/// An error that is not the fault of anybody in particular is the host's.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::host(error)
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &Error) -> String {
    engine::build::chain(error.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_documented_ones() {
        let classes = [
            Class::User,
            Class::Usage,
            Class::Differs,
            Class::Limit,
            Class::Host,
            Class::Cancelled,
        ];
        assert_eq!(classes.map(Class::status), [1, 2, 3, 124, 125, 130]);
        assert_eq!(
            classes.map(Class::name),
            ["user", "usage", "differs", "limit", "host", "cancelled"]
        );
    }

    #[test]
    fn an_error_is_told_with_its_place_and_each_cause_once() {
        let error = Error::msg("disk full")
            .context("cannot write x: disk full")
            .context("export");
        let failure = Failure {
            class: Class::Host,
            error,
            excerpt: Some("a:1\n > x\n".into()),
            hint: Some("did you mean y?".into()),
            log: Some("/logs/1".into()),
        };
        assert_eq!(
            failure.lines(),
            [
                "a:1",
                " > x",
                "ERROR: export: cannot write x: disk full",
                "hint: did you mean y?",
                "all output of the step is in /logs/1; `cofferdam history logs` shows it",
            ]
        );
    }
}
