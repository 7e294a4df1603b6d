//! Ignore files and lists of exclude patterns.
//!
//! The law: a pattern matches a path if it matches the path or a directory above it, and the last
//! matching pattern decides. The match of each pattern is tracked separately on the way down, by
//! [`Trail`]. An ignored directory is not entered, unless a pattern with `!` can match below it and no
//! later pattern reverts that.

use std::sync::Arc;

use exec::Stopped;

use super::glob::{BadPattern, Dialect, Glob};
use super::matcher::Matcher;
use super::trail::Trail;
use crate::rootfs::path;

/// An invalid pattern in an ignore file or flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: `{text}` is not a valid pattern: {reason}")]
pub struct IgnoreError {
    /// The ignore file, or the flag.
    pub file: String,
    /// Line, one-based; for a flag, the number of the value.
    pub line: usize,
    /// The line as written.
    pub text: String,
    /// What is wrong with it.
    pub reason: BadPattern,
}

/// A rule of an ignore file, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredBy {
    /// Name of the ignore file.
    pub file: String,
    /// Line, one-based.
    pub line: usize,
    /// The pattern as written.
    pub pattern: String,
}

#[derive(Debug)]
struct Rule {
    glob: Glob,
    negated: bool,
    line: usize,
    text: String,
}

/// A parsed ignore file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignore {
    file: Arc<str>,
    rules: Arc<[Rule]>,
    has_exceptions: bool,
}

impl Ignore {
    /// Parses an ignore file; `file` is its name in messages.
    pub(crate) fn parse(file: &str, text: &[u8]) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let lines = text
            .split(|byte| *byte == b'\n')
            .enumerate()
            .filter(|(_, line)| !line.starts_with(b"#"))
            .map(|(at, line)| (at + 1, line));
        Self::collect(file, lines)
    }

    /// Parses the patterns of a flag, one per value.
    pub(crate) fn from_patterns(flag: &str, patterns: &[String]) -> Result<Self, IgnoreError> {
        let numbered = patterns
            .iter()
            .enumerate()
            .map(|(at, text)| (at + 1, text.as_bytes()));
        Self::collect(flag, numbered)
    }

    fn collect<'a>(
        file: &str,
        lines: impl Iterator<Item = (usize, &'a [u8])>,
    ) -> Result<Self, IgnoreError> {
        let mut rules = Vec::new();
        for (line, text) in lines {
            let rule = Rule::parse(line, text).map_err(|reason| IgnoreError {
                file: file.to_owned(),
                line,
                text: String::from_utf8_lossy(trim(text)).into_owned(),
                reason,
            })?;
            rules.extend(rule);
        }
        Ok(Self {
            file: file.into(),
            has_exceptions: rules.iter().any(|rule| rule.negated),
            rules: rules.into(),
        })
    }

    /// One pattern without a file.
    pub(crate) fn from_glob(glob: Glob) -> Self {
        let rule = Rule {
            glob,
            negated: false,
            line: 1,
            text: String::new(),
        };
        Self {
            file: "".into(),
            rules: [rule].into(),
            has_exceptions: false,
        }
    }

    /// The patterns, without `!`.
    pub(super) fn globs(&self) -> impl DoubleEndedIterator<Item = (usize, &Glob)> {
        self.rules.iter().map(|rule| &rule.glob).enumerate()
    }

    /// One of them.
    pub(super) fn glob(&self, rule: usize) -> Option<&Glob> {
        self.rules.get(rule).map(|rule| &rule.glob)
    }

    /// Whether a rule includes what it matches.
    pub(super) fn negates(&self, rule: usize) -> bool {
        self.rules.get(rule).is_some_and(|rule| rule.negated)
    }

    /// Whether any rule does that.
    pub(super) fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// The number of places in all patterns.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn n_places(&self) -> usize {
        self.globs().map(|(_, glob)| glob.n_places()).sum()
    }

    /// The rule that ignores `path`, found without a walk.
    pub(crate) fn explain(
        &self,
        path: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<Option<IgnoredBy>, Stopped> {
        let (dir, name) = path::split(path);
        let rule = Trail::new(self.clone()).ignores(dir, name, matcher)?;
        Ok(rule.and_then(|rule| self.describe(rule)))
    }

    /// A rule, for messages.
    pub(crate) fn describe(&self, rule: usize) -> Option<IgnoredBy> {
        self.rules.get(rule).map(|rule| IgnoredBy {
            file: self.file.to_string(),
            line: rule.line,
            pattern: rule.text.clone(),
        })
    }
}

impl Rule {
    /// Parses one line; `None` if it is empty.
    fn parse(line: usize, text: &[u8]) -> Result<Option<Self>, BadPattern> {
        let text = trim(text);
        if text.is_empty() {
            return Ok(None);
        }
        let negated = text.starts_with(b"!");
        let pattern = if negated {
            trim(text.get(1..).unwrap_or_default())
        } else {
            text
        };
        if pattern.is_empty() {
            return Err(BadPattern::Negation);
        }
        let cleaned = path::clean_relative(pattern);
        let glob = Glob::new(cleaned.as_slice(), Dialect::Ignore)?;
        // Patterns for the root or for paths outside of it match nothing, as they should.
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(Some(Self {
            glob,
            negated,
            line,
            text,
        }))
    }
}

/// Without whitespace at both ends.
fn trim(text: &[u8]) -> &[u8] {
    std::str::from_utf8(text).map_or_else(|_| text.trim_ascii(), |text| text.trim().as_bytes())
}

#[cfg(test)]
mod tests {
    use exec::Cancel;

    use super::*;

