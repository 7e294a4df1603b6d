//! The changes of a step as a layer tar.
//!
//! Walks an upper directory of overlayfs after all processes of the step are dead. What the walk
//! sees is what there is: a file that vanishes or shrinks meanwhile is an error, never a hole. The
//! tree is a stranger's, so the walk neither recurses nor follows a link.
//!
//! The law: when it is done, tree and tar say the same. A layer has one name, whether it was sealed
//! in place or unpacked from its tar; so what is left out of the tar is taken out of the tree.

mod lower;
mod names;

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::{UnlinkatFlags, unlinkat};
use wire::limits::MAX_PATH;

use crate::archive::{Entry, Fill, Kind, OPAQUE, Time, WHITEOUT, Writer};
use crate::fault;
use crate::layers::{Attributes, OPAQUE_XATTR, by_number, is_type, is_whiteout, set_time};
use crate::tree;

pub(crate) use lower::{Lower, look};
use names::Names;

/// How much of a path that is too long is shown, in bytes.
const SHOWN: usize = 200;

/// Attributes that belong to overlayfs.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Attributes of overlayfs that say: the content is elsewhere. They must not occur, since the
/// mount says so; a tar of such a tree would lack what they refer to.
const ELSEWHERE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Writes the tar of the changes in `upper`. `lower` is what it was mounted over; `root` what the
/// root directory was like before the step: it is only in the tar if more than its time changed.
pub(crate) fn take<W: Fill>(
    upper: OwnedFd,
    lower: &Lower,
    root: &Attributes,
    sink: W,
) -> Result<W> {
    let mut walk = Walk {
        writer: Writer::new(sink),
        lower,
        path: Vec::new(),
        links: HashMap::new(),
        stack: Vec::new(),
    };
    walk.root(upper, root)?;
    while let Some(level) = walk.stack.last_mut() {
        match level.names.next() {
            Some(name) => {
                let level_path = level.path;
                walk.path.truncate(level_path);
                let shown = name.to_bytes().escape_ascii().to_string();
                walk.entry(&name)
                    .with_context(|| format!("cannot read {shown}"))?;
            }
            None => drop(walk.stack.pop()),
        }
    }
    Ok(walk.writer.finish()?)
}

/// A directory that is being walked.
struct Level {
    dir: OwnedFd,
    /// Length of its path.
    path: usize,
    names: Names,
    /// A lower layer may have something in it.
    merged: bool,
}

struct Walk<'a, W> {
    writer: Writer<W>,
    lower: &'a Lower,
    path: Vec<u8>,
    /// First path of files with several names that were not all met yet, and how many are left.
    links: HashMap<u64, (Vec<u8>, u64)>,
    stack: Vec<Level>,
}

/// An open file and what it is.
struct Node {
    file: OwnedFd,
    stat: FileStat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: bool,
}

