//! Making files, and what they have beside their content.

use std::ffi::{CStr, OsStr};
use std::fmt;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, makedev, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::archive::{Entry, Kind, Time};
use crate::fault;

/// Attributes that belong to overlayfs: a layer that brought its own could redirect lookups.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// What a directory or file has beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// What a directory gets that no entry describes.
    pub(crate) const fn implicit() -> Self {
        let mtime = Time { secs: 0, nanos: 0 };
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime,
            xattrs: Vec::new(),
        }
    }
}

/// The entry of a layer at which something went wrong.
#[derive(Debug)]
struct Place(Vec<u8>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer entry {}", self.0.escape_ascii())
    }
}

/// Says at which entry something went wrong, if the error does not say so itself.
pub(super) fn at(path: &[u8], error: anyhow::Error) -> anyhow::Error {
    if error.is::<Place>() {
        error
    } else {
        error.context(Place(path.to_vec()))
    }
}

/// Makes a regular file that is not there yet.
pub(super) fn open_new(
    parent: BorrowedFd<'_>,
    name: &CStr,
    entry: &Entry,
) -> Result<OwnedFd, Errno> {
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let flags = new | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, mode(entry.mode & 0o777))
}

/// Writes all of a new file.
pub(super) fn fill(file: OwnedFd, data: &[u8], entry: &Entry) -> Result<()> {
    let mut file = File::from(file);
    file.write_all(data)?;
    describe_new(file.as_fd(), entry)
}

/// Sets what a new file has beside its content.
pub(super) fn describe_new(file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    // Also for root: in a directory with the set-group-id bit a new file has its group.
    chown(file, entry.uid, entry.gid)?;
    set_xattrs(file, &entry.xattrs)?;
    // The umask is zero, so other bits than these are in place already.
    if entry.mode & 0o7000 != 0 {
        fchmod(file, mode(entry.mode))?;
    }
    set_time(file, entry.mtime)
}

/// Makes a symbolic link, device or pipe that is not there yet.
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
        Kind::Symlink(target) => symlinkat(target.as_slice(), parent, name),
        // This is how overlayfs marks what is removed; a tar has another way to say so.
        Kind::Char(0, 0) => Err(Errno::EINVAL),
        Kind::Char(major, minor) => device(SFlag::S_IFCHR, *major, *minor),
        Kind::Block(major, minor) => device(SFlag::S_IFBLK, *major, *minor),
        Kind::Fifo => device(SFlag::S_IFIFO, 0, 0),
        Kind::File(_) | Kind::Directory | Kind::Hardlink(_) => Err(Errno::EINVAL),
    }
}

/// Sets what a symbolic link, device or pipe has; none of them can be opened for that.
pub(super) fn describe_special(parent: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<()> {
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, name, Some(uid), Some(gid), nofollow).context("cannot set the owner")?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !entry.xattrs.is_empty() {
        let file = openat(parent, name, flags, Mode::empty())?;
        set_xattrs(file.as_fd(), &entry.xattrs)?;
    }
    if !matches!(entry.kind, Kind::Symlink(_)) && entry.mode & 0o7000 != 0 {
        let file = openat(parent, name, flags, Mode::empty())?;
        std::fs::set_permissions(by_number(file.as_fd()), Permissions::from_mode(entry.mode))?;
    }
    let time = timespec(entry.mtime);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .context("cannot set the time")
}

/// What an entry says about a file.
pub(super) fn attributes(entry: Entry) -> Attributes {
    let Entry {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
        ..
    } = entry;
    Attributes {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    }
}

/// Sets all but the time of an open file or directory.
pub(crate) fn describe(file: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
    chown(file, attributes.uid, attributes.gid)?;
    set_xattrs(file, &attributes.xattrs)?;
    fchmod(file, mode(attributes.mode)).context("cannot set the mode")
}

fn chown(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::fchown(file, Some(uid), Some(gid)).context("cannot set the owner")
}

/// Sets extended attributes of an open file.
pub(super) fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    for (name, value) in xattrs {
        let shown = name.escape_ascii();
        ensure!(
            !name.starts_with(OVERLAY_XATTRS),
            fault::setup(format!(
                "attribute {shown} belongs to the file system of the builder"
            ))
        );
        xattr::set_deref(by_number(file), OsStr::from_bytes(name), value)
            .with_context(|| format!("cannot set attribute {shown}"))?;
    }
    Ok(())
}

/// Sets the time of an open file.
pub(crate) fn set_time(file: BorrowedFd<'_>, time: Time) -> Result<()> {
    let time = timespec(time);
    nix::sys::stat::futimens(file, &time, &time).context("cannot set the time")
}

fn timespec(time: Time) -> TimeSpec {
    TimeSpec::new(time.secs, time.nanos.into())
}

/// A path that leads to an open file, also to one opened by `O_PATH`.
pub(crate) fn by_number(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Permission bits as the calls take them.
pub(super) const fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}