    fn explain(ignore: &Ignore, path: &str) -> Option<IgnoredBy> {
        let rule = ignore.explain(path.as_bytes(), &mut Matcher::new(&Cancel::new()));
        rule.expect("not cancelled")
    }

    /// Asserts which of `paths` the file `text` ignores.
    #[track_caller]
    fn check(text: &str, paths: &[(&str, bool)]) {
        let ignore = Ignore::parse(".dockerignore", text.as_bytes()).expect("an ignore file");
        for (path, want) in paths {
            let got = explain(&ignore, path);
            assert_eq!(got.is_some(), *want, "{path:?} under {text:?}: {got:?}");
        }
    }

    #[test]
    fn a_pattern_without_stars_is_anchored_at_the_root() {
        check(
            "node_modules",
            &[("node_modules", true), ("a/node_modules", false)],
        );
        check(
            "**/node_modules",
            &[("node_modules", true), ("a/b/node_modules/x", true)],
        );
        check("*.log", &[("a.log", true), ("d/a.log", false)]);
        check("**/*.log", &[("a.log", true), ("d/e/a.log", true)]);
    }

    #[test]
    fn the_last_match_wins() {
        check("!keep.md\n*.md", &[("keep.md", true)]);
        check("*.md\n!keep.md", &[("keep.md", false), ("other.md", true)]);
        check("a\n!a/b\na", &[("a/b", true), ("a/b/c", true)]);
        check(
            "**\n!util/docker/web",
            &[("util/docker/web/foo", false), ("util/x", true)],
        );
        check(
            "**\n!util/docker/web\nutil/docker/web/foo",
            &[
                ("util/docker/web/foo", true),
                ("util/docker/web/bar", false),
            ],
        );
    }

    #[test]
    fn a_directory_can_be_included_again() {
        check(
            "dir/*\n!dir/sub",
            &[("dir/a", true), ("dir/sub", false), ("dir/sub/x/y", false)],
        );
        check(
            "/foo/*\n!/foo/.gitkeep",
            &[("foo/a", true), ("foo/.gitkeep", false)],
        );
        check(
            "parent\n!parent/child",
            &[("parent/x", true), ("parent/child/z", false)],
        );
    }

    #[test]
    fn a_deep_star_at_the_end_does_not_match_the_directory() {
        check(
            "logs/**",
            &[("logs", false), ("logs/a", true), ("logs/a/b", true)],
        );
        check("tmp", &[("tmp", true), ("tmp/a", true)]);
        check("*", &[("a", true), ("a/b", true)]);
        check("**", &[("a", true), ("a/b", true)]);
    }

    #[test]
    fn lines_are_trimmed_and_paths_cleaned() {
        check("\u{feff}a/", &[("a", true), ("a/x", true)]);
        check("  a/b/../c \r\n", &[("a/c", true), ("a/b", false)]);
        check(
            "./x\n/y\n! y/z",
            &[("x", true), ("y/w", true), ("y/z", false)],
        );
        check("#x\n #x", &[("#x", true), ("x", false)]);
        check("\n\n", &[("a", false)]);
    }

    #[test]
    fn patterns_for_the_root_and_beyond_match_nothing() {
        check(
            ".\n/\n../x\n..",
            &[("x", false), ("a", false), ("..a", false)],
        );
    }

    #[test]
    fn the_deciding_line_is_reported() {
        let ignore = Ignore::parse("x.dockerignore", b"# c\n\na\n!b\n*.o\n").expect("a file");
        let rule = explain(&ignore, "d.o").expect("ignored");
        assert_eq!(
            (rule.file.as_str(), rule.line, rule.pattern.as_str()),
            ("x.dockerignore", 5, "*.o")
        );
        assert_eq!(explain(&ignore, "a/b").map(|rule| rule.line), Some(3));
    }

    #[test]
    fn broken_lines_are_reported() {
        let error = Ignore::parse("f", b"a\n[x\n").expect_err("an error");
        assert_eq!((error.line, error.reason), (2, BadPattern::Class));
        assert_eq!(
            Ignore::parse("f", b"!\n").expect_err("an error").reason,
            BadPattern::Negation
        );
        assert_eq!(
            error.to_string(),
            "f:2: `[x` is not a valid pattern: the character class after `[` is empty or not closed"
        );
    }

    fn is_entered(text: &str, dir: &str) -> bool {
        let ignore = Ignore::parse("f", text.as_bytes()).expect("a file");
        let (above, name) = path::split(dir.as_bytes());
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let enters = Trail::new(ignore).may_keep_below(above, name, &mut matcher);
        enters.expect("not cancelled")
    }

    #[test]
    fn an_ignored_directory_is_entered_only_if_something_below_can_be_included() {
        assert!(!is_entered("a", "a"));
        assert!(is_entered("a\n!a/b", "a"));
        assert!(!is_entered("a\n!b/c", "a"));
        assert!(is_entered("a\n!**/keep", "a"));
        assert!(!is_entered("!**/keep\na", "a"));
        assert!(!is_entered("a\n!src/*.rs", "a"));
    }

    #[test]
    fn patterns_that_can_match_below_a_directory_are_found_exactly() {
        let below = |pattern: &str, dir: &str| is_entered(&format!("**\n!{pattern}"), dir);
        assert!(below("a/b/c", "a"));
        assert!(below("a/b/c", "a/b"));
        assert!(!below("a/b/c", "a/c"));
        assert!(!below("a/b", "b"));
        assert!(below("a/*/c", "a/x"));
        assert!(!below("src/*.rs", "node_modules"));
        assert!(below("**/keep", "node_modules/x"));
        assert!(!below("a*", "b"));
        assert!(below("a**", "a"));
    }
}
