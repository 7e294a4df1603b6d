//! Makes untrusted output safe to print.
//!
//! **Rule:** output of a step, and every name and text that a Dockerfile, an image or the guest chose,
//! reaches the terminal as text only, and all of it can be seen. Escape sequences and control characters
//! are removed here, and what is invisible or changes the order of text is shown as `\u{…}`; the step's
//! log in the store keeps them.

mod invisible;

use std::borrow::Cow;

use invisible::is_escaped;

/// Longest line, in bytes. Longer lines are split, so that a step that writes a gigabyte without a
/// newline needs no more memory than this.
const MAX_LINE: usize = 64 << 10;

/// Splits a byte stream into sanitized lines.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    partial: Vec<u8>,
}

impl LineBuffer {
    /// Appends bytes and passes every line that they complete to `line`.
    pub(crate) fn push(&mut self, mut data: &[u8], mut line: impl FnMut(String)) {
        while !data.is_empty() {
            let space = MAX_LINE.saturating_sub(self.partial.len());
            let end = data.iter().take(space).position(|byte| *byte == b'\n');
            let (piece, rest) = data.split_at(end.unwrap_or_else(|| space.min(data.len())));
            self.partial.extend_from_slice(piece);
            data = rest;
            if end.is_some() {
                data = data.get(1..).unwrap_or_default();
            }
            if end.is_some() || self.partial.len() >= MAX_LINE {
                line(sanitize(&std::mem::take(&mut self.partial)));
            }
        }
    }

    /// Passes the last, unterminated line to `line` at the end of the stream.
    pub(crate) fn finish(&mut self, line: impl FnOnce(String)) {
        if !self.partial.is_empty() {
            line(sanitize(&std::mem::take(&mut self.partial)));
        }
    }
}

/// One line as a terminal would finally show it, without escape sequences, control characters and
/// anything invisible.
pub(crate) fn sanitize(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = overwritten(&text);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars();
    let mut before = None;
    while let Some(character) = rest.next() {
        match character {
            '\u{1b}' => skip_escape(&mut rest),
            '\t' => shown.push('\t'),
            '\n' => shown.push(' '),
            _ if character.is_control() => continue,
            _ if is_escaped(character, before) => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
        before = Some(character);
    }
    shown
}

/// Text of several lines, each as [`sanitize`] shows it.
pub(crate) fn sanitize_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| sanitize(line.as_bytes())).collect();
    lines.join("\n")
}

/// JSON with the same meaning that a terminal shows as it is. What is invisible can only be in strings,
/// since the rest of JSON is ASCII, so it is escaped there as JSON does.
pub(crate) fn json(value: &impl std::fmt::Display) -> String {
    let text = value.to_string();
    let mut shown = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        let is_line = matches!(character, '\n' | '\t');
        if !is_line && (character.is_control() || is_escaped(character, None)) {
            for unit in character.encode_utf16(&mut units) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Keeps only the text after the last carriage return, which restarts the line (progress bars use
/// this). Carriage returns at the end belong to the line ending.
fn overwritten(text: &str) -> Cow<'_, str> {
    let line = text.trim_end_matches('\r');
    Cow::Borrowed(line.rsplit_once('\r').map_or(line, |(_, last)| last))
}

/// Skips the rest of an escape sequence (ECMA-48). An unterminated one extends to the end of the line.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    match rest.next() {
        // Control sequence: parameters, then one final byte.
        Some('[') => drop(rest.find(|c| ('\u{40}'..='\u{7e}').contains(c))),
        // OSC, DCS, SOS, PM and APC strings: up to BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => skip_string(rest),
        // Intermediate bytes, then one final byte.
        Some('\u{20}'..='\u{2f}') => drop(rest.find(|c| !('\u{20}'..='\u{2f}').contains(c))),
        Some(_) | None => {}
    }
}

