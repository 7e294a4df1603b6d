//! Names that are much like another, for messages.

/// How many letters two texts differ in: insertions, deletions and replacements.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (place, y) in row.iter_mut().skip(1).zip(&b) {
            let best = (corner + usize::from(x != *y))
                .min(left + 1)
                .min(*place + 1);
            corner = std::mem::replace(place, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Whether `a` may be `b` misspelt: one letter off for short names, two for others, or in
/// another case.
pub(crate) fn close(a: &str, b: &str) -> bool {
    let allowed = if b.chars().count() < 5 { 1 } else { 2 };
    let long = a.len().abs_diff(b.len()) > 4 * allowed;
    !long && (a.eq_ignore_ascii_case(b) || distance(a, b) <= allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, want) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("app", "pap", 2),
            ("ab", "ab", 0),
        ] {
            assert_eq!(distance(a, b), want, "{a} {b}");
            assert_eq!(distance(b, a), want, "{b} {a}");
        }
    }

    #[test]
    fn short_names_must_be_closer() {
        assert!(close("main.c", "mian.c"));
        assert!(close("README", "readme"));
        assert!(!close("a", "bc"));
        assert!(!close("src", "lib"));
    }
}
