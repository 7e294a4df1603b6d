//! Creating files, one function for each kind.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;
use layer::{Entry, EntryKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{SFlag, makedev, mknodat};
use nix::unistd::symlinkat;

use crate::attributes::{apply_to_new, mode};

/// The entry of a layer that could not be unpacked.
#[derive(Debug)]
struct FailedEntry(Vec<u8>);

impl fmt::Display for FailedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer entry {}", self.0.escape_ascii())
    }
}

/// Adds the path of the entry to an error, unless the error names an entry already.
pub(super) fn at(path: &[u8], error: anyhow::Error) -> anyhow::Error {
    if error.is::<FailedEntry>() {
        error
    } else {
        error.context(FailedEntry(path.to_vec()))
    }
}

/// Creates a regular file. Its name must be free.
pub(super) fn open_new(
    parent: BorrowedFd<'_>,
    name: &CStr,
    entry: &Entry,
) -> Result<OwnedFd, Errno> {
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let flags = new | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, mode(entry.mode & 0o777))
}

/// Writes the whole content and the attributes of a new file.
pub(super) fn fill(file: OwnedFd, data: &[u8], entry: &Entry) -> Result<()> {
    let mut file = File::from(file);
    file.write_all(data)?;
    apply_to_new(file.as_fd(), entry)
}

/// Creates a symbolic link, device or pipe. Its name must be free.
pub(super) fn make_special(
    parent: BorrowedFd<'_>,
    name: &CStr,
    entry: &Entry,
) -> Result<(), Errno> {
    let permissions = mode(entry.mode);
    let device = |kind, major: u32, minor: u32| {
        mknodat(
            parent,
            name,
            kind,
            permissions,
            makedev(major.into(), minor.into()),
        )
    };
    match &entry.kind {
        EntryKind::Symlink { target } => symlinkat(target.as_slice(), parent, name),
        EntryKind::CharDevice { major, minor } => device(SFlag::S_IFCHR, *major, *minor),
        EntryKind::BlockDevice { major, minor } => device(SFlag::S_IFBLK, *major, *minor),
        EntryKind::Fifo => device(SFlag::S_IFIFO, 0, 0),
        EntryKind::File { .. }
        | EntryKind::Directory
        | EntryKind::Hardlink { .. }
        | EntryKind::Whiteout
        | EntryKind::Opaque => Err(Errno::EINVAL),
    }
}
