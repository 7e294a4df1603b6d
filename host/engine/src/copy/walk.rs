//! Copies the content of a directory.

use exec::Stopped;
use layer::Attributes;

use super::CopyError;
use super::entry::{Body, NewEntry};
use super::planner::Planner;
use super::source::{Node, SourceEntry};
use crate::context::BadPattern;
use crate::context::glob::{Dialect, Glob};
use crate::context::ignore::Ignore;
use crate::context::matcher::Matcher;
use crate::context::trail::Trail;
use crate::rootfs::path;
use crate::rootfs::resolve::Kind;

/// What an entry costs beside its patterns, in units of work of a [`Matcher`].
const ENTRY_WORK: u64 = 16;

/// Which entries of a directory are copied.
#[derive(Debug)]
pub(super) struct Filter {
    exclude: Trail,
    /// Only entries that match this, and everything below them.
    only: Option<Only>,
}

#[derive(Debug)]
enum Only {
    Path(Vec<u8>),
    /// What it "ignores" is taken.
    Pattern(Trail),
}

impl Filter {
    /// All entries that are not excluded.
    pub(super) fn excluding(exclude: Ignore) -> Self {
        Self {
            exclude: Trail::new(exclude),
            only: None,
        }
    }

    /// Only `path`, which may be a pattern, and only entries that are not excluded.
    pub(super) fn only(path: &[u8], pattern: bool, exclude: Ignore) -> Result<Self, BadPattern> {
        let only = match (path, pattern) {
            // The directory itself: everything in it.
            (b"", _) => None,
            (_, true) => {
                let glob = Glob::new(path, Dialect::Ignore)?;
                Some(Only::Pattern(Trail::new(Ignore::from_glob(glob))))
            }
            (_, false) => Some(Only::Path(path.to_vec())),
        };
        Ok(Self {
            exclude: Trail::new(exclude),
            only,
        })
    }

    /// Whether the entry `name` of `dir`, from which nothing is taken so far, is taken.
    fn takes(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<bool, Stopped> {
        match &mut self.only {
            None => Ok(true),
            Some(Only::Path(only)) => Ok(path::split(only) == (dir, name)),
            Some(Only::Pattern(trail)) => Ok(trail.ignores(dir, name, matcher)?.is_some()),
        }
    }

    /// Whether something below the directory `name` of `dir` can be taken, which itself is not.
    fn may_take_below(
        &mut self,
        dir: &[u8],
        name: &[u8],
        matcher: &mut Matcher<'_>,
    ) -> Result<bool, Stopped> {
        match &mut self.only {
            None => Ok(true),
            Some(Only::Path(only)) => {
                let rest = only.strip_prefix(path::join(dir, name).as_slice());
                Ok(rest.is_some_and(|rest| rest.starts_with(b"/")))
            }
            Some(Only::Pattern(trail)) => trail.may_match_below(dir, name, matcher),
        }
    }
}

/// A directory that is being copied.
struct Frame<'a> {
    node: Node<'a>,
    /// Children that are not copied yet, in reverse.
    rest: Vec<Node<'a>>,
    /// Path from the directory that is copied.
    path: Vec<u8>,
    /// Whether everything below it is copied, unless it is excluded.
    taken: bool,
    /// The node of its copy, once there is one.
    copy: Option<usize>,
}

/// The walk of one directory, with its stack of open directories.
pub(super) struct Walk<'p, 'a> {
    planner: &'p mut Planner<'a>,
    filter: Filter,
    n_source: usize,
    frames: Vec<Frame<'a>>,
    found: bool,
}

impl<'p, 'a> Walk<'p, 'a> {
    /// Prepares a walk.
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
        self.open(node, Vec::new(), taken, Some(dir));
        while let Some(frame) = self.frames.last_mut() {
            match frame.rest.pop() {
                Some(child) => self.child(child)?,
                None => drop(self.frames.pop()),
            }
        }
        Ok(self.found)
    }

    fn open(&mut self, node: Node<'a>, path: Vec<u8>, taken: bool, copy: Option<usize>) {
        let mut rest = self.planner.source.children(node);
        rest.reverse();
        self.frames.push(Frame {
            node,
            rest,
            path,
            taken,
            copy,
        });
    }

    fn child(&mut self, child: Node<'a>) -> Result<(), CopyError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let name = self.planner.source.name(child);
        let matcher = &mut self.planner.matcher;
        matcher.spend(ENTRY_WORK)?;
        let taken = frame.taken || self.filter.takes(&frame.path, name, matcher)?;
        let excluded = self.filter.exclude.ignores(&frame.path, name, matcher)?;
        let excluded = excluded.is_some();
        let (body, same) = match self.planner.source.entry(child) {
            SourceEntry::Copyable(body, same) => (body, same),
            SourceEntry::Special(what) if taken && !excluded => {
                let path = self.planner.source.path(child);
                self.planner
                    .warnings
                    .push(format!("{path} is {what} and was skipped"));
                return Ok(());
            }
            SourceEntry::Unreadable(source) if taken && !excluded => {
                let path = self.planner.source.path(child);
                return Err(CopyError::Unreadable { path, source });
            }
            SourceEntry::Special(_) | SourceEntry::Unreadable(_) => return Ok(()),
        };
        let wanted = taken && !excluded;
        self.found |= taken;
        if let Body::Directory = body {
            return self.subdirectory(child, taken, excluded);
        }
        if wanted {
            let dir = self.copy_of_last()?;
            let meta = self
                .planner
                .overrides
                .apply(self.planner.source.meta(child), &body);
            let same = same.map(|same| (self.n_source, same));
            self.planner
                .builder
                .put_file(dir, name, NewEntry { meta, body, same })?;
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        node: Node<'a>,
        taken: bool,
        excluded: bool,
    ) -> Result<(), CopyError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let (dir, name) = (&frame.path, self.planner.source.name(node));
        let (filter, matcher) = (&mut self.filter, &mut self.planner.matcher);
        let dead = excluded && !filter.exclude.may_keep_below(dir, name, matcher)?
            || !taken && !filter.may_take_below(dir, name, matcher)?;
        if dead {
            return Ok(());
        }
        let path = path::join(dir, name);
        let copy = if taken && !excluded {
            let dir = self.copy_of_last()?;
            let meta = self.planner.source.meta(node);
            let meta = self.planner.overrides.apply(meta, &Body::Directory);
            Some(self.planner.builder.put_directory(dir, name, meta)?)
        } else {
            None
        };
        self.open(node, path, taken, copy);
        Ok(())
    }

    /// The copy of the innermost open directory, created together with those above it.
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
            let mut meta = self.planner.overrides.apply(meta, &Body::Directory);
            if self.planner.builder.kind_in(dir, name) == Some(Kind::Directory) {
                // It exists in the target and only gets the mode.
                let at = self.planner.builder.enter(dir, name);
                if let Some(kept) = self.planner.builder.meta(at) {
                    meta = Attributes {
                        mode: meta.mode,
                        ..kept
                    };
                }
            }
            dir = self.planner.builder.put_directory(dir, name, meta)?;
            frame.copy = Some(dir);
        }
        Ok(dir)
    }
}
