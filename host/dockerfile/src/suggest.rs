//! "Did you mean …?"

/// Longer words are not compared: the cost grows with the square of the length.
const MAX_WORD: usize = 64;
/// Maximum number of candidates that are compared.
const MAX_CANDIDATES: usize = 1000;

/// The candidate closest to `word`, if it is close enough to be what was meant. Case is ignored.
pub fn closest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = lowered(word)?;
    let length = word.chars().count();
    let allowed = (length / 3).max(1);
    candidates
        .into_iter()
        .take(MAX_CANDIDATES)
        .filter_map(|candidate| {
            let lowered = lowered(candidate)?;
            if lowered.chars().count().abs_diff(length) > allowed {
                return None;
            }
            let distance = strsim::osa_distance(&word, &lowered);
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn lowered(word: &str) -> Option<String> {
    let lower = word.chars().flat_map(char::to_lowercase);
    let lower: Vec<char> = lower.take(MAX_WORD + 1).collect();
    (lower.len() <= MAX_WORD).then(|| lower.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: Option<&str>) {
        assert_eq!(
            closest(word, ["RUN", "FROM", "COPY", "ENTRYPOINT", "ENV"]),
            expected
        );
    }

    #[test]
    fn a_swap_or_a_missing_letter_is_close() {
        check("RNU", Some("RUN"));
        check("form", Some("FROM"));
        check("ENTRPOINT", Some("ENTRYPOINT"));
        check("copyy", Some("COPY"));
    }

    #[test]
    fn distant_words_are_not_suggested() {
        check("BANANA", None);
        check("", None);
        check(&"x".repeat(10_000), None);
    }
}
