//! The marks of overlayfs: whiteouts and opaque directories.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use nix::fcntl::openat;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::{fd_path, is_type};
use crate::tree;

/// The extended attribute that marks a directory as opaque: lower layers do not show in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Prefix of the extended attributes that belong to overlayfs.
pub(super) const PREFIX: &[u8] = b"trusted.overlay.";

/// Extended attributes that mark content stored elsewhere. The mount options rule them out; a
/// tar of such a tree would lack the content.
pub(super) const ELSEWHERE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Whether this file is a whiteout, which removes a name of lower layers.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    is_type(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

/// Whether this is an opaque directory.
pub(crate) fn is_opaque(file: BorrowedFd<'_>) -> Result<bool> {
    if !is_type(&fstat(file)?, SFlag::S_IFDIR) {
        return Ok(false);
    }
    Ok(xattr::get_deref(fd_path(file), OPAQUE_XATTR)?.is_some_and(|value| value == b"y"))
}

/// Marks a directory as opaque.
pub(crate) fn set_opaque(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let dir = openat(parent, name, tree::LIST, Mode::empty())?;
    let set = xattr::set_deref(fd_path(dir.as_fd()), OPAQUE_XATTR, b"y");
    set.context("cannot mark a directory as opaque")
}

/// Removes the mark of an opaque directory.
pub(crate) fn clear_opaque(dir: BorrowedFd<'_>) -> Result<()> {
    let cleared = xattr::remove_deref(fd_path(dir), OPAQUE_XATTR);
    cleared.context("cannot clear the mark of an opaque directory")
}
