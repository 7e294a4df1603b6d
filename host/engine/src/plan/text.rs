//! Texts in the formats of Docker: quoted lists, durations, paths.

use std::fmt::Write as _;

use dockerfile::Fault;

/// A list as in the history of CMD and ENTRYPOINT: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(" "))
}

/// A list as in the history of EXPOSE, VOLUME and SHELL: `[a b]`.
pub(super) fn plain_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// A text in double quotes, with unprintable characters as escapes of the Go language.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            // Writing to a string cannot fail.
            c if c < ' ' || c == '\u{7f}' => write!(out, "\\x{:02x}", u32::from(c)).unwrap_or(()),
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c)).unwrap_or(()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

const SECOND: i64 = 1_000_000_000;

/// Units of durations and their nanoseconds; longer names first where one begins another.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];

/// Parses a duration such as `1m30s` or `1.5h` into nanoseconds.
pub(super) fn parse_duration(text: &str) -> Result<i64, Fault> {
    let wrong = || {
        Fault::new(format!(
            "invalid duration \"{text}\": write a number with a unit, such as 30s or 1m30s"
        ))
    };
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned == "0" {
        return Ok(0);
    }
    let mut rest = unsigned;
    let mut total: i64 = 0;
    loop {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let (unit, nanoseconds) = UNITS
            .iter()
            .filter(|(unit, _)| tail.starts_with(unit))
            .max_by_key(|(unit, _)| unit.len())
            .ok_or_else(wrong)?;
        let part = scaled(number, *nanoseconds).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail.strip_prefix(unit).unwrap_or_default();
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// A decimal number times a unit, exact up to the nanosecond.
fn scaled(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut total = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        place /= 10;
        total = total.checked_add(place.checked_mul(i64::from(digit.to_digit(10)?))?)?;
    }
    Some(total)
}

/// A duration as Docker's history shows it: `1m30s`, `1.5s`, `500ms`, `0s`.
pub(super) fn duration(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if nanoseconds < SECOND {
        let (unit, name) = match nanoseconds {
            ..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{name}", decimal(nanoseconds, unit));
    }
    let (hours, minutes) = (
        nanoseconds / (3600 * SECOND),
        nanoseconds / (60 * SECOND) % 60,
    );
    let seconds = decimal(nanoseconds % (60 * SECOND), SECOND);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(value: i64, unit: i64) -> String {
    let digits = unit.ilog10() as usize;
    let fraction = format!("{:0digits$}", value % unit);
    let fraction = fraction.trim_end_matches('0');
    match fraction {
        "" => (value / unit).to_string(),
        fraction => format!("{}.{fraction}", value / unit),
    }
}

/// An absolute path without `.`, `..`, doubled and trailing slashes. It never leaves the root.
pub(super) fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_quoted_as_in_docker_history() {
        let items = ["a b", "\"x\"", "t\t\u{1}\u{85}ü"].map(String::from);
        assert_eq!(quoted_list(&items), r#"["a b" "\"x\"" "t\t\x01\u0085ü"]"#);
        assert_eq!(quoted_list(&[]), "[]");
    }

    #[track_caller]
    fn check_duration(text: &str, nanoseconds: i64, shown: &str) {
        assert_eq!(parse_duration(text).unwrap(), nanoseconds);
        assert_eq!(duration(nanoseconds), shown);
    }

    #[test]
    fn durations_are_read_and_shown() {
        check_duration("0", 0, "0s");
        check_duration("5s", 5 * SECOND, "5s");
        check_duration("1m30s", 90 * SECOND, "1m30s");
        check_duration("1.5h", 5400 * SECOND, "1h30m0s");
        check_duration("500ms", SECOND / 2, "500ms");
        check_duration("1.5s", 3 * SECOND / 2, "1.5s");
        check_duration("1500us", 1_500_000, "1.5ms");
        check_duration("+.5m", 30 * SECOND, "30s");
        check_duration("7ns", 7, "7ns");
    }

    #[test]
    fn invalid_durations_are_refused() {
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "5x",
            ".s",
            "1s2",
            "99999999999h",
            "1..5s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("", "/"),
            ("/a/./b/../c//", "/a/c"),
            ("/../..", "/"),
            ("a", "/a"),
        ] {
            assert_eq!(clean_path(path), expected);
        }
    }
}
