//! From the bytes of a file to logical lines: line ends, comments and continuations.

use crate::error::Fault;

/// Maximum length of a physical line, in bytes without its end. The same as Docker's, so that a file
/// that builds here also builds there.
pub(crate) const MAX_LINE: usize = 65_535;

/// First line, last line, and what is wrong with them.
pub(crate) type LineFault = (usize, usize, Fault);

/// Yields physical lines and counts them.
#[derive(Debug, Clone)]
pub(crate) struct Lines<'t> {
    rest: &'t [u8],
    /// Number of the line that was yielded last, one-based.
    pub(crate) number: usize,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t [u8]) -> Self {
        Self {
            rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            number: 0,
        }
    }

    /// The next line including its end, or `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<&'t [u8]>, LineFault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let (line, rest) = self
            .rest
            .split_at(end.map_or(self.rest.len(), |position| position + 1));
        self.rest = rest;
        self.number += 1;
        if without_end(line).len() > MAX_LINE {
            let text = format!("dockerfile line greater than max allowed size of {MAX_LINE} bytes");
            return Err((self.number, self.number, Fault::new(text)));
        }
        Ok(Some(line))
    }

    /// The next line as text, without its end.
    fn next_text(&mut self) -> Result<Option<&'t str>, LineFault> {
        let Some(line) = self.next()? else {
            return Ok(None);
        };
        if is_comment(line) {
            // Comments do not have to be UTF-8.
            return Ok(Some("#"));
        }
        self.text_of(without_end(line)).map(Some)
    }

    fn text_of(&self, line: &'t [u8]) -> Result<&'t str, LineFault> {
        let fail = |why| (self.number, self.number, Fault::new(why));
        if line.contains(&0) {
            return Err(fail("the line contains a NUL byte"));
        }
        std::str::from_utf8(line).map_err(|_| fail("the line is not valid UTF-8"))
    }
}

/// The text of an instruction with comments and continuations resolved, without heredoc bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logical {
    /// Its first line, one-based.
    pub(crate) first: usize,
    /// The joined lines.
    pub(crate) text: String,
    /// The comments above it, without `#`. An empty comment clears them, a blank line does not.
    pub(crate) comments: Vec<String>,
    /// Whether there are blank lines inside.
    pub(crate) blank_inside: bool,
}

/// Reads the next instruction.
pub(crate) fn next_logical(
    lines: &mut Lines<'_>,
    escape: char,
) -> Result<Option<Logical>, LineFault> {
    let mut comments = Vec::new();
    while let Some(line) = lines.next()? {
        if is_comment(line) {
            collect_comment(&mut comments, line);
            continue;
        }
        let (text, more) = cut_continuation(
            lines
                .text_of(without_end(line))?
                .trim_start_matches(char::is_whitespace),
            escape,
        );
        if text.is_empty() && !more {
            continue;
        }
        let (first, text) = (lines.number, text.to_owned());
        let mut logical = Logical {
            first,
            text,
            comments,
            blank_inside: false,
        };
        if more {
            join(lines, escape, &mut logical)?;
        }
        if logical.text.trim().is_empty() {
            comments = logical.comments;
            continue;
        }
        return Ok(Some(logical));
    }
    Ok(None)
}

/// Appends the lines that continue an instruction. Nothing is inserted between them, and their
/// indentation is kept.
fn join(lines: &mut Lines<'_>, escape: char, logical: &mut Logical) -> Result<(), LineFault> {
    while let Some(line) = lines.next_text()? {
        let trimmed = line.trim_start();
        if trimmed.starts_with('#') {
            continue;
        }
        if trimmed.is_empty() {
            logical.blank_inside = true;
            continue;
        }
        let (text, more) = cut_continuation(line, escape);
        logical.text.push_str(text);
        if !more {
            break;
        }
    }
    Ok(())
}

/// The line without the escape character that continues it, and whether there was one.
fn cut_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(text) if !text.ends_with(escape) => (text, true),
        _ => (line, false),
    }
}

