//! Splits the rest of an instruction: flags, words, pairs, JSON arrays.

use std::collections::BTreeMap;

use crate::error::Fault;
use crate::suggest::closest;

/// Whitespace that separates words.
const BLANKS: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// The first word and the rest, trimmed.
pub(crate) fn split_first(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(BLANKS)
        .map_or((text, ""), |(word, rest)| (word, rest.trim()))
}

/// Words separated by whitespace; quotes have no meaning.
pub(crate) fn split_blanks(text: &str) -> Vec<String> {
    text.split(BLANKS)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Takes the leading words that start with `--`. Quotes group and are removed, the escape character
/// quotes the next one, and a single `--` ends the flags.
pub(crate) fn take_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (word, after) = take_flag(rest, escape);
        rest = after.trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest.trim())
}

fn take_flag(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == escape {
            word.extend(chars.next().map(|(_, next)| next));
        } else if Some(c) == quote {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        } else if quote.is_none() && c.is_whitespace() {
            return (word, text.get(at..).unwrap_or_default());
        } else {
            word.push(c);
        }
    }
    (word, "")
}

/// What value a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// `--name=value`, once.
    Text,
    /// `--name`, `--name=true` or `--name=false`, once.
    Bool,
    /// `--name=value`, any number of times.
    List,
}

