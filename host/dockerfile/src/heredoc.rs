//! Heredocs: files whose content is in the Dockerfile.
//!
//! A heredoc is a whole word, `<<NAME`, `<<-NAME` or `3<<NAME`. Its body starts below the
//! instruction and ends before a line that consists of NAME.

use crate::error::Fault;
use crate::lines::{LineFault, Lines, without_end};

/// A heredoc with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes; also the name of the file.
    pub name: String,
    /// Whether variables in the body are expanded: no part of the delimiter is quoted.
    pub expand: bool,
    /// Whether leading tabs of each line are removed (`<<-`).
    pub strip_tabs: bool,
    /// The body as it is in the file, including line ends.
    pub body: Vec<u8>,
}

impl Heredoc {
    /// The content: the body without the tabs that `<<-` removes.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        if !self.strip_tabs {
            return self.body.clone();
        }
        self.body
            .split_inclusive(|byte| *byte == b'\n')
            .flat_map(without_tabs)
            .copied()
            .collect()
    }

    /// Whether `text` consists of this heredoc's `<<NAME` word.
    #[must_use]
    pub fn is_word(&self, text: &str) -> bool {
        Self::of_word(text).is_some_and(|other| other.name == self.name)
    }

    /// The heredoc that `word` starts, without its body.
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        let rest = word
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix("<<")?;
        let stripped = rest.strip_prefix('-');
        let quoted = stripped.unwrap_or(rest).trim_start();
        if quoted.contains('<') {
            return None;
        }
        let name = unquoted(quoted).filter(|name| !name.is_empty())?;
        let (expand, strip_tabs) = (name == quoted, stripped.is_some());
        Some(Self {
            name,
            expand,
            strip_tabs,
            body: Vec::new(),
        })
    }

    /// Reads the body from the lines that follow.
    pub(crate) fn read_body(
        &mut self,
        lines: &mut Lines<'_>,
        first: usize,
    ) -> Result<(), LineFault> {
        while let Some(line) = lines.next()? {
            let end = without_end(line);
            let end = if self.strip_tabs {
                without_tabs(end)
            } else {
                end
            };
            if end == self.name.as_bytes() {
                return Ok(());
            }
            self.body.extend_from_slice(line);
        }
        let text = format!(
            "unterminated heredoc: no line consists of \"{}\"",
            self.name
        );
        let hint = Some(
            "a word that starts with << is a heredoc; write a shift without spaces: $((1<<2))"
                .to_owned(),
        );
        Err((
            first,
            lines.number,
            Fault {
                message: text,
                hint,
            },
        ))
    }
}

fn without_tabs(mut line: &[u8]) -> &[u8] {
    while let [b'\t', rest @ ..] = line {
        line = rest;
    }
    line
}

/// The heredocs that a logical line starts, in order.
pub(crate) fn heads(line: &str) -> Vec<Heredoc> {
    let mut heads = Vec::new();
    if !line.contains("<<") {
        return heads;
    }
    // A line with an unmatched quote contains no heredoc.
    let mut words = raw_words(line).unwrap_or_default().into_iter();
    while let Some(word) = words.next() {
        let arrow = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let word = match arrow {
            "<<" | "<<-" => words
                .next()
                .map_or_else(|| word.clone(), |name| format!("{word} {name}")),
            _ => word,
        };
        heads.extend(Heredoc::of_word(&word));
    }
    heads
}

/// What encloses a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Double,
    Brace,
}

/// Words with their quotes and escapes; `None` if a quote or a brace is not closed.
fn raw_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut stack: Vec<Inside> = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if stack.is_empty() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(c);
        match (c, stack.last()) {
            ('\\', _) => word.extend(chars.next()),
            ('"', Some(Inside::Double)) | ('}', Some(Inside::Brace)) => drop(stack.pop()),
            ('"', _) => stack.push(Inside::Double),
            ('\'', None | Some(Inside::Brace)) => loop {
                let quoted = chars.next()?;
                word.push(quoted);
                if quoted == '\'' {
                    break;
                }
            },
            ('$', _) if chars.peek() == Some(&'{') => {
                word.extend(chars.next());
                stack.push(Inside::Brace);
            }
            _ => {}
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    stack.is_empty().then_some(words)
}

