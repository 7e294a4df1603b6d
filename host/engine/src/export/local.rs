//! Writes the files of a result into a directory.
//!
//! The law: nothing outside of the directory is changed, whatever links the image or the directory
//! contains. Every name is used relative to the descriptor of its parent, no link is followed, and a
//! non-directory in place of a directory is replaced.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, geteuid, linkat, symlinkat};
use store::{Entry, EntryKind, Mtime};
use xattr::FileExt;

use super::replace::{self, replacing};
use super::rights::{LocalRights, Rights};
use super::{ExportError, Job, target, tree};
use crate::event::Progress;
use crate::rootfs::{Found, Inode, Rootfs, path};

/// Name of the file that marks a directory while a result is merged into it. It stays if that is
/// interrupted.
pub(super) const MARK: &str = ".cofferdam-incomplete";
/// Flags for creating a file.
const NEW_FILE: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Writes all of `root` into `dest`. Returns warnings.
pub(super) fn write(
    job: &Job<'_>,
    root: &Rootfs,
    epoch: Option<i64>,
    rights: LocalRights,
    dest: &Path,
) -> Result<Vec<String>, ExportError> {
    if check_dir(dest)? {
        return merge(job, root, epoch, rights, dest);
    }
    target::new_dir(job.store, dest, |dir| {
        let warnings = fill(job, root, epoch, rights, dir)?;
        let top = root.top().entry;
        set_mode_of_new(dir, top).map_err(|error| target::write_error(dir, error))?;
        Ok(warnings)
    })
}

/// Whether the directory exists. Anything else of that name is an error.
pub(super) fn check_dir(dest: &Path) -> Result<bool, ExportError> {
    match fs::metadata(dest) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(ExportError::Target {
            path: dest.to_owned(),
            reason: "it is not a directory; choose a directory".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(target::write_error(dest, error)),
    }
}

fn set_mode_of_new(dir: &Path, top: &Entry) -> io::Result<()> {
    let dir = File::open(dir)?;
    // The owner must be able to access the result.
    fchmod(&dir, Mode::from_bits_truncate((top.mode & 0o777) | 0o700))?;
    Ok(())
}

fn merge(
    job: &Job<'_>,
    root: &Rootfs,
    epoch: Option<i64>,
    rights: LocalRights,
    dest: &Path,
) -> Result<Vec<String>, ExportError> {
    let mark = dest.join(MARK);
    set_mark(dest).map_err(|error| target::write_error(&mark, error))?;
    let warnings = fill(job, root, epoch, rights, dest)?;
    target::sync_all(dest)?;
    fs::remove_file(&mark).map_err(|error| target::write_error(&mark, error))?;
    target::sync_dir(dest)?;
    Ok(warnings)
}

/// Writes the mark durably. Whatever has its name is not opened: it may be a link, or a pipe that
/// nobody reads.
fn set_mark(dest: &Path) -> io::Result<()> {
    let dir = OwnedFd::from(File::open(dest)?);
    let name = OsStr::new(MARK);
    // The mark of an interrupted export stays all the time.
    if replace::is_file(&dir, name)? {
        return Ok(());
    }
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = replacing(&dir, name, || openat(&dir, name, NEW_FILE, mode))?;
    let mut file = File::from(file);
    file.write_all(b"A build result is being written here, or was interrupted.\n")?;
    file.sync_all()
}

fn fill(
    job: &Job<'_>,
    root: &Rootfs,
    epoch: Option<i64>,
    rights: LocalRights,
    dest: &Path,
) -> Result<Vec<String>, ExportError> {
    let top = File::open(dest).map_err(|error| target::write_error(dest, error))?;
    let is_root = geteuid().is_root();
    let mut writer = Writer {
        job,
        root,
        dest,
        epoch,
        is_root,
        rights: Rights::new(rights, is_root),
        top: top.into(),
        open: Vec::new(),
        names: HashMap::new(),
        written: 0,
    };
    for (path, found) in root.walk() {
        if job.scope.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        if !path.is_empty() {
            writer.put(&path, found)?;
        }
    }
    while let Some(dir) = writer.open.pop() {
        writer.close(dir)?;
    }
    Ok(writer.rights.warnings())
}

/// A directory that is being written.
struct OpenDir<'a> {
    path: Vec<u8>,
    entry: &'a Entry,
    handle: OwnedFd,
}