impl<W: Fill> Walk<'_, W> {
    fn root(&mut self, upper: OwnedFd, before: &Attributes) -> Result<()> {
        let stat = fstat(upper.as_fd())?;
        let node = Node::new(upper, stat)?;
        if differs(&node.attributes(), before) {
            self.writer
                .entry(&with_path(b".", Kind::Directory, node.attributes()))?;
        }
        self.descend(node, true)
    }

    /// Begins to walk a directory, whose path is the current one.
    fn descend(&mut self, node: Node, merged: bool) -> Result<()> {
        let names = Names::read(node.file.as_fd())?;
        self.stack.push(Level {
            dir: node.file,
            path: self.path.len(),
            names,
            merged,
        });
        Ok(())
    }

    /// Writes an entry of the directory on top of the stack.
    fn entry(&mut self, name: &CStr) -> Result<()> {
        let Some(level) = self.stack.last() else {
            return Ok(());
        };
        let merged = level.merged;
        let stat = fstatat(level.dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let separator: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        self.path.extend_from_slice(separator);
        if is_whiteout(&stat) && merged {
            return self.mark(&[WHITEOUT, name.to_bytes()].concat());
        }
        // Where no lower layer shows through there is nothing to remove. No tar can hold a socket,
        // and nobody listens on it any more.
        if is_whiteout(&stat) || is_type(&stat, SFlag::S_IFSOCK) {
            return leave_out(level.dir.as_fd(), name);
        }
        self.path.extend_from_slice(name.to_bytes());
        check_path(&self.path, name)?;
        if is_type(&stat, SFlag::S_IFDIR) {
            let node = Node::open(level.dir.as_fd(), name, tree::LIST)?;
            return self.directory(node, merged);
        }
        if let Some(first) = self.first_name(&stat) {
            let entry = with_path(
                &self.path,
                Kind::Hardlink(first),
                attributes(&stat, Vec::new()),
            );
            return Ok(self.writer.entry(&entry)?);
        }
        self.leaf(name, &stat)
    }

    fn directory(&mut self, node: Node, merged: bool) -> Result<()> {
        self.writer
            .entry(&with_path(&self.path, Kind::Directory, node.attributes()))?;
        let hides = node.opaque && merged && self.lower.has(&self.path)?;
        let merged = merged && !node.opaque;
        if hides {
            let length = self.path.len();
            self.path.push(b'/');
            self.mark(OPAQUE)?;
            self.path.truncate(length);
        } else if node.opaque {
            // Overlayfs marks every directory that is made in a merged one.
            xattr::remove_deref(by_number(node.file.as_fd()), OPAQUE_XATTR)?;
        }
        self.descend(node, merged)
    }

    /// Writes a file, link, device or pipe.
    fn leaf(&mut self, name: &CStr, stat: &FileStat) -> Result<()> {
        let Some(level) = self.stack.last() else {
            return Ok(());
        };
        let numbers = || -> Result<(u32, u32)> {
            Ok((
                u32::try_from(major(stat.st_rdev))?,
                u32::try_from(minor(stat.st_rdev))?,
            ))
        };
        let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Kind::File(u64::try_from(stat.st_size)?),
            SFlag::S_IFLNK => {
                Kind::Symlink(readlinkat(level.dir.as_fd(), name)?.as_bytes().to_vec())
            }
            SFlag::S_IFCHR => numbers().map(|(major, minor)| Kind::Char(major, minor))?,
            SFlag::S_IFBLK => numbers().map(|(major, minor)| Kind::Block(major, minor))?,
            SFlag::S_IFIFO => Kind::Fifo,
            unknown => bail!("unknown type of file: {unknown:?}"),
        };
        let how = if matches!(kind, Kind::File(_)) {
            OFlag::O_RDONLY
        } else {
            OFlag::O_PATH
        };
        let node = Node::open(
            level.dir.as_fd(),
            name,
            how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        )?;
        ensure!(
            node.stat.st_ino == stat.st_ino,
            "the file changed while it was read"
        );
        self.writer
            .entry(&with_path(&self.path, kind.clone(), node.attributes()))?;
        if let Kind::File(size) = kind {
            self.writer.data(&mut File::from(node.file), size)?;
        }
        Ok(())
    }

    /// Writes a mark, an empty file whose name says everything, in the current directory.
    fn mark(&mut self, name: &[u8]) -> Result<()> {
        let path = [&self.path, name].concat();
        Ok(self
            .writer
            .entry(&with_path(&path, Kind::File(0), Attributes::default()))?)
    }

    /// The name under which a file is in the tar already.
    fn first_name(&mut self, stat: &FileStat) -> Option<Vec<u8>> {
        if stat.st_nlink <= 1 {
            return None;
        }
        let Some((first, left)) = self.links.get_mut(&stat.st_ino) else {
            self.links
                .insert(stat.st_ino, (self.path.clone(), stat.st_nlink - 1));
            return None;
        };
        *left -= 1;
        let (first, last) = (first.clone(), *left == 0);
        if last {
            self.links.remove(&stat.st_ino);
        }
        Some(first)
    }
}

impl Node {
    fn open(dir: BorrowedFd<'_>, name: &CStr, how: OFlag) -> Result<Self> {
        let file = openat(dir, name, how, Mode::empty())?;
        let stat = fstat(file.as_fd())?;
        Self::new(file, stat)
    }

