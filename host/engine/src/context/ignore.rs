//! Ignore files and lists of exclude patterns.
//!
//! The law: a pattern matches a path if it matches the path or a directory above it, and the last
//! matching pattern decides. The match of each pattern is tracked separately on the way down. An
//! ignored directory is not entered, unless a pattern with `!` can match below it and no later pattern
//! reverts that.

use std::sync::Arc;

use super::glob::{BadPattern, Dialect, Glob};
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
}

/// Which rules match a directory or a directory above it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Above {
    matched: Vec<bool>,
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
            rules: rules.into(),
        })
    }

    /// The state of the root.
    pub(crate) fn root(&self) -> Above {
        Above {
            matched: vec![false; self.rules.len()],
        }
    }

    /// The state of the directory `path`; `above` is that of its parent.
    pub(crate) fn enter(&self, above: &Above, path: &[u8]) -> Above {
        let matches = |(rule, above): (&Rule, &bool)| *above || rule.glob.matches(path);
        Above {
            matched: self.rules.iter().zip(&above.matched).map(matches).collect(),
        }
    }

    /// The rule that ignores `path`, if one does; `above` is the state of its parent.
    pub(crate) fn ignores(&self, above: &Above, path: &[u8]) -> Option<usize> {
        let (at, rule) = self
            .rules
            .iter()
            .enumerate()
            .zip(&above.matched)
            .rev()
            .find(|((_, rule), above)| **above || rule.glob.matches(path))?
            .0;
        (!rule.negated).then_some(at)
    }

    /// Whether a path below the ignored directory `path` can be included again; `here` is the state of
    /// the directory.
    pub(crate) fn may_keep_below(&self, here: &Above, path: &[u8]) -> bool {
        for (rule, matched) in self.rules.iter().zip(&here.matched).rev() {
            match (rule.negated, matched) {
                // It ignores everything below, whatever earlier rules say.
                (false, true) => return false,
                (true, true) => return true,
                (true, false) if rule.glob.can_match_below(path) => return true,
                (_, false) => {}
            }
        }
        false
    }

    /// The rule that ignores `path`, found without a walk.
    pub(crate) fn explain(&self, path: &[u8]) -> Option<IgnoredBy> {
        let mut above = self.root();
        for parent in path::ancestors(path) {
            above = self.enter(&above, parent);
        }
        self.describe(self.ignores(&above, path)?)
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
    use super::*;

    /// Asserts which of `paths` the file `text` ignores.
    #[track_caller]
    fn check(text: &str, paths: &[(&str, bool)]) {
        let ignore = Ignore::parse(".dockerignore", text.as_bytes()).expect("an ignore file");
        for (path, want) in paths {
            let got = ignore.explain(path.as_bytes());
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
        let rule = ignore.explain(b"d.o").expect("ignored");
        assert_eq!(
            (rule.file.as_str(), rule.line, rule.pattern.as_str()),
            ("x.dockerignore", 5, "*.o")
        );
        assert_eq!(ignore.explain(b"a/b").map(|rule| rule.line), Some(3));
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

    #[test]
    fn an_ignored_directory_is_entered_only_if_something_below_can_be_included() {
        let enter = |text: &str, dir: &str| {
            let ignore = Ignore::parse("f", text.as_bytes()).expect("a file");
            let here = ignore.enter(&ignore.root(), dir.as_bytes());
            ignore.may_keep_below(&here, dir.as_bytes())
        };
        assert!(!enter("a", "a"));
        assert!(enter("a\n!a/b", "a"));
        assert!(!enter("a\n!b/c", "a"));
        assert!(enter("a\n!**/keep", "a"));
        assert!(!enter("!**/keep\na", "a"));
        assert!(!enter("a\n!src/*.rs", "a"));
    }
}
