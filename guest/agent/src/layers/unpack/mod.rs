//! Unpacking a layer's tar into a directory, while it comes.
//!
//! The host has checked the tar with the same reader, and this leaves behind what the host's index of
//! it says. The image that it comes from is still untrusted: every path is opened below the layer's
//! root without following any link. Whiteouts get the form of overlayfs. The times of directories
//! are set last, when all of their entries are there.

mod files;
mod writers;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use layer::unpack::{Change, Present, change};
use layer::{Entry, EntryKind, Mtime, Reader, path};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::linkat;

use self::writers::{LARGEST, NewFile, Writers};
use super::Implicit;
use crate::attributes::{
    self, Attributes, OnDisk as _, is_type, is_whiteout, set_opaque, set_time, set_xattrs,
};
use crate::fault;
use crate::tree::{self, Trash};

/// The attribute of a directory that what is made in it inherits.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// A path about which unpackers disagree.
const BOTH: &str = "it is both a directory and a non-directory in this layer";

/// Unpacks a tar below `root`, which is empty. Reads to the end of the source.
pub(crate) fn unpack(root: OwnedFd, trash: &Trash, tar: &mut impl BufRead) -> Result<Implicit> {
    thread::scope(|scope| {
        let mut target = Target::new(root, trash, Writers::start(scope));
        let mut reader = Reader::new(tar);
        while let Some(entry) = reader.next_entry()? {
            let path = entry.path.clone();
            target
                .entry(entry, &mut reader)
                .map_err(|error| files::at(&path, error))?;
        }
        target.finish()
    })
}