fn skip_string(rest: &mut std::str::Chars<'_>) {
    while let Some(character) = rest.next() {
        match character {
            '\u{07}' | '\u{9c}' => return,
            '\u{1b}' => {
                rest.next();
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[&[u8]], want: &[&str]) {
        let mut lines = LineBuffer::default();
        let mut got = Vec::new();
        for piece in pieces {
            lines.push(piece, |line| got.push(line));
        }
        lines.finish(|line| got.push(line));
        assert_eq!(got, want);
    }

    #[test]
    fn lines_are_joined_from_arbitrary_chunks() {
        check(&[b"a", b"b\nc", b"\n\nd"], &["ab", "c", "", "d"]);
        check(&[b"gr\xc3", b"\xbcn\n"], &["grün"]);
        check(&[b"a\r", b"\nb"], &["a", "b"]);
    }

    #[test]
    fn a_progress_bar_shows_its_last_state() {
        check(&[b"10%\r50%\r100%\n"], &["100%"]);
    }

    #[test]
    fn escapes_and_controls_are_removed() {
        check(
            &[b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;http://e\x1b\\y\n"],
            &["red xy"],
        );
        check(
            &[b"\x1b(Ba\x1b7b\x1bPq#0\x1b\\c\x07\x08\x7f\x00d\te\n"],
            &["abcd\te"],
        );
        check(&["\u{9b}31mred\u{9d}x".as_bytes()], &["31mredx"]);
    }

    #[test]
    fn what_changes_the_order_of_text_or_hides_is_shown_escaped() {
        check(
            &["a\u{202e}txt.exe\u{2066}b\u{61c}\u{200f}\n".as_bytes()],
            &[r"a\u{202e}txt.exe\u{2066}b\u{61c}\u{200f}"],
        );
        check(
            &["x\u{200b}y\u{feff}\u{e0041}".as_bytes()],
            &[r"x\u{200b}y\u{feff}\u{e0041}"],
        );
        check(
            &["👩\u{200d}💻 a\u{200d}b".as_bytes()],
            &["👩\u{200d}💻 a\\u{200d}b"],
        );
        // An escape sequence between them hides nothing.
        check(&["👩\x1b[0m\u{200d}".as_bytes()], &["👩\\u{200d}"]);
    }

    #[test]
    fn json_keeps_its_meaning_and_shows_all_of_it() {
        let text = "a\u{202e}b\u{9b}c\u{e0041}\u{7f}d\u{200d}ü\n\x1b";
        let value = serde_json::json!({ "k": [text] });
        for printed in [json(&value), json(&format!("{value:#}"))] {
            let hidden = |c: char| is_escaped(c, None) || (c.is_control() && c != '\n');
            assert!(!printed.contains(hidden), "{printed}");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&printed).unwrap(),
                value
            );
        }
    }

    #[test]
    fn an_unterminated_escape_ends_with_its_line() {
        check(&[b"a\x1b[12\nb\x1b]x\nc\x1b"], &["a", "b", "c"]);
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        check(&[b"\xff\xfe\n"], &["\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn output_without_newlines_is_split() {
        let mut lines = LineBuffer::default();
        let mut sizes = Vec::new();
        for _ in 0..10 {
            lines.push(&[b'x'; 40_000], |line| sizes.push(line.len()));
        }
        lines.finish(|line| sizes.push(line.len()));
        assert_eq!(sizes.iter().sum::<usize>(), 400_000);
        assert!(sizes.iter().all(|size| *size <= MAX_LINE));
    }

    #[test]
    fn no_input_yields_a_control_character() {
        let mut state = 1_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Mostly from the first 160 code points, where everything dangerous is.
            u8::try_from((state >> 24) % 160).unwrap()
        };
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..40).map(|_| noise()).collect();
            let line = sanitize(&bytes);
            assert!(
                !line
                    .chars()
                    .any(|c| (c.is_control() && c != '\t') || is_escaped(c, Some('é'))),
                "{bytes:?} → {line:?}"
            );
        }
    }
}
