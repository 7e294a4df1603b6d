//! Patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?`, and escapes such as `\*`.
//!
//! The law: all matches of one text together have a limit that depends on neither patterns nor
//! values.

use crate::error::Fault;

/// Steps that the patterns of one text may still take; each takes a few nanoseconds.
#[derive(Debug)]
pub(crate) struct Steps(usize);

impl Default for Steps {
    fn default() -> Self {
        Self(20_000_000)
    }
}

impl Steps {
    fn take(&mut self, steps: usize) -> Result<(), Fault> {
        let rest = self.0.checked_sub(steps);
        self.0 = rest.ok_or_else(|| {
            Fault::new("the patterns in its ${…} expansions take too long to match; shorten them")
        })?;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    Any,
    Many,
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let token = match c {
                '*' => Token::Many,
                '?' => Token::Any,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\' | '/' | '}')) => Token::Char(c),
                    other => {
                        let what = other.map_or_else(String::new, |c| c.to_string());
                        let text = format!("invalid escape \\{what} in the pattern \"{text}\"");
                        return Err(Fault::new(text));
                    }
                },
                c => Token::Char(c),
            };
            tokens.push(token);
        }
        Ok(Self { tokens })
    }

    /// `value` without its shortest or longest matching prefix.
    pub(crate) fn cut_prefix(
        &self,
        value: &str,
        longest: bool,
        steps: &mut Steps,
    ) -> Result<String, Fault> {
        let chars: Vec<char> = value.chars().collect();
        let cut = self.matched(&chars, longest, steps)?.unwrap_or(0);
        Ok(chars.into_iter().skip(cut).collect())
    }

    /// `value` without its shortest or longest matching suffix.
    pub(crate) fn cut_suffix(
        mut self,
        value: &str,
        longest: bool,
        steps: &mut Steps,
    ) -> Result<String, Fault> {
        self.tokens.reverse();
        let chars: Vec<char> = value.chars().rev().collect();
        let cut = self.matched(&chars, longest, steps)?.unwrap_or(0);
        Ok(value.chars().take(chars.len() - cut).collect())
    }

    /// `value` with the first match, or all of them, replaced.
    pub(crate) fn replace(
        &self,
        value: &str,
        by: &str,
        all: bool,
        steps: &mut Steps,
    ) -> Result<String, Fault> {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::new();
        let (mut at, mut matched_to, mut done) = (0, None, false);
        while let Some(rest) = chars.get(at..) {
            let found = if done {
                None
            } else {
                self.matched(rest, true, steps)?
            };
            match found {
                // An empty match directly after another match does not count.
                Some(len) if len > 0 || matched_to != Some(at) => {
                    out.push_str(by);
                    at += len;
                    matched_to = Some(at);
                    done = !all;
                    if len > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            out.extend(rest.first());
            at += 1;
        }
        Ok(out)
    }

    /// Length of the shortest or longest prefix of `value` that the whole pattern matches.
    ///
    /// `live` marks the positions in the pattern that are reachable. All advance together, so the
    /// cost is at most the product of the two lengths.
    fn matched(
        &self,
        value: &[char],
        longest: bool,
        steps: &mut Steps,
    ) -> Result<Option<usize>, Fault> {
        let end = self.tokens.len();
        let mut live = vec![false; end + 1];
        self.reach(&mut live, 0);
        let mut found = None;
        for length in 0..=value.len() {
            if live.last() == Some(&true) {
                found = Some(length);
                if !longest {
                    break;
                }
            }
            let Some(c) = value.get(length) else { break };
            steps.take(end + 1)?;
            let mut next = vec![false; end + 1];
            let mut any = false;
            for (place, token) in self.tokens.iter().enumerate() {
                if live.get(place) != Some(&true) {
                    continue;
                }
                let to = match token {
                    Token::Many => place,
                    Token::Char(wanted) if wanted != c => continue,
                    Token::Char(_) | Token::Any => place + 1,
                };
                self.reach(&mut next, to);
                any = true;
            }
            if !any {
                break;
            }
            live = next;
        }
        Ok(found)
    }

    /// Marks a position, and those after it that are reachable without a character.
    fn reach(&self, live: &mut [bool], mut place: usize) {
        while let Some(mark) = live.get_mut(place) {
            if *mark {
                return;
            }
            *mark = true;
            if self.tokens.get(place) != Some(&Token::Many) {
                return;
            }
            place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "foo.bar.baz";

    #[track_caller]
    fn check_cuts(pattern: &str, expected: [&str; 4]) {
        let cut = || Pattern::parse(pattern).unwrap();
        let got = [
            cut().cut_prefix(VALUE, false, &mut Steps::default()),
            cut().cut_prefix(VALUE, true, &mut Steps::default()),
            cut().cut_suffix(VALUE, false, &mut Steps::default()),
            cut().cut_suffix(VALUE, true, &mut Steps::default()),
        ]
        .map(Result::unwrap);
        assert_eq!(got, expected, "{pattern}");
    }

    #[test]
    fn shortest_and_longest_ends_are_cut() {
        check_cuts("*.", ["bar.baz", "baz", VALUE, VALUE]);
        check_cuts(".*", [VALUE, VALUE, "foo.bar", "foo"]);
        check_cuts("*", [VALUE, "", VALUE, ""]);
        check_cuts("", [VALUE; 4]);
        check_cuts("???", [".bar.baz", ".bar.baz", "foo.bar.", "foo.bar."]);
        check_cuts("x*", [VALUE; 4]);
    }

    #[track_caller]
    fn check_replace(value: &str, pattern: &str, by: &str, first: &str, all: &str) {
        let replace = |all| {
            Pattern::parse(pattern)
                .unwrap()
                .replace(value, by, all, &mut Steps::default())
                .unwrap()
        };
        assert_eq!(
            (replace(false).as_str(), replace(true).as_str()),
            (first, all),
            "{pattern}"
        );
    }

    #[test]
    fn matches_are_replaced() {
        check_replace("/usr/bin", r"\/", "_", "_usr/bin", "_usr_bin");
        check_replace(VALUE, ".", "-", "foo-bar.baz", "foo-bar-baz");
        check_replace(VALUE, "*", "-", "-", "-");
        check_replace(VALUE, "b?", "-", "foo.-r.baz", "foo.-r.-z");
        check_replace("aaa", "b", "-", "aaa", "aaa");
        check_replace("ab", "", "-", "-ab", "-a-b-");
    }

    #[test]
    fn dollar_and_digits_in_a_replacement_are_plain_text() {
        check_replace("aXb", "X", "x$0y", "ax$0yb", "ax$0yb");
    }

    #[test]
    fn classes_are_plain_text() {
        check_replace("a.b[.]c", "[.]", "_", "a.b_c", "a.b_c");
    }

    #[test]
    fn other_escapes_are_refused() {
        for pattern in [r"\a", r"a\", r"\."] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
        check_replace("a*b?c", r"\*", "-", "a-b?c", "a-b?c");
    }

    #[test]
    fn an_expensive_pattern_is_refused_in_time() {
        let value = "a".repeat(60_000);
        let pattern = Pattern::parse(&"*a".repeat(1000)).unwrap();
        let replaced = pattern.replace(&value, "b", true, &mut Steps::default());
        assert!(replaced.is_err());
    }
}