/// The tree that is being made.
struct Target<'a> {
    root: Arc<OwnedFd>,
    trash: &'a Trash,
    writers: Writers,
    /// The directory of the last entry: the next one is usually in it too.
    parent: (Vec<u8>, Arc<OwnedFd>),
    implicit: Implicit,
    /// Times of directories, to be set when nothing in them changes any more: path, NUL, seconds,
    /// nanoseconds. Packed, since a layer may have very many.
    times: Vec<u8>,
    /// Access control lists that directories hand down, by path.
    default_acls: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<'a> Target<'a> {
    fn new(root: OwnedFd, trash: &'a Trash, writers: Writers) -> Self {
        let root = Arc::new(root);
        let mut target = Self {
            parent: (Vec::new(), Arc::clone(&root)),
            root,
            trash,
            writers,
            implicit: Implicit::default(),
            times: Vec::new(),
            default_acls: BTreeMap::new(),
        };
        target.implicit.0.insert(Vec::new());
        target.remember_time(b"", Mtime::default());
        target
    }

    fn entry(&mut self, entry: Entry, reader: &mut Reader<impl BufRead>) -> Result<()> {
        if entry.kind == EntryKind::Directory {
            self.implicit.0.remove(&entry.path);
        }
        self.settle_before(&entry)?;
        if entry.kind == EntryKind::Opaque {
            self.enter(&entry.path)?;
            return set_opaque(self.parent.1.as_fd(), c".");
        }
        if entry.path.is_empty() {
            return self.describe_dir(c".", Arc::clone(&self.root).as_fd(), entry);
        }
        let (dir, name) = path::split(&entry.path);
        let name = CString::new(name)?;
        self.enter(dir)?;
        let parent = Arc::clone(&self.parent.1);
        match &entry.kind {
            EntryKind::Whiteout => whiteout(parent.as_fd(), &name),
            EntryKind::Directory => {
                self.make_dir(parent.as_fd(), &name)?;
                self.describe_dir(&name, parent.as_fd(), entry)
            }
            EntryKind::File { .. } => self.make_file(name, entry, reader),
            EntryKind::Hardlink { target } => self.make_link(parent.as_fd(), &name, target),
            EntryKind::Symlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo
            | EntryKind::Opaque => {
                self.replace(parent.as_fd(), &name, || {
                    files::make_special(parent.as_fd(), &name, &entry)
                })?;
                attributes::apply_to_special(parent.as_fd(), &name, &entry)
            }
        }
    }

    /// Waits for the files that are being made if an entry is about one of them.
    fn settle_before(&mut self, entry: &Entry) -> Result<()> {
        let mut is_touched = self.writers.touches(&entry.path);
        if let EntryKind::Hardlink { target } = &entry.kind {
            is_touched |= self.writers.touches(target);
        }
        if is_touched { self.settle() } else { Ok(()) }
    }

    /// Makes `dir` the current parent; makes it and those above it if they are missing.
    fn enter(&mut self, dir: &[u8]) -> Result<()> {
        if self.parent.0 == dir {
            return Ok(());
        }
        let found = match self.below(dir, tree::LIST) {
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => self.make_parents(dir)?,
            found => found.context("cannot open the directory of this path")?,
        };
        self.parent = (dir.to_vec(), Arc::new(found));
        Ok(())
    }

    fn make_parents(&mut self, dir: &[u8]) -> Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        let mut done = 0;
        for name in dir.split(|byte| *byte == b'/') {
            done += name.len();
            let name = CString::new(name)?;
            let made = match mkdirat(at.as_fd(), name.as_c_str(), Mode::S_IRWXU) {
                Err(Errno::EEXIST) => self.replace_whiteout(at.as_fd(), &name)?,
                made => made.map(|()| true).context("cannot make a directory")?,
            };
            at = match openat(at.as_fd(), name.as_c_str(), tree::LIST, Mode::empty()) {
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    return Err(fault::setup("a parent of this path is not a directory"));
                }
                opened => opened.context("cannot open a directory above this path")?,
            };
            if made {
                // Group and its bit come from the directory above, where that has the bit.
                Attributes::implicit().apply(at.as_fd())?;
                let path = dir.get(..done).unwrap_or(dir);
                self.implicit.0.insert(path.to_vec());
                self.remember_time(path, Mtime::default());
            }
            done += 1;
        }
        Ok(at)
    }

    /// Makes a directory in place of a whiteout, and tells whether there was one.
    fn replace_whiteout(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let change = change(&EntryKind::Directory, present(&stat(parent, name)?));
        if change != Change::ReplaceAndHide {
            return Ok(false);
        }
        self.remove(parent, name, change)?;
        mkdirat(parent, name, Mode::S_IRWXU).context("cannot make a directory")?;
        set_opaque(parent, name)?;
        Ok(true)
    }

    /// Opens a path below the root; no link is followed.
    fn below(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        openat2(
            self.root.as_fd(),
            path,
            OpenHow::new().flags(flags).resolve(resolve),
        )
    }

    /// Makes an entry that is not a directory, perhaps in place of an earlier one.
    fn replace(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        make: impl Fn() -> Result<(), Errno>,
    ) -> Result<()> {
        match make() {
            Err(Errno::EEXIST) => {
                let there = present(&stat(parent, name)?);
                self.remove(parent, name, change(&EntryKind::Fifo, there))?;
                Ok(make()?)
            }
            done => Ok(done?),
        }
    }

    /// Makes a directory, or keeps the one that is there. In place of a whiteout it hides what
    /// lower layers have below it.
    fn make_dir(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => {}
            done => return done.context("cannot make a directory"),
        }
        match change(&EntryKind::Directory, present(&stat(parent, name)?)) {
            Change::Refuse => Err(fault::setup(BOTH)),
            Change::ReplaceAndHide => self.replace_whiteout(parent, name).map(|_| ()),
            Change::Make | Change::Keep | Change::Replace | Change::Hide => Ok(()),
        }
    }

    /// Removes what is at a path, if that is how it changes.
    fn remove(&self, parent: BorrowedFd<'_>, name: &CStr, change: Change) -> Result<()> {
        match change {
            Change::Replace | Change::ReplaceAndHide => self.trash.remove(parent, name),
            Change::Make | Change::Keep | Change::Hide => Ok(()),
            Change::Refuse => Err(fault::setup(BOTH)),
        }
    }

    fn describe_dir(&mut self, name: &CStr, parent: BorrowedFd<'_>, entry: Entry) -> Result<()> {
        let dir = openat(parent, name, tree::LIST, Mode::empty())?;
        self.remember_time(&entry.path, entry.mtime);
        let mut attributes = entry.attributes();
        let path = entry.path;
        // What is made in a directory inherits this one, so it is set when everything is there.
        self.default_acls.remove(&path);
        attributes.xattrs.retain(|(name, value)| {
            let deferred = name == DEFAULT_ACL;
            if deferred {
                self.default_acls.insert(path.clone(), value.clone());
            }
            !deferred
        });
        attributes.apply(dir.as_fd())
    }

    /// Makes a file: a small one later, in parallel with others.
    fn make_file(
        &mut self,
        name: CString,
        entry: Entry,
        reader: &mut Reader<impl BufRead>,
    ) -> Result<()> {
        let parent = Arc::clone(&self.parent.1);
        if let EntryKind::File { size, .. } = entry.kind
            && size <= LARGEST
        {
            let mut data = Vec::with_capacity(usize::try_from(size)?);
            reader.data(|piece| {
                data.extend_from_slice(piece);
                anyhow::Ok(())
            })?;
            self.writers.add(&parent, name, entry, data)?;
            return if self.writers.is_crowded() {
                self.settle()
            } else {
                Ok(())
            };
        }
        let mut file = File::from(self.open_new(parent.as_fd(), &name, &entry)?);
        reader.data(|piece| anyhow::Ok(file.write_all(piece)?))?;
        attributes::apply_to_new(file.as_fd(), &entry)
    }

    fn open_new(&mut self, parent: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<OwnedFd> {
        let made = OnceCell::new();
        self.replace(parent, name, || {
            made.set(files::open_new(parent, name, entry)?)
                .map_err(|_| Errno::EEXIST)
        })?;
        made.into_inner().context("the file was made")
    }

    /// Waits until all files are there that were read so far.
    fn settle(&mut self) -> Result<()> {
        for NewFile {
            dir,
            name,
            entry,
            data,
            ..
        } in self.writers.settle()?
        {
            let made = self.open_new(dir.as_fd(), &name, &entry);
            made.and_then(|file| files::fill(file, &data, &entry))
                .map_err(|error| files::at(&entry.path, error))?;
        }
        Ok(())
    }

    fn make_link(&mut self, parent: BorrowedFd<'_>, name: &CStr, target: &[u8]) -> Result<()> {
        let file = match self.below(target, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC) {
            Err(Errno::ENOENT) => {
                let target = target.escape_ascii();
                return Err(fault::setup(format!(
                    "it is a hard link to {target} in another layer, which is not supported yet"
                )));
            }
            found => found.context("cannot open the target of a hard link")?,
        };
        let make = || linkat(file.as_fd(), c"", parent, name, AtFlags::AT_EMPTY_PATH);
        match make() {
            Err(Errno::EEXIST) => {
                let (there, target) = (stat(parent, name)?, fstat(file.as_fd())?);
                if there.st_ino != target.st_ino {
                    self.replace(parent, name, make)?;
                }
                Ok(())
            }
            done => done.context("cannot make a hard link"),
        }
    }

    fn remember_time(&mut self, path: &[u8], time: Mtime) {
        self.times.extend_from_slice(path);
        self.times.push(0);
        self.times.extend_from_slice(&time.secs.to_le_bytes());
        self.times.extend_from_slice(&time.nanos.to_le_bytes());
    }

    /// Sets the times of directories; what is said last about one counts.
    fn finish(mut self) -> Result<Implicit> {
        self.settle()?;
        for (path, value) in &self.default_acls {
            match self.below(path, tree::LIST) {
                Ok(dir) => {
                    set_xattrs(dir.as_fd(), &[(DEFAULT_ACL.to_vec(), value.clone())])?;
                }
                // Another entry took its place later.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno).context("cannot set the list of a directory"),
            }
        }
        let mut rest = self.times.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            let Some((path, after)) = rest.split_at_checked(end) else {
                break;
            };
            let Some((secs, after)) = after.get(1..).and_then(<[u8]>::split_first_chunk) else {
                break;
            };
            let Some((nanos, after)) = after.split_first_chunk() else {
                break;
            };
            rest = after;
            let time = Mtime {
                secs: i64::from_le_bytes(*secs),
                nanos: u32::from_le_bytes(*nanos),
            };
            match self.below(path, tree::LIST) {
                Ok(dir) => set_time(dir.as_fd(), time)?,
                // Another entry took its place later.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno).context("cannot set the time of a directory"),
            }
        }
        Ok(self.implicit)
    }
}

fn stat(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// What unpacking finds there.
fn present(stat: &FileStat) -> Present {
    if is_type(stat, SFlag::S_IFDIR) {
        Present::Directory
    } else if is_whiteout(stat) {
        Present::Whiteout
    } else {
        Present::Other
    }
}

/// Marks a name as removed. If this layer itself has something there, that stays and hides.
fn whiteout(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
        Err(Errno::EEXIST) => {
            let there = present(&stat(parent, name)?);
            if change(&EntryKind::Whiteout, there) == Change::Hide {
                set_opaque(parent, name)?;
            }
            Ok(())
        }
        done => done.context("cannot make a whiteout"),
    }
}

#[cfg(test)]
mod tests;
