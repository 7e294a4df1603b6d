//! Copies what is in a directory.

use layer::Attributes;

use super::CopyError;
use super::draft::{Body, Planned};
use super::planner::Planner;
use super::source::{Node, Thing};
use crate::context::BadPattern;
use crate::context::glob::{Dialect, Glob};
use crate::context::ignore::{Above, Ignore};
use crate::rootfs::path;
use crate::rootfs::resolve::Kind;

/// What of a directory is taken.
#[derive(Debug)]
pub(super) struct Filter {
    exclude: Ignore,
    /// Only what this matches, and what is below it.
    only: Option<Only>,
}

#[derive(Debug)]
enum Only {
    Path(Vec<u8>),
    Pattern(Glob),
}

impl Filter {
    /// All but what is excluded.
    pub(super) fn excluding(exclude: Ignore) -> Self {
        Self {
            exclude,
            only: None,
        }
    }

    /// Only `path`, which may be a pattern, without what is excluded.
    pub(super) fn only(path: &[u8], pattern: bool, exclude: Ignore) -> Result<Self, BadPattern> {
        let only = match (path, pattern) {
            // The directory itself: all of it.
            (b"", _) => None,
            (_, true) => Some(Only::Pattern(Glob::new(path, Dialect::Ignore)?)),
            (_, false) => Some(Only::Path(path.to_vec())),
        };
        Ok(Self { exclude, only })
    }

    fn takes(&self, path: &[u8]) -> bool {
        match &self.only {
            None => true,
            Some(Only::Path(only)) => path == *only,
            Some(Only::Pattern(glob)) => glob.matches(path),
        }
    }

    fn may_take_below(&self, path: &[u8]) -> bool {
        match &self.only {
            None => true,
            Some(Only::Path(only)) => only
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with(b"/")),
            Some(Only::Pattern(glob)) => glob.can_match_below(path),
        }
    }
}

/// A directory that is being copied.
struct Frame<'a> {
    node: Node<'a>,
    /// Its children that are still to come, in reverse.
    rest: Vec<Node<'a>>,
    /// Path from the directory that is copied.
    path: Vec<u8>,
    above: Above,
    /// All below it is taken unless it is excluded.
    taken: bool,
    /// Its copy, once there is one.
    copy: Option<usize>,
}

/// One directory being copied, with those in it that are open.
pub(super) struct Walk<'p, 'a> {
    planner: &'p mut Planner<'a>,
    filter: Filter,
    n_source: usize,
    frames: Vec<Frame<'a>>,
    found: bool,
}

impl<'p, 'a> Walk<'p, 'a> {
    /// Prepares to copy.
    pub(super) fn new(planner: &'p mut Planner<'a>, filter: Filter, n_source: usize) -> Self {
        let found = filter.only.is_none();
        Self {
            planner,
            filter,
            n_source,
            frames: Vec::new(),
            found,
        }
    }

    /// Copies what is in `node` to `dir`. Returns whether anything was asked for and found.
    pub(super) fn run(mut self, node: Node<'a>, dir: usize) -> Result<bool, CopyError> {
        let taken = self.filter.only.is_none();
        let above = self.filter.exclude.root();
        self.open(node, Vec::new(), above, taken, Some(dir));
        while let Some(frame) = self.frames.last_mut() {
            match frame.rest.pop() {
                Some(child) => self.child(child)?,
                None => drop(self.frames.pop()),
            }
        }
        Ok(self.found)
    }

    fn open(
        &mut self,
        node: Node<'a>,
        path: Vec<u8>,
        above: Above,
        taken: bool,
        copy: Option<usize>,
    ) {
        let mut rest = self.planner.source.children(node);
        rest.reverse();
        self.frames.push(Frame {
            node,
            rest,
            path,
            above,
            taken,
            copy,
        });
    }

    fn child(&mut self, child: Node<'a>) -> Result<(), CopyError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let name = self.planner.source.name(child);
        let path = path::join(&frame.path, name);
        let taken = frame.taken || self.filter.takes(&path);
        let excluded = self.filter.exclude.ignores(&frame.above, &path).is_some();
        let (body, same) = match self.planner.source.thing(child) {
            Thing::Copy(body, same) => (body, same),
            Thing::Special(what) if taken && !excluded => {
                let path = self.planner.source.path(child);
                self.planner
                    .warnings
                    .push(format!("{path} is {what} and was skipped"));
                return Ok(());
            }
            Thing::Unreadable(source) if taken && !excluded => {
                let path = self.planner.source.path(child);
                return Err(CopyError::Unreadable { path, source });
            }
            Thing::Special(_) | Thing::Unreadable(_) => return Ok(()),
        };
        let wanted = taken && !excluded;
        self.found |= taken;
        if let Body::Directory = body {
            return self.subdirectory(child, path, taken, excluded);
        }
        if wanted {
            let dir = self.copy_of_last()?;
            let meta = self
                .planner
                .changes
                .apply(self.planner.source.meta(child), &body);
            let same = same.map(|same| (self.n_source, same));
            self.planner
                .draft
                .put_file(dir, name, Planned { meta, body, same })?;
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        node: Node<'a>,
        path: Vec<u8>,
        taken: bool,
        excluded: bool,
    ) -> Result<(), CopyError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let above = self.filter.exclude.enter(&frame.above, &path);
        let dead = excluded && !self.filter.exclude.may_keep_below(&above, &path)
            || !taken && !self.filter.may_take_below(&path);
        if dead {
            return Ok(());
        }
        let copy = if taken && !excluded {
            let dir = self.copy_of_last()?;
            let meta = self.planner.source.meta(node);
            let meta = self.planner.changes.apply(meta, &Body::Directory);
            let name = self.planner.source.name(node);
            Some(self.planner.draft.put_directory(dir, name, meta)?)
        } else {
            None
        };
        self.open(node, path, above, taken, copy);
        Ok(())
    }

    /// The copy of the innermost open directory, made with those above it if they have none yet.
    fn copy_of_last(&mut self) -> Result<usize, CopyError> {
        let made = self
            .frames
            .iter()
            .rposition(|frame| frame.copy.is_some())
            .unwrap_or_default();
        let mut dir = self
            .frames
            .get(made)
            .and_then(|frame| frame.copy)
            .unwrap_or_default();
        for frame in self.frames.iter_mut().skip(made + 1) {
            let name = self.planner.source.name(frame.node);
            let meta = self.planner.source.meta(frame.node);
            let mut meta = self.planner.changes.apply(meta, &Body::Directory);
            if self.planner.draft.kind_in(dir, name) == Some(Kind::Directory) {
                // It is there and only gets the mode.
                let at = self.planner.draft.enter(dir, name);
                if let Some(kept) = self.planner.draft.meta(at) {
                    meta = Attributes {
                        mode: meta.mode,
                        ..kept
                    };
                }
            }
            dir = self.planner.draft.put_directory(dir, name, meta)?;
            frame.copy = Some(dir);
        }
        Ok(dir)
    }
}
