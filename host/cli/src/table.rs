//! Tables and times for commands that list things.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::sanitize::sanitize;

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Writes a table with a header. Cells may hold names that others chose, and are sanitized. Columns are separated by three spaces; lines have no trailing
/// spaces.
pub(crate) fn write<const N: usize>(
    out: &mut dyn Write,
    columns: [(&str, Align); N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let header = columns.map(|(name, _)| name.to_owned());
    let shown = |row: &[String; N]| row.each_ref().map(|cell| sanitize(cell.as_bytes()));
    let rows: Vec<_> = rows.iter().map(shown).collect();
    let lines = || std::iter::once(&header).chain(&rows);
    let mut widths = [0; N];
    for line in lines() {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in lines() {
        let cells = line
            .iter()
            .zip(widths)
            .zip(columns)
            .map(|((cell, width), (_, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
        let text = cells.collect::<Vec<_>>().join("   ");
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// How long ago `then` was, roughly. Both are in seconds since 1970.
pub(crate) fn ago(then: i64, now: i64) -> String {
    const STEPS: [(i64, &str); 6] = [
        (365 * 86400, "year"),
        (30 * 86400, "month"),
        (7 * 86400, "week"),
        (86400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    let seconds = now.saturating_sub(then);
    let step = STEPS.iter().find(|(size, _)| seconds >= *size);
    step.map_or_else(
        || "just now".into(),
        |(size, name)| {
            let count = seconds / size;
            format!("{count} {name}{} ago", if count == 1 { "" } else { "s" })
        },
    )
}

/// Formats a time in seconds since 1970 as RFC 3339; `None` if it is out of range.
pub(crate) fn rfc3339(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds)
        .map(|time| time.to_string())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = [["app:1", "1.0MiB", "x"], ["a", "900B", ""]].map(|row| row.map(str::to_owned));
        let columns = [
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("NOTE", Align::Left),
        ];
        write(&mut out, columns, &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME      SIZE   NOTE\napp:1   1.0MiB   x\na         900B\n"
        );
    }

    #[test]
    fn cells_are_sanitized_before_they_are_measured() {
        let mut out = Vec::new();
        let rows = [["a\u{1b}[1m\u{202e}b", "x"]].map(|row| row.map(str::to_owned));
        write(&mut out, [("A", Align::Left), ("B", Align::Left)], &rows).unwrap();
        let want = "A            B\na\\u{202e}b   x\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn times_are_rounded_down_to_one_unit() {
        let cases = [
            (0, "just now"),
            (-5, "just now"),
            (60, "1 minute ago"),
            (7200, "2 hours ago"),
            (13 * 86400, "1 week ago"),
            (800 * 86400, "2 years ago"),
        ];
        for (seconds, text) in cases {
            assert_eq!(ago(1_000_000_000 - seconds, 1_000_000_000), text);
        }
    }
}