    fn new(file: OwnedFd, stat: FileStat) -> Result<Self> {
        let (xattrs, opaque) = read_xattrs(file.as_fd())?;
        Ok(Self {
            file,
            stat,
            xattrs,
            opaque,
        })
    }

    fn attributes(&self) -> Attributes {
        attributes(&self.stat, self.xattrs.clone())
    }
}

/// What a layer cannot hold is the step's own mistake, and is said so.
fn check_path(path: &[u8], name: &CStr) -> Result<()> {
    let shown = || {
        let end = path.len().min(SHOWN);
        path.get(..end).unwrap_or_default().escape_ascii()
    };
    ensure!(
        !name.to_bytes().starts_with(WHITEOUT),
        fault::setup(format!(
            "the step left /{}: in a layer, a name that begins with .wh. means that something is removed",
            shown()
        ))
    );
    ensure!(
        path.len() < MAX_PATH,
        fault::setup(format!(
            "the step left a path of {} bytes, and a layer can hold {}: /{}…",
            path.len(),
            MAX_PATH - 1,
            shown()
        ))
    );
    Ok(())
}

/// Whether the root directory is in the tar that [`take`] writes.
pub(crate) fn root_changed(upper: BorrowedFd<'_>, before: &Attributes) -> Result<bool> {
    Ok(differs(&describe(upper)?, before))
}

/// Whether more than the time differs: that of the root changes with every entry.
fn differs(now: &Attributes, before: &Attributes) -> bool {
    let Attributes {
        mode,
        uid,
        gid,
        mtime: _,
        xattrs,
    } = now;
    (mode, uid, gid, xattrs) != (&before.mode, &before.uid, &before.gid, &before.xattrs)
}

/// Removes a name without a trace in the time of its directory, which is in the tar already.
fn leave_out(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let before = attributes(&fstat(dir)?, Vec::new());
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    set_time(dir, before.mtime)
}

/// What an open directory has beside its content, without the attributes of overlayfs.
pub(crate) fn describe(dir: BorrowedFd<'_>) -> Result<Attributes> {
    let (xattrs, _) = read_xattrs(dir)?;
    Ok(attributes(&fstat(dir)?, xattrs))
}

/// The extended attributes of a file, sorted and without those of overlayfs, and whether it is
/// marked opaque.
#[expect(clippy::type_complexity, reason = "a list of pairs and a flag")]
fn read_xattrs(file: BorrowedFd<'_>) -> Result<(Vec<(Vec<u8>, Vec<u8>)>, bool)> {
    let path = by_number(file);
    let names = match xattr::list_deref(&path) {
        // A file system without them has none.
        Err(err) if err.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            return Ok((Vec::new(), false));
        }
        names => names.context("cannot list attributes")?,
    };
    let (mut xattrs, mut opaque) = (Vec::new(), false);
    for name in names {
        let bytes = name.as_bytes();
        if bytes == OPAQUE_XATTR.as_bytes() {
            opaque = value(&path, &name)? == b"y";
        }
        ensure!(
            !ELSEWHERE.contains(&bytes),
            "its content is elsewhere, says {name:?}"
        );
        ensure!(
            !bytes.contains(&b'='),
            fault::setup(format!("no layer can hold the attribute {name:?}"))
        );
        if !bytes.starts_with(OVERLAY) {
            xattrs.push((bytes.to_vec(), value(&path, &name)?));
        }
    }
    xattrs.sort();
    Ok((xattrs, opaque))
}

fn value(path: &str, name: &OsStr) -> io::Result<Vec<u8>> {
    let vanished = || io::Error::from(io::ErrorKind::NotFound);
    xattr::get_deref(path, name)?.ok_or_else(vanished)
}

fn attributes(stat: &FileStat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
    let mtime = Time {
        secs: stat.st_mtime,
        nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    let mode = stat.st_mode & 0o7777;
    Attributes {
        mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime,
        xattrs,
    }
}

fn with_path(path: &[u8], kind: Kind, attributes: Attributes) -> Entry {
    let Attributes {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = attributes;
    Entry {
        path: path.to_vec(),
        kind,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    }
}

#[cfg(test)]
mod tests;
