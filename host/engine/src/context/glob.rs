//! A compiled path pattern.
//!
//! The law: a pattern has no more places than characters, plus two for each star, and what one place
//! costs does not depend on the pattern. Names are bytes; `?` and classes match one character where
//! the name is UTF-8, and one byte where it is not.

/// Added to a byte that is not part of valid UTF-8, so that it differs from all characters.
const RAW_BYTE: u32 = 0x0011_0000;
/// The character that only the wildcard `**` matches.
pub(super) const SLASH: u32 = b'/' as u32;

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

/// What a pattern asks for at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// Exactly this character or raw byte.
    Unit(u32),
    /// Any character but `/`.
    One,
    /// A character of a class; never `/`.
    Class(Class),
    /// Any number of characters but `/`.
    Star,
    /// Any number of whole elements with their `/`; followed by [`Token::Elements`].
    MaybeElements,
    /// The inside of [`Token::MaybeElements`].
    Elements,
    /// Any text.
    All,
}

/// A set of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    negated: bool,
    /// First and last characters, sorted, apart from each other.
    ranges: Vec<(u32, u32)>,
}

impl Class {
    /// The characters in some range; with `negated`, those in none.
    fn new(negated: bool, mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.retain(|(low, high)| low <= high);
        ranges.sort_unstable();
        ranges.dedup_by(|(low, high), (_, before)| {
            let overlaps = *low <= *before;
            if overlaps {
                *before = (*before).max(*high);
            }
            overlaps
        });
        Self { negated, ranges }
    }

    /// Whether the character belongs to it.
    pub(super) fn contains(&self, unit: u32) -> bool {
        let at = self.ranges.partition_point(|(_, high)| *high < unit);
        let in_range = self.ranges.get(at).is_some_and(|(low, _)| *low <= unit);
        in_range != self.negated
    }
}

/// A compiled pattern. [`Matcher`](super::matcher::Matcher) runs it.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    pub(super) tokens: Box<[Token]>,
    end: End,
}

/// The names of all matches, as far as that is quickly compared.
#[derive(Debug, Clone)]
enum End {
    Is(Vec<u8>),
    EndsWith(Vec<u8>),
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
        Ok(Self {
            end: End::of(&tokens),
            tokens: tokens.into(),
        })
    }

    /// The number of places in the pattern, with its end.
    pub(crate) fn n_places(&self) -> usize {
        self.tokens.len() + 1
    }

    /// Whether a path whose last element is `name` can match; a quick look.
    pub(super) fn can_end_with(&self, name: &[u8]) -> bool {
        match &self.end {
            End::Is(wanted) => wanted == name,
            End::EndsWith(wanted) => name.ends_with(wanted),
        }
    }
}

impl End {
    /// What stands after the last wildcard, or after the last `/`.
    fn of(tokens: &[Token]) -> Self {
        let literal = |token: &Token| match token {
            Token::Unit(unit) => Some(*unit),
            Token::One
            | Token::Class(_)
            | Token::Star
            | Token::MaybeElements
            | Token::Elements
            | Token::All => None,
        };
        let mut rest = tokens.iter().rev();
        let mut units = Vec::new();
        let whole = loop {
            match rest.next().map(literal) {
                None | Some(Some(SLASH)) => break true,
                Some(None) => break false,
                Some(Some(unit)) => units.push(unit),
            }
        };
        let bytes = units.into_iter().rev().flat_map(encode).collect();
        if whole {
            Self::Is(bytes)
        } else {
            Self::EndsWith(bytes)
        }
    }
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
pub(super) fn units(bytes: &[u8]) -> impl Iterator<Item = u32> {
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
        } else if tokens.last() != Some(&Token::Elements) {
            // Twice in a row says nothing new.
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
        Ok(Token::Class(Class::new(negated, ranges)))
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

#[cfg(test)]
mod tests {
    use exec::Cancel;

    use super::*;
    use crate::context::matcher::Matcher;

    fn matches(pattern: &[u8], dialect: Dialect, path: &[u8]) -> bool {
        let glob = Glob::new(pattern, dialect).expect("a pattern");
        let matched = Matcher::new(&Cancel::new()).matches(&glob, path);
        matched.expect("not cancelled")
    }

    #[track_caller]
    fn check(pattern: &str, path: &str, want: bool) {
        let got = matches(pattern.as_bytes(), Dialect::Ignore, path.as_bytes());
        assert_eq!(got, want, "{pattern:?} on {path:?}");
    }

    #[track_caller]
    fn source(pattern: &str, path: &str, want: bool) {
        let got = matches(pattern.as_bytes(), Dialect::Source, path.as_bytes());
        assert_eq!(got, want, "{pattern:?} on {path:?}");
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
        let ignore = Dialect::Ignore;
        assert!(matches(b"a\xff?", ignore, b"a\xff\xfe"));
        assert!(!matches(b"a\xff?", ignore, b"a\xfe\xfe"));
        assert!(matches(b"?", ignore, b"\xff"));
        // A byte of the pattern is not a part of a character of the name.
        assert!(!matches(b"?\xa9", ignore, "é".as_bytes()));
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
    fn ranges_of_a_class_may_overlap_in_any_order() {
        for (class, has, lacks) in [
            ("[x-za-cb-d]", "abcdxyz", "ew"),
            ("[a-zb-c]", "abz", "A"),
            ("[^c-ea-d]", "fz", "abcde"),
            ("[z-a]", "", "abz"),
            ("[^z-a]", "abz", ""),
        ] {
            for name in has.split_inclusive(|_| true) {
                check(class, name, true);
            }
            for name in lacks.split_inclusive(|_| true) {
                check(class, name, false);
            }
        }
    }

    #[test]
    fn what_a_match_ends_with_is_found_exactly() {
        let ends = |pattern: &str, name: &str| {
            let glob = Glob::new(pattern.as_bytes(), Dialect::Ignore).expect("a pattern");
            glob.can_end_with(name.as_bytes())
        };
        assert!(ends("*.log", "a.log"));
        assert!(!ends("*.log", "a.txt"));
        assert!(ends("**/a/b", "b"));
        assert!(!ends("**/a/b", "ab"));
        assert!(ends("a", "a"));
        assert!(!ends("a", "ba"));
        assert!(ends("a?", "anything"));
    }
}
