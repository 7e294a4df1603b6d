//! Similar names, for "did you mean" in messages.

/// How many edits apart two texts are: insertions, deletions and replacements of a character.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    strsim::levenshtein(a, b)
}

/// Whether `a` may be a misspelling of `b`: one edit apart for short names, two for others, or equal
/// but for case.
pub(crate) fn is_close(a: &str, b: &str) -> bool {
    let allowed = if b.chars().count() < 5 { 1 } else { 2 };
    let too_long = a.len().abs_diff(b.len()) > 4 * allowed;
    !too_long && (a.eq_ignore_ascii_case(b) || distance(a, b) <= allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_must_be_closer() {
        assert!(is_close("main.c", "mian.c"));
        assert!(is_close("README", "readme"));
        assert!(!is_close("a", "bc"));
        assert!(!is_close("src", "lib"));
    }
}
