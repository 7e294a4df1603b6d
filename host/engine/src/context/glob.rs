//! A compiled path pattern.
//!
//! The law: matching takes time proportional to the length of the path times the length of the
//! pattern, however many stars the pattern has. The pattern is run as a set of states, without
//! backtracking. Names are bytes; `?` and classes match one character where the name is UTF-8, and
//! one byte where it is not.

/// Added to a byte that is not part of valid UTF-8, so that it differs from all characters.
const RAW_BYTE: u32 = 0x0011_0000;
/// The character that only the wildcard `**` matches.
const SLASH: u32 = b'/' as u32;

/// The language of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// An ignore file: `**` stands for any number of elements.
    Ignore,
    /// A source of COPY: `**` is just `*` twice.
    Source,
}

/// Why a pattern is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// `[` without `]`, or with nothing between them.
    #[error("the character class after `[` is empty or not closed")]
    Class,
    /// A backslash at the end.
    #[error("it ends with an unescaped `\\`")]
    Escape,
    /// `!` at the end.
    #[error("a pattern must follow `!`")]
    Negation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Exactly this character or raw byte.
    Unit(u32),
    /// Any character but `/`.
    One,
    /// One of these, or none of these; never `/`.
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
    /// Any number of characters but `/`.
    Star,
    /// Any number of whole elements with their `/`; followed by [`Token::Elements`].
    MaybeElements,
    /// The inside of [`Token::MaybeElements`].
    Elements,
    /// Any text.
    All,
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    tokens: Vec<Token>,
    /// Bytes that every match starts with, and the number of their tokens.
    head: (Vec<u8>, usize),
    /// Bytes that every match ends with, and the number of their tokens.
    tail: (Vec<u8>, usize),
}

impl Glob {
    /// Compiles `pattern`.
    pub(crate) fn new(pattern: &[u8], dialect: Dialect) -> Result<Self, BadPattern> {
        let tokens = Parser {
            units: units(pattern).collect(),
            at: 0,
            dialect,
        }
        .parse()?;
        let head = literal(tokens.iter());
        let mut tail = literal(tokens.iter().skip(head.1).rev());
        tail.0.reverse();
        Ok(Self {
            head: (head.0.concat(), head.1),
            tail: (tail.0.concat(), tail.1),
            tokens,
        })
    }

    /// Whether the pattern matches the whole of `path`.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(self.head.0.as_slice()) else {
            return false;
        };
        let Some(rest) = rest.strip_suffix(self.tail.0.as_slice()) else {
            return false;
        };
        let middle = self.middle();
        match middle {
            [] => rest.is_empty(),
            [Token::Star] => !rest.contains(&b'/'),
            [Token::All] => true,
            [Token::MaybeElements, Token::Elements] => rest.is_empty() || rest.ends_with(b"/"),
            _ => States::run(middle, rest).accepts(middle),
        }
    }

    /// Whether a path below the directory `dir` can match.
    pub(crate) fn can_match_below(&self, dir: &[u8]) -> bool {
        let mut states = States::run(&self.tokens, dir);
        states.step(&self.tokens, SLASH);
        !states.active.is_empty()
    }

    /// The tokens between head and tail.
    fn middle(&self) -> &[Token] {
        let end = self.tokens.len().saturating_sub(self.tail.1);
        self.tokens.get(self.head.1..end).unwrap_or_default()
    }
}

/// The leading literal tokens as bytes, one vector each, and their number.
fn literal<'a>(tokens: impl Iterator<Item = &'a Token>) -> (Vec<Vec<u8>>, usize) {
    let bytes: Vec<Vec<u8>> = tokens
        .map_while(|token| match token {
            Token::Unit(unit) => Some(encode(*unit)),
            Token::One
            | Token::Class { .. }
            | Token::Star
            | Token::MaybeElements
            | Token::Elements
            | Token::All => None,
        })
        .collect();
    let n_tokens = bytes.len();
    (bytes, n_tokens)
}

/// The bytes of one unit.
fn encode(unit: u32) -> Vec<u8> {
    match char::from_u32(unit) {
        Some(character) => character.to_string().into_bytes(),
        None => u8::try_from(unit.saturating_sub(RAW_BYTE))
            .into_iter()
            .collect(),
    }
}

/// Splits bytes into characters and raw bytes.
fn units(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.utf8_chunks().flat_map(|chunk| {
        let raw = chunk
            .invalid()
            .iter()
            .map(|byte| RAW_BYTE + u32::from(*byte));
        chunk.valid().chars().map(u32::from).chain(raw)
    })
}

