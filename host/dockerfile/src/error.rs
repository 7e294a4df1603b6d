//! Errors: what is wrong with a Dockerfile, and where.

use std::fmt;

use crate::redact;

/// Maximum number of marked lines in an excerpt; the rest of a long instruction is omitted.
const MAX_MARKED: usize = 20;
/// Maximum number of characters shown of a line.
const MAX_SHOWN: usize = 500;

/// An error in a Dockerfile. Displayed as one line: `FILE:LINE: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileError {
    /// Name of the file, as the caller gave it.
    pub file: String,
    /// First line of the instruction, one-based; zero if there is no particular line.
    pub line: usize,
    /// Last line of the instruction.
    pub last_line: usize,
    /// What is wrong.
    pub message: String,
    /// What to try, such as `did you mean RUN?`.
    pub hint: Option<String>,
    excerpt: String,
}

impl DockerfileError {
    /// The lines around the error, with those of the instruction marked; empty if there is no
    /// particular line.
    #[must_use]
    pub fn excerpt(&self) -> &str {
        &self.excerpt
    }

    pub(crate) fn new(file: &str, text: &[u8], first: usize, last: usize, fault: Fault) -> Self {
        let excerpt = match first {
            0 => String::new(),
            _ => format!("{file}:{first}\n{}", excerpt(text, first, last)),
        };
        Self {
            file: file.to_owned(),
            line: first,
            last_line: last,
            message: one_line(&fault.message),
            hint: fault.hint,
            excerpt,
        }
    }
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for DockerfileError {}

/// What is wrong with an instruction, without its position. [`crate::Dockerfile::error`] adds that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    /// What to try, such as `did you mean RUN?`.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// A fault for a feature that this version cannot build: `WHAT is not supported yet`.
    #[must_use]
    pub fn unsupported(what: &str) -> Self {
        Self::new(format!("{what} is not supported yet"))
    }

    /// Adds the hint `did you mean …?` if there is a suggestion.
    #[must_use]
    pub fn did_you_mean(self, close: Option<&str>) -> Self {
        Self {
            hint: close.map(|close| format!("did you mean {close}?")),
            ..self
        }
    }
}

/// The lines `first..=last` (one-based) of `text`, marked with `>>>`, with context: two lines on each
/// side, or one if several lines are marked. Control characters are shown as U+FFFD, so that a
/// Dockerfile cannot control the terminal. Credentials in URLs are hidden.
#[must_use]
pub fn excerpt(text: &[u8], first: usize, last: usize) -> String {
    let around = if last > first { 1 } else { 2 };
    let from = first.saturating_sub(around).max(1);
    let marked = last.saturating_sub(first).min(MAX_MARKED);
    let cut = last.saturating_sub(first) > marked;
    let to = if cut {
        first + marked
    } else {
        last.saturating_add(around)
    };
    let rule = "-".repeat(20);
    let mut out = format!("{rule}\n");
    let lines = text.split_inclusive(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.skip(from - 1).take_while(|(index, _)| *index < to) {
        let number = index + 1;
        let mark = if (first..=last).contains(&number) {
            ">>>"
        } else {
            "   "
        };
        let shown = format!("{number:4} | {mark} {}", printable(line));
        out.push_str(shown.trim_end());
        out.push('\n');
    }
    if cut {
        out.push_str("     | …\n");
    }
    out + &rule + "\n"
}

/// A message without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// One line of a file, printable and with limited length.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text
        .trim_end_matches(['\r', '\n'])
        .trim_start_matches('\u{feff}');
    let text = redact::urls(text);
    let mut shown: String = text
        .chars()
        .take(MAX_SHOWN)
        .map(|c| {
            if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_shown_with_two_lines_of_context() {
        assert_eq!(
            excerpt(b"FROM alpine\nWORKDIR /src\nRUN make\nCOPY out /\n", 3, 3),
            "--------------------\n   1 |     FROM alpine\n   2 |     WORKDIR /src\n   3 | >>> RUN make\n   \
             4 |     COPY out /\n--------------------\n"
        );
    }

    #[test]
    fn several_lines_are_shown_with_one_line_of_context() {
        let text = excerpt(b"a\nb\nc\nd\ne\nf", 3, 4);
        assert_eq!(
            text,
            "--------------------\n   2 |     b\n   3 | >>> c\n   4 | >>> d\n   5 |     e\n--------------------\n"
        );
    }

    #[test]
    fn a_long_instruction_is_cut() {
        let text = "x\n".repeat(1000);
        let shown = excerpt(text.as_bytes(), 1, 900);
        assert!(shown.lines().count() < 30 && shown.contains('…'), "{shown}");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert!(!excerpt(b"RUN \x1b[2J", 1, 1).contains('\x1b'));
    }

    #[test]
    fn lines_out_of_range_do_not_panic() {
        for (first, last) in [(0, 0), (9, 3), (1, usize::MAX), (usize::MAX, usize::MAX)] {
            assert!(excerpt(b"a\n", first, last).starts_with("---"));
        }
    }
}
