//! Attributes of files: everything but the content. They are read and applied here and nowhere else.
//!
//! **Law:** the order of calls matters. The owner comes before mode and capabilities, since changing
//! the owner clears both; the modification time comes last.

mod overlay;
mod xattrs;

use std::ffi::CStr;
use std::fs::Permissions;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use layer::{Entry, EntryKind, Mtime};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

pub(crate) use layer::Attributes;
#[cfg(test)]
pub(crate) use overlay::OPAQUE_XATTR;
pub(crate) use overlay::{clear_opaque, is_opaque, is_whiteout, set_opaque};
pub(crate) use xattrs::{Xattrs, read_xattrs, set_xattrs};

/// Attributes of files on disk, without those of overlayfs.
pub(crate) trait OnDisk: Sized {
    /// Reads the attributes of an open file or directory.
    fn read(file: BorrowedFd<'_>) -> Result<Self>;

    /// Puts together what `stat` and the extended attributes say.
    fn from_stat(stat: &FileStat, xattrs: Xattrs) -> Self;

    /// Applies everything but the time to an open file or directory.
    fn apply(&self, file: BorrowedFd<'_>) -> Result<()>;

    /// Applies everything to an open file or directory.
    fn apply_with_time(&self, file: BorrowedFd<'_>) -> Result<()>;
}

impl OnDisk for Attributes {
    fn read(file: BorrowedFd<'_>) -> Result<Self> {
        let (xattrs, _) = read_xattrs(file)?;
        Ok(Self::from_stat(&fstat(file)?, xattrs))
    }

    fn from_stat(stat: &FileStat, xattrs: Xattrs) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: mtime(stat),
            xattrs,
        }
    }

    fn apply(&self, file: BorrowedFd<'_>) -> Result<()> {
        chown(file, self.uid, self.gid)?;
        set_xattrs(file, &self.xattrs)?;
        fchmod(file, mode(self.mode)).context("cannot set the mode")
    }

    fn apply_with_time(&self, file: BorrowedFd<'_>) -> Result<()> {
        self.apply(file)?;
        set_time(file, self.mtime)
    }
}

/// Applies the attributes of an entry to the regular file that was just created for it.
pub(crate) fn apply_to_new(file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    // Also for root: in a directory with the set-group-id bit a new file has the directory's group.
    chown(file, entry.uid, entry.gid)?;
    set_xattrs(file, &entry.xattrs)?;
    // The umask is zero, so the other bits are set already.
    if entry.mode & 0o7000 != 0 {
        fchmod(file, mode(entry.mode))?;
    }
    set_time(file, entry.mtime)
}

/// Applies the attributes of an entry to the symbolic link, device or pipe that was just created
/// for it. None of them can be opened for reading or writing.
pub(crate) fn apply_to_special(parent: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<()> {
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, name, Some(uid), Some(gid), nofollow).context("cannot set the owner")?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !entry.xattrs.is_empty() {
        let file = openat(parent, name, flags, Mode::empty())?;
        set_xattrs(file.as_fd(), &entry.xattrs)?;
    }
    if !matches!(entry.kind, EntryKind::Symlink { .. }) && entry.mode & 0o7000 != 0 {
        let file = openat(parent, name, flags, Mode::empty())?;
        std::fs::set_permissions(fd_path(file.as_fd()), Permissions::from_mode(entry.mode))?;
    }
    let time = timespec(entry.mtime);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .context("cannot set the modification time")
}

fn chown(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::fchown(file, Some(uid), Some(gid)).context("cannot set the owner")
}

/// Sets the access and modification time of an open file.
pub(crate) fn set_time(file: BorrowedFd<'_>, time: Mtime) -> Result<()> {
    let time = timespec(time);
    nix::sys::stat::futimens(file, &time, &time).context("cannot set the modification time")
}

fn timespec(time: Mtime) -> TimeSpec {
    TimeSpec::new(time.secs, time.nanos.into())
}

/// The modification time of a file.
pub(crate) fn mtime(stat: &FileStat) -> Mtime {
    Mtime {
        secs: stat.st_mtime,
        nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// Whether a file is of this type.
pub(crate) fn is_type(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Permission bits as system calls take them.
pub(crate) const fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

/// A path that leads to an open file, even to one that was opened with `O_PATH`.
fn fd_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
