//! The changes of a step as a layer tar.
//!
//! Walks an upper directory of overlayfs after all processes of the step are dead. A file that
//! vanishes or shrinks meanwhile is an error, never a hole. The tree is untrusted, so the walk
//! neither recurses nor follows a link.
//!
//! **Law:** after the walk, tree and tar describe the same layer. A layer has one name, whether it was
//! committed in place or unpacked from its tar; so what the tar leaves out is removed from the tree.
//!
//! What no layer can hold is the step's own failure. The walk finds it by the rules by which the host
//! takes layers in ([`Tally`]), and before it sends the data: the host would only see a bad layer.

mod lower;
mod names;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Result, bail, ensure};
use layer::{Digest, EntryKind, Style, Tally, Unfit, Writer, attribute_bytes};
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::attributes::{
    self, Attributes, OnDisk as _, Xattrs, clear_opaque, is_type, is_whiteout, read_xattrs,
    set_time,
};
use crate::fault::{self, Fault};
use crate::transport::{self, Fill};
use crate::tree;

pub(crate) use lower::{Lower, look_up};
use names::Names;

/// How much of a path is shown, in bytes.
const SHOWN: usize = 200;

/// Writes the tar of the changes in `upper`, which was mounted over `lower`. `root` has the
/// attributes of the root directory before the step: the root is in the tar only if more than its
/// time changed. The tar has at most `most` bytes.
pub(crate) fn export<W: Fill>(
    upper: OwnedFd,
    lower: &Lower,
    root: &Attributes,
    most: u64,
    sink: W,
) -> Result<W> {
    let mut walk = Walk {
        writer: Writer::new(sink, Style::Diff),
        tally: Tally::up_to(most),
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
                walk.entry(&name).map_err(|error| {
                    // A fault says all that there is to say.
                    if error.is::<Fault>() {
                        error
                    } else {
                        error.context(format!("cannot read {shown}"))
                    }
                })?;
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
    tally: Tally,
    lower: &'a Lower,
    path: Vec<u8>,
    /// Files with several names, by inode number.
    links: HashMap<u64, Linked>,
    stack: Vec<Level>,
}

/// A file with several names.
struct Linked {
    /// The path under which it is in the tar.
    first: Vec<u8>,
    /// How many names are still to come.
    left: u64,
    /// Bytes of its extended attributes.
    attributes: u64,
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
        if is_type(&stat, SFlag::S_IFDIR) {
            let node = Node::open(level.dir.as_fd(), name, tree::LIST)?;
            return self.directory(node, merged);
        }
        if let Some((target, bytes)) = self.first_name(&stat) {
            let kind = EntryKind::Hardlink { target };
            let added = self.tally.add_link(bytes);
            added.map_err(|why| self.refuse(&kind, &why))?;
            return self.write(&kind, &Attributes::from_stat(&stat, Vec::new()));
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
        if stat.st_nlink > 1 {
            let linked = Linked {
                first: self.path.clone(),
                left: stat.st_nlink - 1,
                attributes: attribute_bytes(&node.xattrs),
            };
            self.links.insert(stat.st_ino, linked);
        }
        if let EntryKind::File { size, .. } = kind {
            transport::copy(self.writer.out(), &mut File::from(node.file), size)?;
            self.writer.pad(size)?;
        }
        Ok(())
    }

    /// Writes the header of an entry at the current path, if the layer can hold it.
    fn write(&mut self, kind: &EntryKind, attributes: &Attributes) -> Result<()> {
        self.count(kind, attributes)
            .map_err(|why| self.refuse(kind, &why))?;
        self.writer.header(&self.path, attributes, kind)?;
        // Now exactly, with the header. The data is not sent yet.
        let fits = self.tally.reaches(self.writer.length());
        fits.map_err(|why| self.refuse(kind, &why))
    }

    fn count(&mut self, kind: &EntryKind, attributes: &Attributes) -> Result<(), Unfit> {
        // What the host takes is usually less than what a layer can hold, so that is said first.
        if let EntryKind::File { size, .. } = kind {
            self.tally
                .reaches(self.writer.length().saturating_add(*size))?;
        }
        self.tally.add(&self.path, attributes, kind)
    }

    /// The failure of a step that made something that no layer can hold.
    fn refuse(&self, kind: &EntryKind, why: &Unfit) -> anyhow::Error {
        let did = if *kind == EntryKind::Whiteout {
            "removed"
        } else {
            "made"
        };
        let path = match self.path.get(..SHOWN) {
            Some(begin) if self.path.len() > SHOWN => format!("{}…", begin.escape_ascii()),
            Some(_) | None => self.path.escape_ascii().to_string(),
        };
        let text = format!("the step {did} /{path}: {why}; {}", why.advice());
        if why.is_limit() {
            fault::too_large(text)
        } else {
            fault::unfit(text)
        }
    }

    /// The path under which a file with several names is in the tar already, and the bytes of its
    /// extended attributes.
    fn first_name(&mut self, stat: &FileStat) -> Option<(Vec<u8>, u64)> {
        if stat.st_nlink <= 1 {
            return None;
        }
        let linked = self.links.get_mut(&stat.st_ino)?;
        linked.left = linked.left.saturating_sub(1);
        let (first, last) = (linked.first.clone(), linked.left == 0);
        let attributes = linked.attributes;
        if last {
            self.links.remove(&stat.st_ino);
        }
        Some((first, attributes))
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
