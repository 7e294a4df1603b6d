//! An ignore file on the way through a tree.
//!
//! The law: a directory is read once, whatever is in it: its rules go on from where they were in the
//! directory above, and what can match nothing below is dropped. What is kept for the directories
//! from the root to the last one has a limit; beyond it, those at the root are read again when the
//! walk comes back to them.

use std::collections::VecDeque;

use exec::Stopped;

use super::ignore::Ignore;
use super::matcher::Matcher;
use crate::rootfs::path;

/// Places and rules that are kept, 16 bytes each at most.
const MAX_KEPT: usize = 4 << 20;

/// The state of an ignore file in the directories from the root to the one that was last asked about.
/// Any order of questions gives the same answers; that of a walk is fast.
#[derive(Debug)]
pub(crate) struct Trail {
    ignore: Ignore,
    /// The last directory.
    dir: Vec<u8>,
    /// The states of the last directory and of those above it, but for the first ones.
    kept: VecDeque<Above>,
    /// Number of directories whose states were dropped.
    dropped: usize,
    size: usize,
    max_size: usize,
}

/// How far each rule got with the path of a directory and the `/` after it.
#[derive(Debug)]
struct Above {
    /// The last rule that matches the directory or one above it. Earlier rules decide nothing below.
    matched: Option<usize>,
    /// The later rules that can match something below, last one first.
    live: Vec<Live>,
    /// Where the live rules are, one after the other.
    places: Vec<usize>,
}

#[derive(Debug)]
struct Live {
    rule: usize,
    /// The end of its places.
    end: usize,
}

impl Trail {
    /// Starts at the root.
    pub(crate) fn new(ignore: Ignore) -> Self {
        Self {
            ignore,
            dir: Vec::new(),
            kept: VecDeque::new(),
            dropped: 0,
            size: 0,
            max_size: MAX_KEPT,
        }
    }

