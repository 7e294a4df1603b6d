//! The changes of a step as a layer tar.
//!
//! Walks an upper directory of overlayfs after all processes of the step are dead. A file that
//! vanishes or shrinks meanwhile is an error, never a hole. The tree is untrusted, so the walk
//! neither recurses nor follows a link.
//!
//! **Law:** after the walk, tree and tar describe the same layer. A layer has one name, whether it was
//! committed in place or unpacked from its tar; so what the tar leaves out is removed from the tree.

mod lower;
mod names;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use layer::limits::MAX_PATH;
use layer::path::is_reserved;
use layer::{Digest, EntryKind, Style, Writer};
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::attributes::{
    self, Attributes, OnDisk as _, Xattrs, clear_opaque, is_type, is_whiteout, read_xattrs,
    set_time,
};
use crate::fault;
use crate::transport::{self, Fill};
use crate::tree;

pub(crate) use lower::{Lower, look_up};
use names::Names;

/// How much of a path that is too long is shown, in bytes.
const SHOWN: usize = 200;

/// Writes the tar of the changes in `upper`, which was mounted over `lower`. `root` has the
/// attributes of the root directory before the step: the root is in the tar only if more than its
/// time changed.
pub(crate) fn export<W: Fill>(
    upper: OwnedFd,
    lower: &Lower,
    root: &Attributes,
    sink: W,
) -> Result<W> {
    let mut walk = Walk {
        writer: Writer::new(sink, Style::Diff),
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
    /// A lower layer may show through in it.
    merged: bool,
}

struct Walk<'a, W> {
    writer: Writer<W>,
    lower: &'a Lower,
    path: Vec<u8>,
    /// Files with several names, by inode number: the first path, and how many names are left.
    links: HashMap<u64, (Vec<u8>, u64)>,
    stack: Vec<Level>,
}

/// An open file with its attributes.
struct Node {
    file: OwnedFd,
    stat: FileStat,
    xattrs: Xattrs,
    opaque: bool,
}

impl<W: Fill> Walk<'_, W> {
    fn root(&mut self, upper: OwnedFd, before: &Attributes) -> Result<()> {
        let stat = fstat(upper.as_fd())?;
        let node = Node::new(upper, stat)?;
        if differs(&node.attributes(), before) {
            self.write(&EntryKind::Directory, &node.attributes())?;
        }
        self.descend(node, true)
    }

    /// Starts to walk a directory, whose path is the current one.
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
        self.path.extend_from_slice(name.to_bytes());
        if is_whiteout(&stat) && merged {
            return self.write(&EntryKind::Whiteout, &Attributes::default());
        }
        // Where no lower layer shows through, a whiteout removes nothing. A tar cannot hold sockets,
        // and nobody listens on them any more.
        if is_whiteout(&stat) || is_type(&stat, SFlag::S_IFSOCK) {
            return leave_out(level.dir.as_fd(), name);
        }
        check_path(&self.path, name)?;
        if is_type(&stat, SFlag::S_IFDIR) {
            let node = Node::open(level.dir.as_fd(), name, tree::LIST)?;
            return self.directory(node, merged);
        }
        if let Some(first) = self.first_name(&stat) {
            let attributes = Attributes::from_stat(&stat, Vec::new());
            return self.write(&EntryKind::Hardlink { target: first }, &attributes);
        }
        self.leaf(name, &stat)
    }

    fn directory(&mut self, node: Node, merged: bool) -> Result<()> {
        self.write(&EntryKind::Directory, &node.attributes())?;
        let hides = node.opaque && merged && self.lower.has(&self.path)?;
        let merged = merged && !node.opaque;
        if hides {
            self.write(&EntryKind::Opaque, &Attributes::default())?;
        } else if node.opaque {
            // overlayfs marks every directory that is created in a merged one.
            clear_opaque(node.file.as_fd())?;
        }
        self.descend(node, merged)
    }

    /// Writes a file, symbolic link, device or pipe.
    fn leaf(&mut self, name: &CStr, stat: &FileStat) -> Result<()> {
        let Some(level) = self.stack.last() else {
            return Ok(());
        };
        let kind = leaf_kind(level.dir.as_fd(), name, stat)?;
        let how = if matches!(kind, EntryKind::File { .. }) {
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
        self.write(&kind, &node.attributes())?;
        if let EntryKind::File { size, .. } = kind {
            transport::copy(self.writer.out(), &mut File::from(node.file), size)?;
            self.writer.pad(size)?;
        }
        Ok(())
    }

    /// Writes the header of an entry at the current path.
    fn write(&mut self, kind: &EntryKind, attributes: &Attributes) -> Result<()> {
        Ok(self.writer.header(&self.path, attributes, kind)?)
    }

    /// The path under which a file with several names is in the tar already.
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

/// The type of a file that is not a directory.
fn leaf_kind(dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<EntryKind> {
    let numbers = || -> Result<(u32, u32)> {
        Ok((
            u32::try_from(major(stat.st_rdev))?,
            u32::try_from(minor(stat.st_rdev))?,
        ))
    };
    Ok(
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => EntryKind::File {
                size: u64::try_from(stat.st_size)?,
                digest: Digest::UNKNOWN,
                offset: 0,
            },
            SFlag::S_IFLNK => EntryKind::Symlink {
                target: readlinkat(dir, name)?.as_bytes().to_vec(),
            },
            SFlag::S_IFCHR => {
                numbers().map(|(major, minor)| EntryKind::CharDevice { major, minor })?
            }
            SFlag::S_IFBLK => {
                numbers().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?
            }
            SFlag::S_IFIFO => EntryKind::Fifo,
            unknown => bail!("unknown file type: {unknown:?}"),
        },
    )
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
        Attributes::from_stat(&self.stat, self.xattrs.clone())
    }
}

/// Checks that a layer can hold this path. If not, it is the step's own mistake.
fn check_path(path: &[u8], name: &CStr) -> Result<()> {
    let shown = || {
        let end = path.len().min(SHOWN);
        path.get(..end).unwrap_or_default().escape_ascii()
    };
    ensure!(
        !is_reserved(name.to_bytes()),
        fault::setup(format!(
            "the step created /{}: names starting with .wh. are reserved for whiteouts; rename or remove it",
            shown()
        ))
    );
    ensure!(
        path.len() <= MAX_PATH,
        fault::setup(format!(
            "the step created a path of {} bytes, but a layer can hold at most {}: /{}…",
            path.len(),
            MAX_PATH,
            shown()
        ))
    );
    Ok(())
}

/// Whether [`export`] writes the root directory into the tar.
pub(crate) fn root_changed(upper: BorrowedFd<'_>, before: &Attributes) -> Result<bool> {
    Ok(differs(&Attributes::read(upper)?, before))
}

/// Whether more than the time differs. The time of the root changes with every entry in it.
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

/// Removes a name without changing the time of its directory, which is in the tar already.
fn leave_out(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let before = attributes::mtime(&fstat(dir)?);
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    set_time(dir, before)
}

#[cfg(test)]
mod tests;
