//! How a command ends: error classes, exit statuses and the text of error messages.

use std::io;

use anyhow::Error;

use crate::sanitize::sanitize;

/// Who has to act on an error. Each class has its own exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A step failed, or the Dockerfile, the build context or an argument is wrong.
    User,
    /// The command line is invalid.
    Usage,
    /// No error: `build --rebuild` found a step with a different result.
    Differs,
    /// A memory or disk limit of the VM was exceeded.
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

    /// The name of the class in JSON output.
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
    /// The lines of the Dockerfile around the error.
    pub(crate) excerpt: Option<String>,
    /// How to fix it.
    pub(crate) hint: Option<String>,
    /// The file with the full output of the failed step.
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

    /// An invalid command line.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Class::Usage, Error::msg(text.into()))
    }

    /// A failure of the host.
    pub(crate) fn host(error: impl Into<Error>) -> Self {
        Self::new(Class::Host, error)
    }

    /// The message for the user: the Dockerfile lines, the error with each of its causes once, the
    /// hint and the log. It may quote output of the guest, so it is sanitized.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = self.text().join("\n");
        text.lines().map(|line| sanitize(line.as_bytes())).collect()
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
                "full output: `cofferdam history logs`, or the file {}",
                log.display()
            ));
        }
        lines
    }
}

/// I/O errors count as failures of the host unless the caller knows better.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::host(error)
    }
}

/// The error and its causes on one line.
pub(crate) fn chain(error: &Error) -> String {
    engine::build::chain(error.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_match_the_documentation() {
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
    fn an_error_names_its_location_and_each_cause_once() {
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
                "full output: `cofferdam history logs`, or the file /logs/1",
            ]
        );
    }
}
