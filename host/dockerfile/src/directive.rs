//! Parser directives: `# key = value` at the very top of the file.
//!
//! The first line that is not a known directive ends them. As in Docker, two readers with different
//! rules apply: the one for `syntax` and `check` skips a first line `#!…` and requires `#` in
//! column 0; the one for `escape` does neither.

use crate::checks::Checks;
use crate::error::Fault;
use crate::lines::{LineFault, Lines, without_end};

/// The directives of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directives {
    pub(crate) escape: char,
    /// The front end image, and the line that names it.
    pub(crate) syntax: Option<(String, usize)>,
    pub(crate) checks: Checks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Syntax,
    Escape,
    Check,
}

pub(crate) fn read(text: &[u8]) -> Result<Directives, LineFault> {
    let mut found = Directives {
        escape: '\\',
        syntax: None,
        checks: Checks::default(),
    };
    for (key, value, line) in zone(text, false)? {
        if key == Key::Escape {
            found.escape = match value.as_str() {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    return Err(at(
                        line,
                        format!("invalid escape token `{value}`: use \\ or `"),
                    ));
                }
            };
        }
    }
    for (key, value, line) in zone(text, true)? {
        let first_word = value.split_whitespace().next().unwrap_or_default();
        match key {
            Key::Syntax => found.syntax = Some((first_word.to_owned(), line)),
            Key::Check => {
                found.checks = Checks::parse(first_word).map_err(|fault| (line, line, fault))?;
            }
            Key::Escape => {}
        }
    }
    found.syntax = found.syntax.or_else(|| foreign_syntax(text));
    Ok(found)
}

/// The directives, as one of the two readers sees them.
fn zone(text: &[u8], shebang: bool) -> Result<Vec<(Key, String, usize)>, LineFault> {
    let mut lines = Lines::new(text);
    let mut found: Vec<(Key, String, usize)> = Vec::new();
    while let Some(line) = lines.next()? {
        if shebang && lines.number == 1 && line.starts_with(b"#!") {
            continue;
        }
        let line = without_end(line);
        let line = if shebang {
            line
        } else {
            line.trim_ascii_start()
        };
        let Some((key, value)) = std::str::from_utf8(line).ok().and_then(directive) else {
            break;
        };
        if found.iter().any(|(other, ..)| *other == key) {
            let name = format!("{key:?}").to_lowercase();
            return Err(at(
                lines.number,
                format!("only one {name} parser directive can be used"),
            ));
        }
        found.push((key, value.to_owned(), lines.number));
    }
    Ok(found)
}

fn directive(line: &str) -> Option<(Key, &str)> {
    let (name, value) = line.strip_prefix('#')?.split_once('=')?;
    let key = match name.trim().to_ascii_lowercase().as_str() {
        "syntax" => Key::Syntax,
        "escape" => Key::Escape,
        "check" => Key::Check,
        _ => return None,
    };
    let value = value.trim();
    (!value.is_empty()).then_some((key, value))
}

/// The front end that a file in another language names: `// syntax=…`, or a JSON file with a
/// member `syntax`.
fn foreign_syntax(text: &[u8]) -> Option<(String, usize)> {
    let text = std::str::from_utf8(text)
        .ok()?
        .trim_start_matches('\u{feff}');
    let mut lines = text.lines().enumerate();
    let (index, line) = lines.find(|(index, line)| *index > 0 || !line.starts_with("#!"))?;
    if let Some((name, value)) = line
        .strip_prefix("//")
        .and_then(|rest| rest.split_once('='))
    {
        let named = name.trim().eq_ignore_ascii_case("syntax");
        let word = value.split_whitespace().next()?;
        return named.then(|| (word.to_owned(), index + 1));
    }
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let file: serde_json::Value = serde_json::from_str(text).ok()?;
    Some((file.get("syntax")?.as_str()?.to_owned(), 1))
}

fn at(line: usize, message: String) -> LineFault {
    (line, line, Fault::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, escape: char, syntax: Option<&str>) {
        let got = read(text.as_bytes()).unwrap();
        assert_eq!(
            (
                got.escape,
                got.syntax.as_ref().map(|(name, _)| name.as_str())
            ),
            (escape, syntax)
        );
    }

    #[test]
    fn keys_are_case_insensitive_and_whitespace_is_ignored() {
        check(
            "# Syntax = docker/dockerfile:1 \r\n#ESCAPE=`\nFROM x",
            '`',
            Some("docker/dockerfile:1"),
        );
        check("\u{feff}# syntax=a b\n", '\\', Some("a"));
    }

    #[test]
    fn a_comment_a_blank_line_or_an_unknown_key_ends_the_directives() {
        check("# my image\n# escape=`", '\\', None);
        check("\n# escape=`", '\\', None);
        check("# other=1\n# escape=`", '\\', None);
        check("FROM x\n# syntax=y", '\\', None);
    }

    #[test]
    fn a_shebang_is_skipped_for_syntax_but_not_for_escape() {
        check(
            "#!/usr/bin/env builder\n# escape=`\n# syntax=x",
            '\\',
            Some("x"),
        );
    }

    #[test]
    fn indentation_hides_syntax_but_not_escape() {
        check("  # syntax=docker/dockerfile:1\nFROM x", '\\', None);
        check("  # escape=`\nFROM x", '`', None);
    }

    #[test]
    fn files_in_other_languages_are_recognised() {
        check("// syntax=my/front:1\n", '\\', Some("my/front:1"));
        check("{\"syntax\": \"my/json\"}", '\\', Some("my/json"));
        check("{\"syntax\": 1}", '\\', None);
    }

    #[test]
    fn repeated_keys_and_bad_values_are_errors() {
        for (text, line) in [
            ("# escape=`\n# escape=`", 2),
            ("# syntax=a\n# syntax=b", 2),
            ("# escape=x", 1),
            ("# check=skip=StageNameCasing; error=true", 1),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap_err().0, line, "{text}");
        }
    }
}