struct Writer<'a> {
    job: &'a Job<'a>,
    root: &'a Rootfs,
    dest: &'a Path,
    epoch: Option<i64>,
    is_root: bool,
    rights: Rights,
    top: OwnedFd,
    /// The directories from the top to the current one.
    open: Vec<OpenDir<'a>>,
    names: HashMap<Inode, Vec<u8>>,
    written: u64,
}

impl<'a> Writer<'a> {
    fn put(&mut self, path: &[u8], found: Found<'a>) -> Result<(), ExportError> {
        let (parent, name) = path::split(path);
        self.go_to(parent)?;
        let name = OsStr::from_bytes(name);
        let shown = self.shown(path);
        let fail = |error: io::Error| target::write_error(&shown, error);
        // Before the look for other names: nothing can be linked to what is not made.
        if is_device(&found.entry.kind) && !self.rights.device(|| shown.clone()) {
            return Ok(());
        }
        if let Some(first) = tree::first_name(&mut self.names, path, found) {
            return self.link(&first, name).map_err(fail);
        }
        match &found.entry.kind {
            EntryKind::Directory => {
                let handle = replace::directory(self.parent(), name).map_err(fail)?;
                self.open.push(OpenDir {
                    path: path.to_vec(),
                    entry: found.entry,
                    handle,
                });
                Ok(())
            }
            EntryKind::File { .. } => self.file(path, name, found),
            EntryKind::Symlink { target } => self.symlink(name, target, found.entry).map_err(fail),
            EntryKind::Fifo => self.node(path, name, SFlag::S_IFIFO, 0, found),
            EntryKind::CharDevice { major, minor } => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                self.node(path, name, SFlag::S_IFCHR, device, found)
            }
            EntryKind::BlockDevice { major, minor } => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                self.node(path, name, SFlag::S_IFBLK, device, found)
            }
            // The merged view shows none of these.
            EntryKind::Hardlink { .. } | EntryKind::Whiteout | EntryKind::Opaque => Ok(()),
        }
    }

    /// Closes directories until `parent` is the innermost open one.
    fn go_to(&mut self, parent: &[u8]) -> Result<(), ExportError> {
        while let Some(dir) = self.open.pop_if(|dir| dir.path != parent) {
            self.close(dir)?;
        }
        Ok(())
    }

    /// Sets the metadata of a directory, which writing into it would change or which would prevent
    /// writing.
    fn close(&mut self, dir: OpenDir<'a>) -> Result<(), ExportError> {
        let handle = File::from(dir.handle);
        self.finish(&dir.path, &handle, dir.entry)
            .map_err(|error| target::write_error(&self.shown(&dir.path), error))
    }

    fn parent(&self) -> &OwnedFd {
        self.open.last().map_or(&self.top, |dir| &dir.handle)
    }

    fn file(&mut self, path: &[u8], name: &OsStr, found: Found<'a>) -> Result<(), ExportError> {
        let shown = self.shown(path);
        let fail = |error: io::Error| target::write_error(&shown, error);
        let parent = self.parent();
        let file = replacing(parent, name, || {
            openat(parent, name, NEW_FILE, Mode::S_IRUSR | Mode::S_IWUSR)
        });
        let mut out = BufWriter::new(File::from(file.map_err(fail)?));
        let job = self.job;
        let mut written = self.written;
        tree::copy(self.root, found, job.scope, &mut out, &mut |count| {
            written = written.saturating_add(count);
            (job.progress)(Progress {
                what: "writing files".to_owned(),
                current: written,
                total: 0,
            });
        })
        .map_err(|error| error.at(fail))?;
        self.written = written;
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        self.finish(path, &file, found.entry).map_err(fail)
    }

    fn symlink(&self, name: &OsStr, target: &[u8], entry: &Entry) -> io::Result<()> {
        let parent = self.parent();
        let target = OsStr::from_bytes(target);
        replacing(parent, name, || symlinkat(target, parent, name))?;
        if self.is_root {
            let (uid, gid) = owner(entry);
            fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        let time = self.time(entry);
        Ok(utimensat(
            parent,
            name,
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        )?)
    }

    /// A pipe or a device. Only root may make devices.
    fn node(
        &mut self,
        path: &[u8],
        name: &OsStr,
        kind: SFlag,
        device: u64,
        found: Found<'a>,
    ) -> Result<(), ExportError> {
        let entry = found.entry;
        let shown = self.shown(path);
        let fail = |error: io::Error| target::write_error(&shown, error);
        let parent = self.parent();
        let mode = Mode::from_bits_truncate(entry.mode & 0o1777);
        let made = replacing(parent, name, || mknodat(parent, name, kind, mode, device));
        if made
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(Errno::EPERM as i32))
        {
            self.rights.refused_device(&shown);
            // Another name of it cannot be linked to this one.
            if let Some(inode) = found.inode() {
                self.names.remove(&inode);
            }
            return Ok(());
        }
        made.and_then(|()| self.finish_node(name, mode, entry))
            .map_err(fail)
    }

    /// Sets owner, mode (because of the umask) and time.
    fn finish_node(&self, name: &OsStr, mode: Mode, entry: &Entry) -> io::Result<()> {
        let parent = self.parent();
        if self.is_root {
            let (uid, gid) = owner(entry);
            fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        fchmodat(parent, name, mode, FchmodatFlags::NoFollowSymlink)?;
        let time = self.time(entry);
        Ok(utimensat(
            parent,
            name,
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        )?)
    }

    /// Another name for a file that is already written.
    fn link(&self, first: &[u8], name: &OsStr) -> io::Result<()> {
        let (dir, first_name) = path::split(first);
        let mut at = self.top.try_clone()?;
        for element in path::elements(dir) {
            at = replace::open_directory(&at, OsStr::from_bytes(element))?;
        }
        let parent = self.parent();
        replacing(parent, name, || {
            linkat(
                &at,
                OsStr::from_bytes(first_name),
                parent,
                name,
                AtFlags::empty(),
            )
        })
    }

    /// Sets owner, attributes, mode and time, in this order, because each can reset those after it.
    fn finish(&mut self, path: &[u8], file: &File, entry: &Entry) -> io::Result<()> {
        let shown = self.shown(path);
        if self.is_root {
            let (uid, gid) = owner(entry);
            fchown(file, uid, gid)?;
        }
        for (name, value) in &entry.xattrs {
            if self.rights.attribute(&shown, name)
                && let Err(error) = file.set_xattr(OsStr::from_bytes(name), value)
            {
                self.rights.refused_attribute(&shown, name, &error);
            }
        }
        let is_directory = matches!(entry.kind, EntryKind::Directory);
        let mode = self.rights.mode(&shown, entry.mode & 0o7777, is_directory);
        fchmod(file, Mode::from_bits_truncate(mode))?;
        let time = self.time(entry);
        Ok(futimens(file, &time, &time)?)
    }

    fn time(&self, entry: &Entry) -> TimeSpec {
        let mtime = self
            .epoch
            .map_or(entry.mtime, |secs| Mtime { secs, nanos: 0 });
        TimeSpec::new(mtime.secs, i64::from(mtime.nanos))
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.dest.join(OsStr::from_bytes(path))
    }
}

fn is_device(kind: &EntryKind) -> bool {
    matches!(
        kind,
        EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. }
    )
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
}