/// The delimiter without quotes and escapes; `None` if it is not a single word.
fn unquoted(text: &str) -> Option<String> {
    let mut name = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None) => name.extend(chars.next()),
            ('\\', Some('"')) if matches!(chars.peek(), Some('"' | '$' | '\\')) => {
                name.extend(chars.next());
            }
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => return None,
            (c, _) => name.push(c),
        }
    }
    quote.is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, whether it expands, whether it strips tabs.
    #[track_caller]
    fn check(line: &str, expected: &[(&str, bool, bool)]) {
        let heads = heads(line);
        let got: Vec<_> = heads
            .iter()
            .map(|head| (head.name.as_str(), head.expand, head.strip_tabs))
            .collect();
        assert_eq!(got, expected, "{line}");
    }

    #[test]
    fn a_heredoc_is_a_whole_word() {
        check("RUN <<E", &[("E", true, false)]);
        check(
            "RUN cat <<A <<-B 3<<C >f",
            &[("A", true, false), ("B", true, true), ("C", true, false)],
        );
        check("RUN cat <<E>f", &[("E>f", true, false)]);
        check("RUN a<<E", &[]);
        check("RUN cat <<<E", &[]);
        check("RUN cat <<", &[]);
    }

    #[test]
    fn spaces_are_allowed_after_the_arrow() {
        check("RUN cat << E >f", &[("E", true, false)]);
        check("RUN cat <<- 'E'", &[("E", false, true)]);
    }

    #[test]
    fn a_shift_with_spaces_looks_like_a_heredoc() {
        check("RUN echo $(( 1 << 2 ))", &[("2", true, false)]);
        check("RUN echo $(( 1<<2 ))", &[("2", true, false)]);
        check("RUN echo $((1<<2))", &[]);
    }

    #[test]
    fn quoting_the_delimiter_turns_expansion_off() {
        check("COPY <<'E' /f", &[("E", false, false)]);
        check("COPY <<\"E F\" /f", &[("E F", false, false)]);
        check(r"COPY <<E\F /f", &[("EF", false, false)]);
        check("COPY <<'' /f", &[]);
        check("COPY <<$X /f", &[("$X", true, false)]);
    }

    #[test]
    fn quoted_text_contains_no_heredoc() {
        check("RUN echo \"a <<E b\"", &[]);
        check("RUN echo 'a <<E b'", &[]);
        check(r"RUN echo \<<E", &[]);
        check("RUN echo ${x:-a <<E b}", &[]);
        check("RUN echo it's <<E", &[]);
    }

    fn body(name: &str, text: &str) -> Result<Heredoc, LineFault> {
        let mut heredoc = Heredoc::of_word(name).unwrap();
        heredoc.read_body(&mut Lines::new(text.as_bytes()), 1)?;
        Ok(heredoc)
    }

    #[test]
    fn a_body_ends_at_a_line_that_is_the_delimiter() {
        assert_eq!(body("<<E", "a\n E\nE \nE\nb").unwrap().body, b"a\n E\nE \n");
        assert_eq!(body("<<E", "x\r\nE\r\n").unwrap().body, b"x\r\n");
        assert!(
            body("<<E", "true\n  E\n")
                .unwrap_err()
                .2
                .message
                .starts_with("unterminated heredoc")
        );
        assert!(body("<<E", "true\n\tE\n").is_err());
    }

    #[test]
    fn tabs_are_stripped_from_body_and_delimiter() {
        let heredoc = body("<<-E", "\t\ta\tb\n\tE\n").unwrap();
        assert_eq!(heredoc.body, b"\t\ta\tb\n");
        assert_eq!(heredoc.content(), b"a\tb\n");
    }
}
