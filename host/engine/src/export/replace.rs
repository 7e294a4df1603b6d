//! Creates entries of a directory, replacing those that exist.
//!
//! The law: everything is relative to the descriptor of the directory, and no link is followed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Flags for opening a directory.
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens the directory `name`, which is not a link.
pub(super) fn open_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

/// Opens the directory `name`, which is created if it does not exist.
pub(super) fn directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) => {}
        Err(Errno::EEXIST) if is_directory(&stat(parent, name)?) => {}
        Err(Errno::EEXIST) => {
            clear(parent, name)?;
            mkdirat(parent, name, Mode::S_IRWXU)?;
        }
        Err(error) => return Err(error.into()),
    }
    open_directory(parent, name)
}

/// Creates an entry with `make`, after removing an existing one.
pub(super) fn replacing<T>(
    parent: &OwnedFd,
    name: &OsStr,
    make: impl Fn() -> nix::Result<T>,
) -> io::Result<T> {
    match make() {
        Err(Errno::EEXIST) => {
            clear(parent, name)?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

/// Removes a file, a link or an empty directory.
fn clear(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flag = if is_directory(&stat(parent, name)?) {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    match unlinkat(parent, name, flag) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Err(io::Error::other(
            "a non-empty directory exists there; remove it or choose another dest",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Whether a regular file has this name.
pub(super) fn is_file(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(has_type(&found, SFlag::S_IFREG)),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn stat(parent: &OwnedFd, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

fn is_directory(stat: &FileStat) -> bool {
    has_type(stat, SFlag::S_IFDIR)
}

fn has_type(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}