/// Whether `text` contains a wildcard.
pub(crate) fn has_wildcard(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

struct Parser {
    units: Vec<u32>,
    at: usize,
    dialect: Dialect,
}

impl Parser {
    fn parse(mut self) -> Result<Vec<Token>, BadPattern> {
        let mut tokens = Vec::new();
        while let Some(unit) = self.next() {
            match char::from_u32(unit) {
                Some('*') => self.star(&mut tokens),
                Some('?') => tokens.push(Token::One),
                Some('[') => tokens.push(self.class()?),
                Some('\\') => tokens.push(Token::Unit(self.next().ok_or(BadPattern::Escape)?)),
                _ => tokens.push(Token::Unit(unit)),
            }
        }
        Ok(tokens)
    }

    fn next(&mut self) -> Option<u32> {
        let unit = self.peek();
        self.at += 1;
        unit
    }

    fn peek(&self) -> Option<u32> {
        self.units.get(self.at).copied()
    }

    fn eat(&mut self, character: char) -> bool {
        let found = self.peek() == Some(u32::from(character));
        if found {
            self.at += 1;
        }
        found
    }

    /// Parses what follows `*`. In an ignore file `**` includes the `/` after it. At the end it matches
    /// everything. At the very start, directly before plain text, it matches any prefix.
    fn star(&mut self, tokens: &mut Vec<Token>) {
        let first = self.at == 1;
        if self.dialect == Dialect::Source || !self.eat('*') {
            if tokens.last() != Some(&Token::Star) {
                tokens.push(Token::Star);
            }
            return;
        }
        let glued = !self.eat('/');
        let special = |unit: &u32| ['*', '?', '[', '\\'].iter().any(|c| u32::from(*c) == *unit);
        let plain = !self.units.iter().skip(self.at).any(special);
        if self.peek().is_none() || (first && glued && plain) {
            tokens.push(Token::All);
        } else {
            tokens.extend([Token::MaybeElements, Token::Elements]);
        }
    }

    /// Parses what follows `[`.
    fn class(&mut self) -> Result<Token, BadPattern> {
        let negated = self.eat('^');
        let mut ranges = Vec::new();
        while ranges.is_empty() || !self.eat(']') {
            let low = self.class_unit()?;
            let high = if self.eat('-') {
                self.class_unit()?
            } else {
                low
            };
            ranges.push((low, high));
        }
        Ok(Token::Class { negated, ranges })
    }

    /// One end of a range.
    fn class_unit(&mut self) -> Result<u32, BadPattern> {
        let unit = self.next().ok_or(BadPattern::Class)?;
        match char::from_u32(unit) {
            Some('-' | ']') => Err(BadPattern::Class),
            Some('\\') => self.next().ok_or(BadPattern::Class),
            _ => Ok(unit),
        }
    }
}

/// The positions in a pattern that are reachable after some text was read.
struct States {
    active: Vec<usize>,
    next: Vec<usize>,
}

impl States {
    /// Reads `text` from the start of the pattern.
    fn run(tokens: &[Token], text: &[u8]) -> Self {
        let mut states = Self {
            active: Vec::new(),
            next: Vec::new(),
        };
        add(&mut states.active, tokens, 0);
        for unit in units(text) {
            if states.active.is_empty() {
                break;
            }
            states.step(tokens, unit);
        }
        states
    }

    /// Reads one unit.
    fn step(&mut self, tokens: &[Token], unit: u32) {
        for &at in &self.active {
            let Some(token) = tokens.get(at) else {
                continue;
            };
            match token {
                Token::Unit(wanted) if *wanted == unit => add(&mut self.next, tokens, at + 1),
                Token::One if unit != SLASH => add(&mut self.next, tokens, at + 1),
                Token::Class { negated, ranges }
                    if unit != SLASH
                        && ranges
                            .iter()
                            .any(|(low, high)| (low..=high).contains(&&unit))
                            != *negated =>
                {
                    add(&mut self.next, tokens, at + 1);
                }
                Token::Star if unit != SLASH => add(&mut self.next, tokens, at),
                Token::All => add(&mut self.next, tokens, at),
                Token::Elements => {
                    push(&mut self.next, at);
                    if unit == SLASH {
                        add(&mut self.next, tokens, at + 1);
                    }
                }
                Token::Unit(_)
                | Token::One
                | Token::Class { .. }
                | Token::Star
                | Token::MaybeElements => {}
            }
        }
        self.active.clear();
        std::mem::swap(&mut self.active, &mut self.next);
    }

    /// Whether the text read so far is a match.
    fn accepts(&self, tokens: &[Token]) -> bool {
        self.active.contains(&tokens.len())
    }
}

/// Adds a position, and those that are reachable from it without reading anything.
fn add(places: &mut Vec<usize>, tokens: &[Token], mut at: usize) {
    loop {
        if !push(places, at) {
            return;
        }
        at += match tokens.get(at) {
            Some(Token::Star | Token::All) => 1,
            Some(Token::MaybeElements) => {
                push(places, at + 1);
                2
            }
            Some(Token::Unit(_) | Token::One | Token::Class { .. } | Token::Elements) | None => {
                return;
            }
        };
    }
}

/// Adds a place once. The sets are small: patterns have few stars.
fn push(places: &mut Vec<usize>, at: usize) -> bool {
    let new = !places.contains(&at);
    if new {
        places.push(at);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, want: bool) {
        let glob = Glob::new(pattern.as_bytes(), Dialect::Ignore).expect("a pattern");
        assert_eq!(
            glob.matches(path.as_bytes()),
            want,
            "{pattern:?} on {path:?}"
        );
    }

    #[track_caller]
    fn source(pattern: &str, path: &str, want: bool) {
        let glob = Glob::new(pattern.as_bytes(), Dialect::Source).expect("a pattern");
        assert_eq!(
            glob.matches(path.as_bytes()),
            want,
            "{pattern:?} on {path:?}"
        );
    }

    #[test]
    fn a_star_stays_in_its_element() {
        check("*", "a", true);
        check("*", "a/b", false);
        check("a/*.txt", "a/file.txt", true);
        check("a/*.txt", "a/dir/file.txt", false);
        check(".*", ".foo", true);
        check(".*", "foo", false);
        check("abc?def", "abc/def", false);
        check("abc?def", "abcZdef", true);
        check("abc?def", "abcdef", false);
    }

    #[test]
    fn two_stars_match_any_number_of_elements() {
        for path in ["file", "dir/file", "dir/dir/file"] {
            for pattern in [
                "**",
                "**/file",
                "**file",
                "**/file*",
                "**/**/file",
                "**/f*le",
            ] {
                check(pattern, path, true);
            }
        }
        check("dir/**", "dir", false);
        check("dir/**", "dir/file", true);
        check("dir/**", "dir/dir2/file", true);
        check("a/**/b", "a/b", true);
        check("a/**/b", "a/x/y/b", true);
        check("a/**/b", "a/xb", false);
        check("a**/*.txt", "a/dir/dir/file.txt", true);
        check("a**/*.txt", "a/file.txt", true);
        check("**/**/*.txt2", "dir/dir/file.txt", false);
        check("**/.foo", "bar.foo", false);
        check("**/foo/bar", "foo/bar", true);
        check("**/foo/bar", "dir/dir2/foo/bar", true);
        check("**.log", "a/b.log", true);
        check("a/*.txt**", "a/file.txt", true);
    }

    #[test]
    fn classes_match_one_character() {
        check("a[b-d]e", "ae", false);
        check("a[b-d]e", "ace", true);
        check("a[b-d]e", "aae", false);
        check("a[^b-d]e", "aze", true);
        check("a[^b]e", "a/e", false);
        check("[!a]", "a", true);
        check("[!a]", "b", false);
        check("[äöü]x", "öx", true);
        check("?x", "öx", true);
        check(r"[\]]", "]", true);
    }

    #[test]
    fn a_backslash_makes_the_next_character_plain() {
        check(r"a\\", r"a\", true);
        check(r"\*", "*", true);
        check(r"\*", "a", false);
        check(r"a\*b/*", "a*b/c", true);
        check("a.|)$(}+{bc", "a.|)$(}+{bc", true);
        check("abc.def", "abcZdef", false);
    }

    #[test]
    fn source_patterns_have_no_deep_star() {
        source("**", "a/b", false);
        source("**", "a", true);
        source("[[]id].tsx", "[id].tsx", true);
        source("[id].tsx", "i.tsx", true);
        source("[id].tsx", "[id].tsx", false);
    }

    #[test]
    fn names_that_are_no_text_match_by_bytes() {
        let glob = Glob::new(b"a\xff?", Dialect::Ignore).expect("a pattern");
        assert!(glob.matches(b"a\xff\xfe"));
        assert!(!glob.matches(b"a\xfe\xfe"));
        let any = Glob::new(b"?", Dialect::Ignore).expect("a pattern");
        assert!(any.matches(b"\xff"));
    }

    #[test]
    fn broken_patterns_are_refused() {
        for (text, want) in [
            ("[", BadPattern::Class),
            ("[]", BadPattern::Class),
            ("[a", BadPattern::Class),
            ("[a-]", BadPattern::Class),
            ("[]a]", BadPattern::Class),
            ("a\\", BadPattern::Escape),
        ] {
            let got = Glob::new(text.as_bytes(), Dialect::Ignore).map(|_| ());
            assert_eq!(got, Err(want), "{text}");
        }
    }

    #[test]
    fn patterns_that_can_match_below_a_directory_are_found_exactly() {
        let below = |pattern: &str, dir: &str| {
            Glob::new(pattern.as_bytes(), Dialect::Ignore)
                .expect("a pattern")
                .can_match_below(dir.as_bytes())
        };
        assert!(below("a/b/c", "a"));
        assert!(below("a/b/c", "a/b"));
        assert!(!below("a/b/c", "a/c"));
        assert!(!below("a/b", "a/b"));
        assert!(below("a/*/c", "a/x"));
        assert!(!below("src/*.rs", "node_modules"));
        assert!(below("**/keep", "node_modules/x"));
        assert!(!below("a*", "a"));
        assert!(below("a**", "a"));
    }

    #[test]
    fn many_stars_are_matched_in_linear_time() {
        let pattern = "*a".repeat(60) + "b";
        let glob = Glob::new(pattern.as_bytes(), Dialect::Ignore).expect("a pattern");
        assert!(!glob.matches("a".repeat(4000).as_bytes()));
        let deep = "**/a/".repeat(40) + "b";
        let glob = Glob::new(deep.as_bytes(), Dialect::Ignore).expect("a pattern");
        assert!(!glob.matches("a/".repeat(1000).as_bytes()));
    }
}