fn collect_comment(comments: &mut Vec<String>, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_start().trim_start_matches('#').trim();
    if text.is_empty() {
        comments.clear();
    } else {
        comments.push(text.to_owned());
    }
}

/// Whether the first non-blank character is `#`.
fn is_comment(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"#")
}

/// The line without its line end.
pub(crate) fn without_end(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r' | b'\n'] = line {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], escape: char) -> Result<Vec<Logical>, LineFault> {
        let mut lines = Lines::new(text);
        std::iter::from_fn(|| next_logical(&mut lines, escape).transpose()).collect()
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let texts: Vec<String> = read(text.as_bytes(), '\\')
            .unwrap()
            .into_iter()
            .map(|line| line.text)
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn continuation_adds_no_space_and_keeps_indentation() {
        check("RUN echo a\\\nb", &["RUN echo ab"]);
        check("ENV X=\"a\\\n  b\"", &["ENV X=\"a  b\""]);
    }

    #[test]
    fn two_escapes_do_not_continue_the_line() {
        check("RUN echo c:\\\\\nRUN dir", &["RUN echo c:\\\\", "RUN dir"]);
    }

    #[test]
    fn spaces_after_the_escape_are_ignored() {
        check("RUN echo a \\ \t\nb", &["RUN echo a b"]);
    }

    #[test]
    fn comments_and_blank_lines_inside_an_instruction_are_removed() {
        check("RUN a && \\\n# note \\\n   # more\n\nb", &["RUN a && b"]);
        assert!(read(b"RUN a \\\n\nb", '\\').unwrap()[0].blank_inside);
        assert!(!read(b"RUN a \\\n#\nb", '\\').unwrap()[0].blank_inside);
    }

    #[test]
    fn a_line_of_the_escape_alone_continues() {
        check("RUN a \\\n\\\nb", &["RUN a b"]);
        check("\\\nRUN a", &["RUN a"]);
    }

    #[test]
    fn an_open_continuation_ends_with_the_file() {
        check("RUN a \\", &["RUN a "]);
        check("RUN a \\\n# x", &["RUN a "]);
        check("\\", &[]);
    }

    #[test]
    fn line_ends_and_the_byte_order_mark_are_dropped() {
        check("\u{feff}FROM a\r\nRUN b\\\r\nc\r\n", &["FROM a", "RUN bc"]);
    }

    #[test]
    fn the_first_line_loses_its_indentation() {
        check("  FROM a\n\t RUN b", &["FROM a", "RUN b"]);
    }

    #[test]
    fn an_empty_comment_clears_the_comments_above_it() {
        let got = read(b"# a\n\n# b\nFROM x\n# c\n#\n# d\nRUN y", '\\').unwrap();
        assert_eq!(got[0].comments, ["a", "b"]);
        assert_eq!(got[1].comments, ["d"]);
        assert_eq!((got[0].first, got[1].first), (4, 8));
    }

    #[test]
    fn the_longest_line_is_accepted_and_one_more_byte_is_not() {
        let longest = format!("RUN {}\n", "x".repeat(MAX_LINE - 4));
        assert!(read(longest.as_bytes(), '\\').is_ok());
        let (line, _, _) = read(format!("\nx{longest}").as_bytes(), '\\').unwrap_err();
        assert_eq!(line, 2);
    }

    #[test]
    fn other_encodings_are_accepted_in_comments_only() {
        assert!(read(b"# Jos\xe9\nFROM a \\\n # \xe9\n", '\\').is_ok());
        assert!(read(b"MAINTAINER Jos\xe9\n", '\\').is_err());
        assert!(read(b"FROM a \\\n \xe9\n", '\\').is_err());
    }

    #[test]
    fn the_escape_character_can_be_another() {
        let got = read(b"RUN a `\nb\\\nRUN c", '`').unwrap();
        assert_eq!(got[0].text, "RUN a b\\");
    }
}
