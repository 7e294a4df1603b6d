//! Sizes and durations as users write and read them.
//!
//! Sizes use powers of 1024 in both directions: `512m` on the command line is printed as
//! `512.0MiB`.

use std::time::Duration;

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Formats a size in bytes for people, such as `12.3MiB`.
pub(crate) fn show(bytes: u64) -> String {
    let mut unit = 0;
    let mut scaled = bytes;
    // Choose the first unit in which the value is below 1024.
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        return format!("{bytes}{name}");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let value = bytes as f64 / 1024_f64.powi(i32::try_from(unit).unwrap_or_default());
    format!("{value:.1}{name}")
}

/// Parses a size: a decimal number and an optional unit `b`, `k`, `m`, `g`, `t` or `p` (also `kb` or
/// `kib`), in powers of 1024. Returns bytes.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let power = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => {
            return Err(format!(
                "`{text}` is not a valid size; examples: 512m, 1.5g"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a valid size; examples: 512m, 1.5g"))?;
    let bytes = value * 1024_f64.powi(power);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "non-negative and within range, as compared just before"
    )]
    if bytes < 9e18 {
        Ok(bytes as u64)
    } else {
        Err(format!("`{text}` is too large"))
    }
}

/// Parses a duration such as `1h30m`, `20s`, `300ms` or `2d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a valid duration; examples: 24h, 1h30m, 7d");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_with_their_unit() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (829_900_000, "791.5MiB"),
            (u64::MAX, "16384.0PiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(show(bytes), text);
        }
    }

    #[test]
    fn sizes_are_parsed_in_powers_of_1024() {
        let cases = [
            ("0", 0),
            ("512m", 512 << 20),
            ("1.5G", 3 << 29),
            ("2kb", 2048),
            ("1 MiB", 1 << 20),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1x", "-1", "1..2", "9999999p"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_sums_of_their_parts() {
        let cases = [
            ("20s", 20.0),
            ("1h30m", 5400.0),
            ("300ms", 0.3),
            ("7d", 604_800.0),
            ("0.5h", 1800.0),
        ];
        for (text, seconds) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
        for text in ["", "5", "h", "1w", "1h-5m", "1e99d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
