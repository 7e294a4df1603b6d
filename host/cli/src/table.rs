//! Tables as `ls`-like commands print them.

use std::io::{self, Write};

use jiff::Timestamp;

/// Which side of its column a cell leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Writes a table with a heading. Columns are separated by three blanks, and no line ends in one.
pub(crate) fn write<const N: usize>(
    out: &mut dyn Write,
    columns: [(&str, Side); N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let heading = columns.map(|(name, _)| name.to_owned());
    let lines = || std::iter::once(&heading).chain(rows);
    let mut widths = [0; N];
    for line in lines() {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in lines() {
        let cells =
            line.iter()
                .zip(widths)
                .zip(columns)
                .map(|((cell, width), (_, side))| match side {
                    Side::Left => format!("{cell:<width$}"),
                    Side::Right => format!("{cell:>width$}"),
                });
        let text = cells.collect::<Vec<_>>().join("   ");
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// How long ago a moment was, roughly. Both in seconds since 1970.
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

/// A moment in seconds since 1970, as RFC 3339 has it; `None` for what no calendar has.
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
            ("NAME", Side::Left),
            ("SIZE", Side::Right),
            ("NOTE", Side::Left),
        ];
        write(&mut out, columns, &rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME      SIZE   NOTE\napp:1   1.0MiB   x\na         900B\n"
        );
    }

    #[test]
    fn moments_are_told_roughly() {
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
