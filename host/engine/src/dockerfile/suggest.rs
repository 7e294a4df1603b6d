//! "Did you mean …?"

/// Longer words are not compared: the table grows with the square.
const MAX_WORD: usize = 64;
/// More candidates are not looked at.
const MAX_CANDIDATES: usize = 1000;

/// The candidate closest to `word`, if one is close enough to be what was meant. Case does not
/// count.
pub(crate) fn closest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = lowered(word)?;
    let allowed = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .take(MAX_CANDIDATES)
        .filter_map(|candidate| {
            let candidate_chars = lowered(candidate)?;
            if candidate_chars.len().abs_diff(word.len()) > allowed {
                return None;
            }
            let distance = distance(&word, &candidate_chars);
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn lowered(word: &str) -> Option<Vec<char>> {
    let chars: Vec<char> = word
        .chars()
        .flat_map(char::to_lowercase)
        .take(MAX_WORD + 1)
        .collect();
    (chars.len() <= MAX_WORD).then_some(chars)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `a` into `b`.
#[expect(
    clippy::indexing_slicing,
    reason = "rows have b.len() + 1 places, j runs over b"
)]
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(x != y);
            let mut best = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(a.len())
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
    fn what_is_too_far_away_is_not_suggested() {
        check("BANANA", None);
        check("", None);
        check(&"x".repeat(10_000), None);
    }
}
