//! Runs patterns over paths.
//!
//! The law: a pattern is run as a set of places, without backtracking, so a text costs at most
//! [`COST`] units of work for each of its characters and each place of the pattern. The [`Cancel`] is
//! looked at before the first unit, and again after at most [`INTERVAL`] more, also within one name.

use exec::{Cancel, Stopped};

use super::glob::{Glob, SLASH, Token, units};
use crate::rootfs::path;

/// Units of work between two looks at the [`Cancel`]. One takes some nanoseconds.
pub(crate) const INTERVAL: u64 = 1 << 16;

/// Units of work per character and place. Each place is visited once and entered once, and finds at
/// most one other entered already; to start and to end a text costs less than a character does.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const COST: u64 = 4;

/// Runs patterns, and counts the work. One serves many patterns and texts, so that it allocates only
/// when a pattern is longer than all before.
#[derive(Debug)]
pub(crate) struct Matcher<'a> {
    cancel: &'a Cancel,
    work: u64,
    /// The work at which to look at `cancel` again.
    look_at: u64,
    /// The places in the pattern that are reachable after the text that was read.
    active: Vec<usize>,
    next: Vec<usize>,
    /// By place: the last round in which it was entered.
    entered: Vec<u64>,
    round: u64,
    /// Whether the pattern also matches with any more characters of the same name.
    any_rest: bool,
}

