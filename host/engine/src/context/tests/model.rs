//! A slow matcher that follows the text of the rules.

use exec::Cancel;
use proptest::prelude::*;

use crate::context::glob::{Dialect, Glob};
use crate::context::ignore::Ignore;
use crate::context::matcher::{COST, Matcher};
use crate::context::trail::Trail;
use crate::rootfs::path;

/// Tries everything.
fn matches(pattern: &[char], path: &[char], start: bool) -> bool {
    match (pattern, path) {
        ([], _) => path.is_empty(),
        (['*', '*', rest @ ..], _) => {
            let glued = rest.first() != Some(&'/');
            let rest = if glued { rest } else { &rest[1..] };
            let plain = !rest.iter().any(|c| ['*', '?', '[', '\\'].contains(c));
            if rest.is_empty() || start && glued && plain {
                return path.ends_with(rest);
            }
            let behind =
                |(at, c): (usize, &char)| *c == '/' && matches(rest, &path[at + 1..], false);
            matches(rest, path, false) || path.iter().enumerate().any(behind)
        }
        (['*', rest @ ..], _) => {
            let within = path.iter().take_while(|c| **c != '/').count();
            (0..=within).any(|n| matches(rest, &path[n..], false))
        }
        (['?', rest @ ..], [c, path @ ..]) => *c != '/' && matches(rest, path, false),
        (['\\', wanted, rest @ ..], [c, path @ ..]) => wanted == c && matches(rest, path, false),
        (['[', '^', low, '-', high, ']', rest @ ..], [c, path @ ..]) => {
            *c != '/' && !(low..=high).contains(&c) && matches(rest, path, false)
        }
        (['[', low, '-', high, ']', rest @ ..], [c, path @ ..]) => {
            *c != '/' && (low..=high).contains(&c) && matches(rest, path, false)
        }
        ([wanted, rest @ ..], [c, path @ ..]) => wanted == c && matches(rest, path, false),
        (_, []) => false,
    }
}

fn slow(pattern: &str, path: &str) -> bool {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    matches(&chars(pattern), &chars(path), true)
}

/// The list as the rules have it: the last pattern that matches the path or a parent decides.
fn slowly_ignored(patterns: &[String], path: &str) -> bool {
    let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
    let paths: Vec<&str> = parents.chain([path]).collect();
    patterns
        .iter()
        .fold(false, |ignored, pattern| match pattern.strip_prefix('!') {
            Some(kept) => ignored && !paths.iter().any(|path| slow(kept, path)),
            None => ignored || paths.iter().any(|path| slow(pattern, path)),
        })
}

fn element() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[abé]",
        2 => Just("*".to_owned()),
        1 => Just("?".to_owned()),
        1 => Just("[a-b]".to_owned()),
        1 => Just("[^a-b]".to_owned()),
        1 => Just("\\*".to_owned()),
        1 => Just("**".to_owned()),
    ];
    prop_oneof![
        3 => prop::collection::vec(piece, 1..4).prop_map(|pieces| pieces.concat()),
        1 => Just("**".to_owned()),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    prop::collection::vec(element(), 1..4).prop_map(|elements| elements.join("/"))
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abé*]{1,3}", 1..5).prop_map(|elements| elements.join("/"))
}

fn patterns() -> impl Strategy<Value = Vec<String>> {
    let negated = (any::<bool>(), pattern());
    let line = negated.prop_map(|(not, pattern)| if not { format!("!{pattern}") } else { pattern });
    prop::collection::vec(line, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_pattern_matches_what_the_rules_say(pattern in pattern(), path in path()) {
        // Three stars in a row say nothing new, and the rules do not say what.
        prop_assume!(!pattern.contains("***"));
        let glob = Glob::new(pattern.as_bytes(), Dialect::Ignore).expect("a pattern");
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let matched = matcher.matches(&glob, path.as_bytes()).expect("not cancelled");
        prop_assert_eq!(matched, slow(&pattern, &path));
        let limit = COST * glob.n_places() as u64 * (path.len() as u64 + 1);
        prop_assert!(matcher.work() <= limit, "{} > {}", matcher.work(), limit);
        let mut trail = Trail::new(Ignore::from_glob(glob));
        for (at, _) in path.match_indices('/') {
            if slow(&pattern, &path) {
                let (dir, name) = path::split(&path.as_bytes()[..at]);
                let below = trail.may_match_below(dir, name, &mut matcher);
                prop_assert_eq!(below, Ok(true), "below {}", &path[..at]);
            }
        }
    }

    #[test]
    fn a_list_ignores_what_the_rules_say(patterns in patterns(), path in path()) {
        prop_assume!(!patterns.iter().any(|pattern| pattern.contains("***")));
        let ignore = Ignore::from_patterns("list", &patterns).expect("patterns");
        let ignored = slowly_ignored(&patterns, &path);
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let rule = ignore.explain(path.as_bytes(), &mut matcher).expect("not cancelled");
        prop_assert_eq!(rule.is_some(), ignored);
        // A directory that is not entered has nothing below it that is kept.
        let mut trail = Trail::new(ignore);
        for (at, _) in path.match_indices('/') {
            let (dir, name) = path::split(&path.as_bytes()[..at]);
            let rule = trail.ignores(dir, name, &mut matcher).expect("not cancelled");
            let below = trail.may_keep_below(dir, name, &mut matcher).expect("not cancelled");
            if rule.is_some() && !below {
                prop_assert!(ignored, "{} was not entered", &path[..at]);
            }
        }
    }
}