/// The flags of one instruction, by name.
#[derive(Debug, Default)]
pub(crate) struct Flags(BTreeMap<&'static str, Vec<String>>);

impl Flags {
    /// Parses `given`; `known` are the flags of the instruction.
    pub(crate) fn read(
        given: &[String],
        known: &[(&'static str, FlagKind)],
    ) -> Result<Self, Fault> {
        let mut flags = Self::default();
        for flag in given {
            let bare = flag.strip_prefix("--").unwrap_or(flag);
            let (name, value) = bare
                .split_once('=')
                .map_or((bare, None), |(n, v)| (n, Some(v)));
            let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let close = closest(name, known.iter().map(|(name, _)| *name));
                let close = close.map(|name| format!("--{name}"));
                return Err(
                    Fault::new(format!("unknown flag: --{name}")).did_you_mean(close.as_deref())
                );
            };
            let value = flag_value(name, *kind, value)?;
            let values = flags.0.entry(name).or_default();
            if *kind != FlagKind::List && !values.is_empty() {
                return Err(Fault::new(format!("duplicate flag specified: --{name}")));
            }
            values.push(value);
        }
        Ok(flags)
    }

    /// The value of a text flag.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.0.get_mut(name)?.pop()
    }

    /// The value of a boolean flag.
    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    /// The values of a list flag.
    pub(crate) fn list(&mut self, name: &str) -> Vec<String> {
        self.0.remove(name).unwrap_or_default()
    }
}

fn flag_value(name: &str, kind: FlagKind, value: Option<&str>) -> Result<String, Fault> {
    match (kind, value) {
        (FlagKind::Bool, None) => Ok("true".to_owned()),
        (FlagKind::Bool, Some(value)) => match value.to_ascii_lowercase().as_str() {
            value @ ("true" | "false") => Ok(value.to_owned()),
            _ => Err(Fault::new(format!(
                "expecting boolean value for flag --{name}, not: {value}"
            ))),
        },
        (FlagKind::Text | FlagKind::List, Some(value)) => Ok(value.to_owned()),
        (FlagKind::Text | FlagKind::List, None) => {
            Err(Fault::new(format!("missing a value on flag: --{name}")))
        }
    }
}

/// Words separated by whitespace; quotes and escapes group and stay in the word.
pub(crate) fn split_quoted(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        if c == escape && quote != Some('\'') {
            // An escape at the very end is dropped.
            if let Some(next) = chars.next() {
                word.extend([c, next]);
            }
            continue;
        }
        if Some(c) == quote {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Parses `k=v …`, or the legacy form `k rest-of-line`. Also returns whether it is the legacy form.
pub(crate) fn pairs(
    name: &str,
    text: &str,
    escape: char,
) -> Result<(Vec<(String, String)>, bool), Fault> {
    let words = split_quoted(text, escape);
    let Some(first) = words.first() else {
        return Err(Fault::new(format!("{name} requires at least one argument")));
    };
    if !first.contains('=') {
        let (key, value) = split_first(text);
        if value.is_empty() {
            return Err(Fault::new(format!("{name} must have two arguments")));
        }
        return Ok((vec![(key.to_owned(), value.to_owned())], true));
    }
    let mut pairs = Vec::with_capacity(words.len());
    for word in &words {
        let Some((key, value)) = word.split_once('=') else {
            let text = format!("can't find = in \"{word}\". Must be of the form: name=value");
            return Err(Fault::new(text));
        };
        if key.is_empty() {
            return Err(Fault::new(format!("{name} names can not be blank")));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok((pairs, false))
}

/// Parses a JSON array of strings; `None` if the text is not a JSON array.
pub(crate) fn json_list(text: &str) -> Result<Option<Vec<String>>, Fault> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let strings = values.iter().map(|value| value.as_str().map(str::to_owned));
    strings
        .collect::<Option<Vec<String>>>()
        .map(Some)
        .ok_or_else(|| Fault::new("only string type is allowed in JSON format arrays"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_flags(text: &str, flags: &[&str], rest: &str) {
        let (got, left) = take_flags(text, '\\');
        assert_eq!(
            (got.as_slice(), left),
            (flags.map_to_owned().as_slice(), rest)
        );
    }

    trait MapToOwned {
        fn map_to_owned(&self) -> Vec<String>;
    }

    impl MapToOwned for &[&str] {
        fn map_to_owned(&self) -> Vec<String> {
            self.iter().map(|word| (*word).to_owned()).collect()
        }
    }

    #[test]
    fn flags_come_before_everything_else() {
        check_flags("true --mount=type=ssh", &[], "true --mount=type=ssh");
        check_flags("--link  --chown=a b c", &["--link", "--chown=a"], "b c");
        check_flags("-- --x", &[], "--x");
        check_flags("--a", &["--a"], "");
        check_flags("- b", &[], "- b");
    }

    #[test]
    fn quotes_and_escapes_in_flags_are_removed() {
        check_flags(
            r#"--mount='type=cache,"target=/a,b"' x"#,
            &[r#"--mount=type=cache,"target=/a,b""#],
            "x",
        );
        check_flags(r"--a=b\ c d", &["--a=b c"], "d");
        check_flags(r#"--a="b c"d e"#, &["--a=b cd"], "e");
        check_flags("--chown=ünï a b", &["--chown=ünï"], "a b");
        check_flags("--a=\\", &["--a="], "");
    }

    const KNOWN: &[(&str, FlagKind)] = &[
        ("link", FlagKind::Bool),
        ("chown", FlagKind::Text),
        ("exclude", FlagKind::List),
    ];

    #[track_caller]
    fn refused(flags: &[&str]) -> Fault {
        Flags::read(&flags.map_to_owned(), KNOWN).unwrap_err()
    }

    #[test]
    fn booleans_are_true_or_false_and_nothing_else() {
        for (flag, expected) in [
            ("--link", true),
            ("--link=TRUE", true),
            ("--link=False", false),
        ] {
            let mut flags = Flags::read(&[flag.to_owned()], KNOWN).unwrap();
            assert_eq!(flags.boolean("link"), Some(expected));
        }
        for flag in ["--link=1", "--link=", "--link=yes"] {
            assert!(
                refused(&[flag]).message.contains("expecting boolean"),
                "{flag}"
            );
        }
    }

    #[test]
    fn unknown_repeated_and_empty_flags_are_errors() {
        assert_eq!(
            refused(&["--chwon=a"]).hint.as_deref(),
            Some("did you mean --chown?")
        );
        assert!(
            refused(&["--chown=a", "--chown=a"])
                .message
                .contains("duplicate flag")
        );
        assert!(refused(&["--chown"]).message.contains("missing a value"));
        let mut flags = Flags::read(
            &["--exclude=a", "--exclude=b"].as_slice().map_to_owned(),
            KNOWN,
        )
        .unwrap();
        assert_eq!(flags.list("exclude"), ["a", "b"]);
    }

    #[test]
    fn legacy_pairs_take_the_whole_line() {
        let legacy = pairs("ENV", "A 1 B=2", '\\').unwrap();
        assert_eq!(legacy, (vec![("A".to_owned(), "1 B=2".to_owned())], true));
        assert!(pairs("ENV", "A", '\\').is_err());
        assert!(pairs("ENV", "A=1 b", '\\').is_err());
        assert!(pairs("ENV", "=1", '\\').is_err());
        assert!(pairs("ENV", "", '\\').is_err());
    }

    #[test]
    fn quotes_and_escapes_group_words_and_are_kept() {
        assert_eq!(
            split_quoted(r#"a="b c" d=e\ f g='h \' i"#, '\\'),
            [r#"a="b c""#, r"d=e\ f", r"g='h \'", "i"]
        );
        assert_eq!(split_quoted("\"\" a\\", '\\'), ["\"\"", "a"]);
        assert_eq!(split_quoted("\"open a", '\\'), ["\"open a"]);
    }

    #[test]
    fn invalid_json_is_the_other_form() {
        for text in [
            "['echo', 'hi']",
            r#"["a",]"#,
            r#"["a"] # x"#,
            "[ -f /x ] && y",
            "a",
            "",
        ] {
            assert_eq!(json_list(text), Ok(None), "{text}");
        }
        assert_eq!(
            json_list(r#"["a\\b", "/d/"]"#),
            Ok(Some(vec![r"a\b".into(), "/d/".into()]))
        );
        assert_eq!(json_list("[]"), Ok(Some(Vec::new())));
        assert!(json_list(r#"["a", 1]"#).is_err());
    }
}