    /// The rule that ignores `name` in the directory `dir`, if one does.
    pub(crate) fn ignores(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<Option<usize>, Stopped> {
        self.at(dir, matcher)?;
        let Some(above) = self.kept.back() else {
            return Ok(None);
        };
        let rule = above.matching(&self.ignore, name, matcher)?;
        Ok(rule.filter(|rule| !self.ignore.negates(*rule)))
    }

    /// Whether a path below the ignored directory `name` in `dir` can be included again.
    pub(crate) fn may_keep_below(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<bool, Stopped> {
        if !self.ignore.has_exceptions() {
            return Ok(false);
        }
        let here = self.below(dir, name, matcher)?;
        // What matched the directory ignores everything below, whatever earlier rules say.
        let mut later = here.iter().flat_map(|here| here.live.iter());
        let matched = here.as_ref().and_then(|here| here.matched);
        Ok(later.any(|live| self.ignore.negates(live.rule))
            || matched.is_some_and(|rule| self.ignore.negates(rule)))
    }

    /// Whether any rule can match a path below the directory `name` in `dir`.
    pub(crate) fn may_match_below(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<bool, Stopped> {
        let here = self.below(dir, name, matcher)?;
        Ok(here.is_some_and(|here| here.matched.is_some() || !here.live.is_empty()))
    }

    /// The state of the directory `name` in `dir`.
    fn below(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<Option<Above>, Stopped> {
        self.at(dir, matcher)?;
        let above = self.kept.back();
        above
            .map(|above| above.enter(&self.ignore, name, matcher))
            .transpose()
    }

    /// Makes the state of `dir` the last one that is kept.
    fn at(&mut self, dir: &[u8], matcher: &mut Matcher<'_>) -> Result<(), Stopped> {
        if !self.kept.is_empty() && self.dir == dir {
            return Ok(());
        }
        let pairs = path::elements(dir).zip(path::elements(&self.dir));
        let n_common = pairs.take_while(|(new, old)| new == old).count();
        // There is one state more than elements: that of the root.
        self.keep_first(n_common + 1);
        if self.kept.is_empty() {
            self.dropped = 0;
            let root = Above::root(&self.ignore, matcher)?;
            self.push(root);
        }
        let n_known = self.dropped + self.kept.len() - 1;
        let known: Vec<&[u8]> = path::elements(dir).take(n_known).collect();
        self.dir = known.join(&b'/');
        for name in path::elements(dir).skip(n_known) {
            let Some(above) = self.kept.back() else {
                break;
            };
            let here = above.enter(&self.ignore, name, matcher)?;
            self.push(here);
            if !self.dir.is_empty() {
                self.dir.push(b'/');
            }
            self.dir.extend_from_slice(name);
        }
        Ok(())
    }

    /// Keeps the states of the first directories only; none, if those were dropped.
    fn keep_first(&mut self, n_dirs: usize) {
        while self.dropped + self.kept.len() > n_dirs
            && let Some(state) = self.kept.pop_back()
        {
            self.size -= state.size();
        }
    }

    fn push(&mut self, state: Above) {
        self.size += state.size();
        self.kept.push_back(state);
        while self.size > self.max_size
            && self.kept.len() > 1
            && let Some(first) = self.kept.pop_front()
        {
            self.size -= first.size();
            self.dropped += 1;
        }
    }
}

impl Above {
    /// The state of the root.
    fn root(ignore: &Ignore, matcher: &mut Matcher<'_>) -> Result<Self, Stopped> {
        let mut root = Self {
            matched: None,
            live: Vec::new(),
            places: Vec::new(),
        };
        for (rule, glob) in ignore.globs().rev() {
            matcher.start(glob)?;
            matcher.save(glob, &mut root.places);
            root.add(rule);
        }
        Ok(root)
    }

    /// The state of the directory `name` in this one.
    fn enter(
        &self,
        ignore: &Ignore,
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<Self, Stopped> {
        let mut here = Self {
            matched: self.matched,
            live: Vec::new(),
            places: Vec::new(),
        };
        for (rule, places) in self.live() {
            let Some(glob) = ignore.glob(rule) else {
                continue;
            };
            matcher.resume(places)?;
            if matcher.accepts(glob, name)? {
                here.matched = Some(rule);
                break;
            }
            matcher.descend(glob)?;
            matcher.save(glob, &mut here.places);
            here.add(rule);
        }
        Ok(here)
    }

    /// The last rule that matches `name` in this directory, or the directory.
    fn matching(
        &self,
        ignore: &Ignore,
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<Option<usize>, Stopped> {
        matcher.spend(self.live.len() as u64 + 1)?;
        for (rule, places) in self.live() {
            let Some(glob) = ignore.glob(rule).filter(|glob| glob.can_end_with(name)) else {
                continue;
            };
            matcher.resume(places)?;
            if matcher.accepts(glob, name)? {
                return Ok(Some(rule));
            }
        }
        Ok(self.matched)
    }

    /// Adds a rule with the places that were added last; it is not live if there are none.
    fn add(&mut self, rule: usize) {
        let end = self.places.len();
        let before = self.live.last().map_or(0, |last| last.end);
        if end > before {
            self.live.push(Live { rule, end });
        }
    }

    /// The live rules, last one first, with their places.
    fn live(&self) -> impl Iterator<Item = (usize, &[usize])> {
        let mut start = 0;
        self.live.iter().map(move |live| {
            let places = self.places.get(start..live.end).unwrap_or_default();
            start = live.end;
            (live.rule, places)
        })
    }

    fn size(&self) -> usize {
        1 + self.live.len() + self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use exec::Cancel;

    use super::*;
    use crate::context::matcher::COST;

    fn trail(text: &str) -> Trail {
        Trail::new(Ignore::parse("f", text.as_bytes()).expect("an ignore file"))
    }

    /// Directories of a deep tree, in an order that no walk has.
    const DIRS: [&str; 9] = [
        "a/b/c/d",
        "a/b",
        "",
        "b",
        "a/b/c/x/y",
        "a",
        "a/b/c/d",
        "b/a/b",
        "a/b/c",
    ];

    #[test]
    fn any_order_of_questions_and_any_room_give_the_same_answers() {
        let text = "**/a/**/d\n!**/b/[a-c]\n*/*/c/?\na*/b**/y\n!a/b/c/x";
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let (mut roomy, mut narrow) = (trail(text), trail(text));
        narrow.max_size = 1;
        for dir in DIRS {
            for name in ["a", "b", "c", "d", "x", "y"] {
                let mut fresh = trail(text);
                let want = fresh.ignores(dir.as_bytes(), name.as_bytes(), &mut matcher);
                let below = fresh.may_keep_below(dir.as_bytes(), name.as_bytes(), &mut matcher);
                for trail in [&mut roomy, &mut narrow] {
                    let got = trail.ignores(dir.as_bytes(), name.as_bytes(), &mut matcher);
                    assert_eq!(got, want, "{dir}/{name}");
                    let got = trail.may_keep_below(dir.as_bytes(), name.as_bytes(), &mut matcher);
                    assert_eq!(got, below, "below {dir}/{name}");
                }
                assert_eq!(narrow.kept.len(), 1);
            }
        }
    }

    #[test]
    fn a_nested_directory_does_not_start_over() {
        let text = "**/a/".repeat(2000) + "b";
        let places = trail(&text).ignore.n_places() as u64;
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let mut trail = trail(&text);
        let (mut dir, mut n_bytes) = (Vec::new(), 0);
        for _ in 0..100 {
            let rule = trail.ignores(&dir, b"aaaaaaaaa", &mut matcher);
            assert_eq!(rule, Ok(None));
            dir = path::join(&dir, b"aaaaaaaaa");
            n_bytes += 10;
        }
        // Each name is read twice: once for itself, and once for what is below it.
        let limit = 2 * COST * places * (n_bytes + 1);
        assert!(matcher.work() <= limit, "{} > {limit}", matcher.work());
    }

    #[test]
    fn rules_before_one_that_matched_are_dropped() {
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let mut trail = trail("**/x\n**/y\na\n!**/z");
        assert_eq!(trail.ignores(b"a/b", b"x", &mut matcher), Ok(Some(2)));
        let live = trail.kept.back().map(|above| above.live.len());
        assert_eq!(live, Some(1));
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let mut trail = trail(&("**/a/".repeat(100) + "z"));
        trail.max_size = 1000;
        for depth in 1..200 {
            let dir = ["a"; 200].get(..depth).unwrap_or_default().join("/");
            assert_eq!(trail.ignores(dir.as_bytes(), b"b", &mut matcher), Ok(None));
            assert!(trail.size <= 1000);
            let sizes: usize = trail.kept.iter().map(Above::size).sum();
            assert_eq!(trail.size, sizes);
        }
    }
}
