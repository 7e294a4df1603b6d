//! The reader of ignore files without a context. Not part of the API.

use exec::{Cancel, Stopped};

use crate::context::ignore;
use crate::context::matcher::{COST, Matcher};
use crate::context::trail::Trail;
use crate::rootfs::path;

/// An ignore file.
#[derive(Debug)]
pub struct Ignore(ignore::Ignore);

/// What a walk did to come to a path.
#[derive(Debug)]
pub struct Walked {
    /// Whether it took the path.
    pub taken: bool,
    /// Units of work.
    pub work: u64,
}

impl Ignore {
    /// Reads it, if it is one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        ignore::Ignore::parse(".dockerignore", text).ok().map(Self)
    }

    /// Whether `path` is ignored, found without a walk.
    pub fn explains(&self, path: &[u8]) -> bool {
        let rule = self.0.explain(path, &mut Matcher::new(&Cancel::new()));
        rule.is_ok_and(|rule| rule.is_some())
    }

    /// A walk to `path`.
    pub fn walk(&self, path: &[u8]) -> Walked {
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        let taken = self.walks_to(path, &mut matcher).unwrap_or_default();
        let work = matcher.work();
        Walked { taken, work }
    }

    fn walks_to(&self, path: &[u8], matcher: &mut Matcher<'_>) -> Result<bool, Stopped> {
        let mut trail = Trail::new(self.0.clone());
        for dir in path::ancestors(path) {
            let (above, name) = path::split(dir);
            let is_ignored = trail.ignores(above, name, matcher)?.is_some();
            if is_ignored && !trail.may_keep_below(above, name, matcher)? {
                return Ok(false);
            }
        }
        let (dir, name) = path::split(path);
        Ok(trail.ignores(dir, name, matcher)?.is_none())
    }

    /// The most work that a walk to a path of this length may do. Each name is read for itself, and
    /// twice more for what is below it: to see whether to go there, and there.
    pub fn most_work(&self, length: usize) -> u64 {
        3 * COST * (self.0.n_places() as u64 + 1) * (length as u64 + 1)
    }
}
