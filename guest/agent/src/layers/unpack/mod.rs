//! Unpacking a layer's tar into a directory, while it comes.
//!
//! The host has checked the tar, but the image that it comes from is a stranger's: every path is
//! opened below the layer's root without following any link, and what the tar says about
//! whiteouts becomes overlayfs's own form. The order of calls matters: the owner before
//! mode and capabilities, because a change of owner clears both; times last, and those of
//! directories when all of their entries are there.

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

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::linkat;

use self::writers::{LARGEST, NewFile, Writers};
use super::Implicit;
use crate::archive::{Entry, Kind, OPAQUE, Reader, Time, WHITEOUT, WHITEOUT_META};
use crate::attributes::{self, Attributes, is_type, is_whiteout, set_opaque, set_time, set_xattrs};
use crate::fault;
use crate::tree::{self, Trash};

/// The attribute of a directory that what is made in it inherits.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Unpacks a tar below `root`, which is empty. Reads to the mark that ends the tar.
pub(crate) fn unpack(root: OwnedFd, trash: &Trash, tar: &mut impl BufRead) -> Result<Implicit> {
    thread::scope(|scope| {
        let mut target = Target::new(root, trash, Writers::start(scope));
        let mut reader = Reader::new(tar);
        while let Some(entry) = reader.next()? {
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
        target.remember_time(b"", Time::default());
        target
    }

    fn entry(&mut self, entry: Entry, reader: &mut Reader<impl BufRead>) -> Result<()> {
        let path = normal(&entry.path)?;
        self.implicit.0.remove(&path);
        if is_metadata(&path) {
            return Ok(());
        }
        let Some((dir, name)) = split(&path) else {
            ensure!(
                entry.kind == Kind::Directory,
                "the root of a layer is no directory"
            );
            return self.describe_dir(b"", c".", Arc::clone(&self.root).as_fd(), entry);
        };
        let (name, is_whiteout) = match name.strip_prefix(WHITEOUT) {
            Some(_) if name == OPAQUE => (c".".to_owned(), true),
            Some(name) => (plain(name)?, true),
            None => (plain(name)?, false),
        };
        self.settle_before(dir, &name, &entry.kind)?;
        self.enter(dir)?;
        let parent = Arc::clone(&self.parent.1);
        match &entry.kind {
            _ if is_whiteout && name.as_c_str() == c"." => set_opaque(parent.as_fd(), c"."),
            _ if is_whiteout => whiteout(parent.as_fd(), &name),
            Kind::Directory => {
                self.make_dir(parent.as_fd(), &name)?;
                self.describe_dir(&path, &name, parent.as_fd(), entry)
            }
            Kind::File(_) => self.make_file(&path, name, entry, reader),
            Kind::Hardlink(link) => self.make_link(parent.as_fd(), &name, link),
            Kind::Symlink(_) | Kind::Char(..) | Kind::Block(..) | Kind::Fifo => {
                self.replace(parent.as_fd(), &name, || {
                    files::make_special(parent.as_fd(), &name, &entry)
                })?;
                attributes::apply_to_special(parent.as_fd(), &name, &entry)
            }
        }
    }

    /// Waits for the files that are being made if an entry is about one of them.
    fn settle_before(&mut self, dir: &[u8], name: &CStr, kind: &Kind) -> Result<()> {
        let path = [dir, name.to_bytes()].join(&b'/');
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let mut is_touched = self.writers.touches(path);
        if let Kind::Hardlink(target) = kind {
            is_touched |= self.writers.touches(&normal(target)?);
        }
        if is_touched { self.settle() } else { Ok(()) }
    }

    /// Makes `dir` the current parent; makes it and those above it if they are missing.
    fn enter(&mut self, dir: &[u8]) -> Result<()> {
        if self.parent.0 == dir {
            return Ok(());
        }
        let found = match self.below(dir, tree::LIST) {
            Err(Errno::ENOENT) => self.make_parents(dir)?,
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(fault::setup("something above this path is no directory"));
            }
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
            let name = plain(name)?;
            let made = match mkdirat(at.as_fd(), name.as_c_str(), Mode::S_IRWXU) {
                Err(Errno::EEXIST) => false,
                made => made.map(|()| true).context("cannot make a directory")?,
            };
            at = openat(at.as_fd(), name.as_c_str(), tree::LIST, Mode::empty())?;
            if made {
                // Group and its bit come from the directory above, where that has the bit.
                Attributes::implicit().apply(at.as_fd())?;
                let path = dir.get(..done).unwrap_or(dir);
                self.implicit.0.insert(path.to_vec());
                self.remember_time(path, Time::default());
            }
            done += 1;
        }
        Ok(at)
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

    /// Makes an entry where perhaps something is: the last word of a tar counts.
    fn replace(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        make: impl Fn() -> Result<(), Errno>,
    ) -> Result<()> {
        match make() {
            Err(Errno::EEXIST) => {
                // Some of what is being made may be below it.
                self.settle()?;
                self.trash.remove(parent, name)?;
                // It may have been above the directory that is remembered.
                self.parent = (Vec::new(), Arc::clone(&self.root));
                Ok(make()?)
            }
            done => Ok(done?),
        }
    }

    /// Makes a directory, or keeps the one that is there. In place of a whiteout it hides what
    /// lower layers have below it.
    fn make_dir(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let make = || mkdirat(parent, name, Mode::S_IRWXU);
        match make() {
            Err(Errno::EEXIST) => {}
            done => return done.context("cannot make a directory"),
        }
        let there = stat(parent, name)?;
        if is_type(&there, SFlag::S_IFDIR) {
            return Ok(());
        }
        self.replace(parent, name, make)?;
        if is_whiteout(&there) {
            set_opaque(parent, name)
        } else {
            Ok(())
        }
    }

    fn describe_dir(
        &mut self,
        path: &[u8],
        name: &CStr,
        parent: BorrowedFd<'_>,
        entry: Entry,
    ) -> Result<()> {
        let dir = openat(parent, name, tree::LIST, Mode::empty())?;
        self.remember_time(path, entry.mtime);
        let mut attributes = Attributes::from(entry);
        // What is made in a directory inherits this one, so it is set when everything is there.
        self.default_acls.remove(path);
        attributes.xattrs.retain(|(name, value)| {
            let deferred = name == DEFAULT_ACL;
            if deferred {
                self.default_acls.insert(path.to_vec(), value.clone());
            }
            !deferred
        });
        attributes.apply(dir.as_fd())
    }

    /// Makes a file: a small one sometime, and side by side with others.
    fn make_file(
        &mut self,
        path: &[u8],
        name: CString,
        entry: Entry,
        reader: &mut Reader<impl BufRead>,
    ) -> Result<()> {
        let parent = Arc::clone(&self.parent.1);
        if let Kind::File(size) = entry.kind
            && size <= LARGEST
        {
            let mut data = Vec::with_capacity(usize::try_from(size)?);
            reader.data(|piece| {
                data.extend_from_slice(piece);
                Ok(())
            })?;
            self.writers.add(path, &parent, name, entry, data)?;
            return if self.writers.is_crowded() {
                self.settle()
            } else {
                Ok(())
            };
        }
        let mut file = File::from(self.open_new(parent.as_fd(), &name, &entry)?);
        reader.data(|piece| Ok(file.write_all(piece)?))?;
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
            path,
            dir,
            name,
            entry,
            data,
            ..
        } in self.writers.settle()?
        {
            let made = self.open_new(dir.as_fd(), &name, &entry);
            made.and_then(|file| files::fill(file, &data, &entry))
                .map_err(|error| files::at(&path, error))?;
        }
        Ok(())
    }

    fn make_link(&mut self, parent: BorrowedFd<'_>, name: &CStr, target: &[u8]) -> Result<()> {
        let path = normal(target)?;
        let file = match self.below(&path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC) {
            Err(Errno::ENOENT) => {
                let target = target.escape_ascii();
                return Err(fault::setup(format!(
                    "its hard link target {target} is in another layer"
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

    fn remember_time(&mut self, path: &[u8], time: Time) {
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
            let time = Time {
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

/// A relative path without `.`, empty elements and slashes at its ends.
fn normal(path: &[u8]) -> Result<Vec<u8>> {
    let mut normal = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => bail!(fault::setup("the path leads out of the layer")),
            name => {
                normal.extend_from_slice(if normal.is_empty() { b"" } else { b"/" });
                normal.extend_from_slice(name);
            }
        }
    }
    Ok(normal)
}

/// Whether it belongs to an older union file system, whose notes mean nothing here.
fn is_metadata(path: &[u8]) -> bool {
    let marked = |name: &[u8]| name.starts_with(WHITEOUT_META);
    let mut names = path.rsplit(|byte| *byte == b'/');
    let last = names.next().filter(|name| *name != OPAQUE);
    last.is_some_and(marked) || names.any(marked)
}

/// Directory and name; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((path.get(..at)?, path.get(at + 1..)?)),
        None => Some((b"".as_slice(), path)).filter(|_| !path.is_empty()),
    }
}

fn plain(name: &[u8]) -> Result<CString> {
    let special = matches!(name, b"" | b"." | b"..");
    ensure!(
        !special && !name.contains(&b'/'),
        fault::setup("this is no name")
    );
    CString::new(name).map_err(|_| fault::setup("a name holds a NUL byte"))
}

fn stat(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Marks a name as removed. If this layer itself has something there, that stays and hides.
fn whiteout(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
        Err(Errno::EEXIST) if is_type(&stat(parent, name)?, SFlag::S_IFDIR) => {
            set_opaque(parent, name)
        }
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).context("cannot make a whiteout"),
    }
}

#[cfg(test)]
mod tests;