impl<'a> Matcher<'a> {
    /// A matcher that stops on `cancel`.
    pub(crate) fn new(cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            work: 0,
            look_at: 0,
            active: Vec::new(),
            next: Vec::new(),
            entered: Vec::new(),
            round: 0,
            any_rest: false,
        }
    }

    /// The work so far.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn work(&self) -> u64 {
        self.work
    }

    /// Counts some work, which can be other than matching.
    pub(crate) fn spend(&mut self, work: u64) -> Result<(), Stopped> {
        self.work = self.work.saturating_add(work);
        if self.work < self.look_at {
            return Ok(());
        }
        self.look_at = self.work.saturating_add(INTERVAL);
        self.cancel.check()
    }

    /// Whether the pattern matches the whole of `path`.
    pub(crate) fn matches(&mut self, glob: &Glob, path: &[u8]) -> Result<bool, Stopped> {
        self.spend(1)?;
        let (dir, name) = path::split(path);
        if !glob.can_end_with(name) {
            return Ok(false);
        }
        self.start(glob)?;
        if !dir.is_empty() {
            for unit in units(dir).chain([SLASH]) {
                self.read(glob, unit)?;
            }
        }
        self.accepts(glob, name)
    }

    /// Starts at the beginning of a pattern.
    pub(super) fn start(&mut self, glob: &Glob) -> Result<(), Stopped> {
        self.begin_round(glob);
        self.enter(glob, 0)?;
        std::mem::swap(&mut self.active, &mut self.next);
        Ok(())
    }

    /// Goes on at these places of a pattern.
    pub(super) fn resume(&mut self, places: &[usize]) -> Result<(), Stopped> {
        self.active.clear();
        self.active.extend_from_slice(places);
        self.spend(places.len() as u64)
    }

    /// Reads a name; whether the pattern ends with it. If so, not all of it may have been read.
    pub(super) fn accepts(&mut self, glob: &Glob, name: &[u8]) -> Result<bool, Stopped> {
        for unit in units(name) {
            if self.active.is_empty() {
                return Ok(false);
            }
            self.read(glob, unit)?;
            if self.any_rest {
                return Ok(true);
            }
        }
        self.spend(self.active.len() as u64)?;
        Ok(self.active.contains(&glob.tokens.len()))
    }

    /// Reads the `/` after a name.
    pub(super) fn descend(&mut self, glob: &Glob) -> Result<(), Stopped> {
        self.read(glob, SLASH)
    }

    /// Adds the places from which something that is still to be read can lead to a match to `places`.
    pub(super) fn save(&self, glob: &Glob, places: &mut Vec<usize>) {
        let leads_on = |at: &usize| match glob.tokens.get(*at) {
            Some(Token::MaybeElements) | None => false,
            Some(_) => true,
        };
        places.extend(self.active.iter().copied().filter(leads_on));
    }

    /// Reads one unit.
    fn read(&mut self, glob: &Glob, unit: u32) -> Result<(), Stopped> {
        self.begin_round(glob);
        let active = std::mem::take(&mut self.active);
        for &at in &active {
            self.visit(glob, at, unit)?;
        }
        self.active = std::mem::replace(&mut self.next, active);
        Ok(())
    }

    fn begin_round(&mut self, glob: &Glob) {
        self.next.clear();
        self.any_rest = false;
        self.round += 1;
        if self.entered.len() < glob.n_places() {
            self.entered.resize(glob.n_places(), 0);
        }
    }

    /// Reads one unit at one place.
    fn visit(&mut self, glob: &Glob, at: usize, unit: u32) -> Result<(), Stopped> {
        self.spend(1)?;
        let Some(token) = glob.tokens.get(at) else {
            return Ok(());
        };
        match token {
            Token::Unit(wanted) if *wanted == unit => self.enter(glob, at + 1),
            Token::One if unit != SLASH => self.enter(glob, at + 1),
            Token::Class(class) if unit != SLASH && class.contains(unit) => {
                self.enter(glob, at + 1)
            }
            Token::Star if unit != SLASH => self.stay(glob, at),
            Token::All => self.stay(glob, at),
            Token::Elements => {
                self.mark(at);
                if unit == SLASH {
                    self.enter(glob, at + 1)?;
                }
                Ok(())
            }
            Token::Unit(_) | Token::One | Token::Class(_) | Token::Star | Token::MaybeElements => {
                Ok(())
            }
        }
    }

    /// Stays at a star.
    fn stay(&mut self, glob: &Glob, at: usize) -> Result<(), Stopped> {
        self.any_rest |= at + 1 == glob.tokens.len();
        self.enter(glob, at)
    }

    /// Enters a place, and those that are reachable from it without reading anything.
    fn enter(&mut self, glob: &Glob, mut at: usize) -> Result<(), Stopped> {
        loop {
            self.spend(1)?;
            if !self.mark(at) {
                return Ok(());
            }
            at += match glob.tokens.get(at) {
                Some(Token::Star | Token::All) => 1,
                Some(Token::MaybeElements) => {
                    self.mark(at + 1);
                    2
                }
                Some(Token::Unit(_) | Token::One | Token::Class(_) | Token::Elements) | None => {
                    return Ok(());
                }
            };
        }
    }

    /// Enters a place once per round; whether it was the first time.
    fn mark(&mut self, at: usize) -> bool {
        let Some(round) = self.entered.get_mut(at) else {
            return false;
        };
        let is_new = *round != self.round;
        if is_new {
            *round = self.round;
            self.next.push(at);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::glob::Dialect;

    fn glob(pattern: &str) -> Glob {
        Glob::new(pattern.as_bytes(), Dialect::Ignore).expect("a pattern")
    }

    /// Patterns whose places are nearly all reachable at once, with a text that keeps them so.
    fn costly() -> Vec<(Glob, String)> {
        let name = "a".repeat(800);
        let path = "a/".repeat(400) + "a";
        let costly = |pattern: &str, text: &str| {
            let pattern = pattern.repeat(400) + "b?";
            (glob(&pattern), text.to_owned())
        };
        vec![
            costly("*a", &name),
            costly("*?", &name),
            costly("[^b-dx-z]*", &name),
            costly("**/a/", &path),
            costly("**/*/", &path),
            costly("***/", &path),
            costly("a**", &path),
        ]
    }

    #[test]
    fn work_is_linear_in_the_text_and_in_the_places_of_the_pattern() {
        for (glob, text) in costly() {
            let cancel = Cancel::new();
            let mut matcher = Matcher::new(&cancel);
            assert_eq!(matcher.matches(&glob, text.as_bytes()), Ok(false));
            let limit = COST * glob.n_places() as u64 * (text.len() as u64 + 1);
            assert!(matcher.work() <= limit, "{} > {limit}", matcher.work());
        }
    }

    #[test]
    fn a_cancel_ends_a_match_after_a_bounded_amount_of_work() {
        for (glob, text) in costly() {
            let cancel = Cancel::new();
            let mut matcher = Matcher::new(&cancel);
            matcher.start(&glob).expect("not cancelled");
            cancel.cancel();
            assert_eq!(matcher.accepts(&glob, text.as_bytes()), Err(Stopped));
            assert!(matcher.work() <= 2 * INTERVAL, "{}", matcher.work());

            let mut matcher = Matcher::new(&cancel);
            assert_eq!(matcher.matches(&glob, text.as_bytes()), Err(Stopped));
            assert_eq!(matcher.work(), 1);
        }
    }

    #[test]
    fn a_matcher_keeps_nothing_of_the_pattern_before() {
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        for _ in 0..2 {
            for (pattern, want) in [("a**/b*", true), ("*", false), ("?/b", true), ("b", false)] {
                assert_eq!(
                    matcher.matches(&glob(pattern), b"a/b"),
                    Ok(want),
                    "{pattern}"
                );
            }
        }
    }
}
