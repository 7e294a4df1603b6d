//! Opens files of the context, from the descriptor of the root, one name at a time.
//!
//! The law: no link is followed, so however the directory changes during a build, nothing outside of
//! it is opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// Maximum number of open directories. In deeper trees, parents are opened again when needed.
const MAX_OPEN: usize = 128;

/// Names and parents of the nodes of a scan.
pub(crate) trait Names {
    /// Parent and name of a node; the root is its own parent.
    fn name(&self, node: u32) -> (u32, &[u8]);
}

/// A position in the tree: the open directories from the root to the last one that was entered.
#[derive(Debug)]
pub(crate) struct Descent<'a> {
    root: BorrowedFd<'a>,
    open: Vec<(u32, OwnedFd)>,
}

impl<'a> Descent<'a> {
    /// Starts at the root.
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            open: Vec::new(),
        }
    }

    /// Opens the directory `node`. In the order of a walk this takes one system call per directory.
    pub(crate) fn enter(&mut self, names: &dyn Names, node: u32) -> io::Result<BorrowedFd<'_>> {
        let mut missing = Vec::new();
        let mut at = node;
        let kept = loop {
            if let Some(found) = self.open.iter().rposition(|(open, _)| *open == at) {
                break found + 1;
            }
            let (parent, name) = names.name(at);
            if parent == at {
                break 0;
            }
            missing.push((at, name));
            at = parent;
        };
        self.open.truncate(kept);
        for (at, name) in missing.into_iter().rev() {
            let dir = directory(self.last(), name)?;
            if self.open.len() >= MAX_OPEN {
                drop(self.open.remove(0));
            }
            self.open.push((at, dir));
        }
        Ok(self.last())
    }

    /// Opens the regular file `node`. Does not block if it was replaced by a named pipe.
    pub(crate) fn file(&mut self, names: &dyn Names, node: u32) -> io::Result<File> {
        let (parent, name) = names.name(node);
        let dir = self.enter(names, parent)?;
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        Ok(openat(dir, name, flags, Mode::empty())?.into())
    }

    fn last(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root, |(_, dir)| dir.as_fd())
    }
}

/// Opens a directory that is not a link.
pub(crate) fn directory(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}
