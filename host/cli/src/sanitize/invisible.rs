//! Characters that a terminal does not show, but that change or hide what it shows.
//!
//! **Rule:** whatever prints as nothing is made visible, because a reader takes what he sees for what is
//! there. The order of text is the worst of it: U+202E lets `exe.txt` read as another name. The sets are
//! those of Unicode 16: `Bidi_Control`, and what is `Default_Ignorable_Code_Point` or a line separator.

/// Whether `character` is shown escaped when it comes after `before`.
pub(super) fn is_escaped(character: char, before: Option<char>) -> bool {
    match character {
        // ASCII, and most of what is printed.
        ' '..='~' => false,
        // Joiners are part of the spelling of some languages and of emoji. After anything else they
        // only make two different names look the same.
        '\u{200c}' | '\u{200d}' => {
            before.is_none_or(|before| before.is_ascii() || is_invisible(before))
        }
        _ => is_invisible(character),
    }
}

fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            // U+FE0E and U+FE0F choose between text and emoji, and are not here.
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0d}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bidirectional_control_is_escaped_wherever_it_stands() {
        let controls = ['\u{61c}', '\u{200e}', '\u{200f}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}');
        for control in controls {
            for before in [None, Some('a'), Some('א'), Some(control)] {
                assert!(is_escaped(control, before), "{control:?} after {before:?}");
            }
        }
    }

    #[test]
    fn what_is_seen_is_not_escaped() {
        let seen = "aé ñ א عربي देव 한국어 日本 ½ → ▶ ✔\u{fe0f} 👍🏽 \u{a0}\u{3000}e\u{301}";
        let mut before = None;
        for character in seen.chars() {
            assert!(!is_escaped(character, before), "{character:?}");
            before = Some(character);
        }
    }

    #[test]
    fn joiners_are_kept_only_where_they_join() {
        for joiner in ['\u{200c}', '\u{200d}'] {
            assert!(!is_escaped(joiner, Some('👩')) && !is_escaped(joiner, Some('ی')));
            assert!(is_escaped(joiner, Some('a')) && is_escaped(joiner, None));
            assert!(is_escaped(joiner, Some(joiner)));
        }
    }
}
