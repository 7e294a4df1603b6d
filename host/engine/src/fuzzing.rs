//! The reader of ignore files without a context. Not part of the API.

use crate::context::ignore::{self, Above};

/// An ignore file.
#[derive(Debug)]
pub struct Ignore(ignore::Ignore);

impl Ignore {
    /// Reads it, if it is one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        ignore::Ignore::parse(".dockerignore", text).ok().map(Self)
    }

    /// Whether `path` is ignored, found without a walk.
    pub fn explains(&self, path: &[u8]) -> bool {
        self.0.explain(path).is_some()
    }

    /// Whether a walk comes to `path`, which has these ancestors, and takes it.
    pub fn walks_to(&self, ancestors: &[&[u8]], path: &[u8]) -> bool {
        let mut above: Above = self.0.root();
        for &dir in ancestors {
            let is_ignored = self.0.ignores(&above, dir).is_some();
            above = self.0.enter(&above, dir);
            if is_ignored && !self.0.may_keep_below(&above, dir) {
                return false;
            }
        }
        self.0.ignores(&above, path).is_none()
    }
}
