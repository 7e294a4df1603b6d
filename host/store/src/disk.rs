//! Every file system operation that the store's promises depend on.
//!
//! The law: each result is checked, and a removal reports whether the file is gone. No other module
//! of this crate creates, writes, syncs, renames or removes files (a test searches the sources), and
//! each operation passes a failpoint first, so tests can make it fail.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::unistd::linkat;

use crate::StoreError;
use crate::failpoint::{IoOperation, before};

/// `st_blocks` counts units of this many bytes, whatever the block size of the file system is.
const STAT_BLOCK: u64 = 512;

/// The outcome of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the database and the disk drift apart if removals are not checked"]
pub enum Removal {
    /// It no longer exists.
    Gone,
    /// It is in use, as described.
    Busy(String),
    /// It still exists, for this reason.
    Failed(String),
}

/// Creates a directory that must not exist yet.
pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    before(IoOperation::MakeDir(path))
        .and_then(|()| DirBuilder::new().mode(0o700).create(path))
        .map_err(StoreError::at("create", path))
}

/// Creates a directory and its parents if they are missing.
pub(crate) fn make_dir_all(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    before(IoOperation::MakeDir(path))
        .and_then(|()| DirBuilder::new().mode(0o700).recursive(true).create(path))
        .map_err(StoreError::at("create", path))
}

/// Takes the rights of everybody but the owner from a file or directory, if it exists.
pub(crate) fn make_private(path: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("change the mode of", path, error);
    before(IoOperation::Inspect(path)).map_err(failed)?;
    let mode = match fs::metadata(path) {
        Ok(found) => found.mode() & 0o7777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    before(IoOperation::SetMode(path))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700)))
        .map_err(failed)
}

/// Creates a file that must not exist yet.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    before(IoOperation::Create(path))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Creates an unnamed file in a directory. [`link`] gives it a name.
pub(crate) fn create_unnamed(dir: &Path) -> io::Result<File> {
    before(IoOperation::Inspect(dir))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(dir)
}

/// Gives an unnamed file a name that is not taken.
pub(crate) fn link(file: &File, path: &Path) -> io::Result<()> {
    before(IoOperation::Link(path))?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    Ok(linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, path, follow)?)
}

/// Opens a file that is never removed; creates it if it is missing.
pub(crate) fn open_lasting(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    before(IoOperation::Inspect(path))
        .and_then(|()| options.open(path))
        .or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            before(IoOperation::Create(path))?;
            options.create(true).mode(0o600).open(path)
        })
        .map_err(StoreError::at("open", path))
}

/// Makes the content of a file durable.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<(), StoreError> {
    before(IoOperation::SyncFile(file))
        .and_then(|()| file.sync_all())
        .map_err(StoreError::at("sync", path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    before(IoOperation::SyncDir(path))
        .and_then(|()| File::open(path))
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::at("sync", path))
}

/// Writes all of `bytes`.
pub(crate) fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    Announced(file).write_all(bytes)
}

/// A file of which each `write` passes a failpoint.
struct Announced<'a>(&'a File);

impl Write for Announced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        before(IoOperation::Write(self.0, bytes, None))?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a new file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<File, StoreError> {
    let file = create(path).map_err(StoreError::at("create", path))?;
    write_all(&file, bytes).map_err(StoreError::at("write", path))?;
    Ok(file)
}

/// Writes a new file and makes its content durable; its name is durable after [`sync_dir`].
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    sync_file(&write(path, bytes)?, path)
}

/// Renames a file, replacing the target.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    before(IoOperation::Rename(from, to))
        .and_then(|()| fs::rename(from, to))
        .map_err(StoreError::at("rename", from))
}

/// Opens a file for reading; `None` if it does not exist.
pub(crate) fn open(path: &Path) -> Result<Option<File>, StoreError> {
    match before(IoOperation::Inspect(path)).and_then(|()| File::open(path)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path, error)),
    }
}

/// Reads a whole file of at most `limit` bytes; `None` if it does not exist.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let size = file.metadata().map_err(StoreError::at("read", path))?.len();
    if size > limit {
        return Err(StoreError::corrupt(format!(
            "{} has {size} bytes, and at most {limit} are allowed",
            path.display()
        )));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(StoreError::at("read", path))?;
    Ok(Some(bytes))
}

/// Length of a regular file in bytes; `None` if there is no regular file of that name.
pub(crate) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match before(IoOperation::Inspect(path)).and_then(|()| fs::symlink_metadata(path)) {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("inspect", path, error)),
    }
}

/// Modification time in seconds since 1970; 0 if it cannot be read.
pub(crate) fn modified(path: &Path) -> i64 {
    fs::symlink_metadata(path).map_or(0, |found| found.mtime())
}

/// Bytes that the file system has allocated for one path; 0 if it does not exist.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| found.blocks() * STAT_BLOCK)
}

/// Bytes that the file system has allocated for a file, or for a directory and everything below it.
/// Symbolic links are not followed, and a file with several hard links counts once. Files that
/// disappear meanwhile count nothing.
pub(crate) fn allocated_below(path: &Path) -> Result<u64, StoreError> {
    let mut total = 0;
    let mut seen = HashSet::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("inspect", &path, error)),
        };
        if found.is_dir() || found.nlink() == 1 || seen.insert((found.dev(), found.ino())) {
            total += found.blocks() * STAT_BLOCK;
        }
        if found.is_dir() {
            match list(&path) {
                Ok(names) => left.extend(names.into_iter().map(|name| path.join(name))),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(total)
}

/// Writes all of `bytes` at an offset of a file.
pub(crate) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    before(IoOperation::Write(file, bytes, Some(at)))?;
    file.write_all_at(bytes, at)
}

/// Truncates a file to `length` bytes.
pub(crate) fn truncate(file: &File, length: u64) -> io::Result<()> {
    before(IoOperation::Truncate(file, length))?;
    file.set_len(length)
}

/// Allocates `length` bytes of disk space for a file.
pub(crate) fn allocate(file: &File, length: i64) -> io::Result<()> {
    before(IoOperation::Allocate(file))?;
    Ok(fallocate(file, FallocateFlags::empty(), 0, length)?)
}

/// Removes a file, or a symbolic link itself.
pub(crate) fn remove_file(path: &Path) -> Removal {
    match before(IoOperation::RemoveFile(path)).and_then(|()| fs::remove_file(path)) {
        Ok(()) => Removal::Gone,
        Err(error) => removal(path, &error),
    }
}

/// Removes a directory and everything below it; follows no symbolic link.
pub(crate) fn remove_tree(path: &Path) -> Removal {
    match before(IoOperation::RemoveTree(path)).and_then(|()| fs::remove_dir_all(path)) {
        Ok(()) => Removal::Gone,
        Err(error) => removal(path, &error),
    }
}

fn removal(path: &Path, error: &io::Error) -> Removal {
    if error.kind() == io::ErrorKind::NotFound {
        Removal::Gone
    } else if error.kind() == io::ErrorKind::ResourceBusy {
        Removal::Busy(format!("{} is in use", path.display()))
    } else {
        Removal::Failed(format!("{}: {error}", path.display()))
    }
}

/// The names in a directory, sorted. An error is never taken for an empty directory.
pub(crate) fn list(path: &Path) -> Result<Vec<std::ffi::OsString>, StoreError> {
    let mut names = Vec::new();
    let entries = before(IoOperation::Inspect(path)).and_then(|()| fs::read_dir(path));
    for entry in entries.map_err(StoreError::at("list", path))? {
        names.push(entry.map_err(StoreError::at("list", path))?.file_name());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_counts_each_file_once_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("below")).unwrap();
        let empty = allocated_below(&root).unwrap();
        assert_eq!(empty, allocated(&root) + allocated(&root.join("below")));
        fs::write(root.join("below/a"), vec![1; 100_000]).unwrap();
        let of_file = allocated(&root.join("below/a"));
        assert!(of_file >= 100_000);
        fs::hard_link(root.join("below/a"), root.join("b")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        let of_link = allocated(&root.join("link"));
        assert_eq!(allocated_below(&root).unwrap(), empty + of_file + of_link);
        assert_eq!(allocated_below(&root.join("b")).unwrap(), of_file);
        assert_eq!(allocated_below(&root.join("missing")).unwrap(), 0);
        let error = allocated_below(&root.join("b/below")).unwrap_err();
        assert!(error.to_string().contains("b/below"), "{error}");
    }

    #[test]
    fn only_regular_files_have_a_length() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(length(&file).unwrap(), Some(5));
        assert_eq!(length(&dir.path().join("missing")).unwrap(), None);
        assert!(length(&file.join("below")).is_err());
        assert!(open(&file.join("below")).is_err());
        assert!(open(&dir.path().join("missing")).unwrap().is_none());
        assert_eq!(length(dir.path()).unwrap(), None);
        assert_eq!(read(&file, 5).unwrap().as_deref(), Some(&b"12345"[..]));
        assert_eq!(read(&dir.path().join("missing"), 5).unwrap(), None);
        assert!(matches!(read(&file, 4), Err(StoreError::Corrupt { .. })));
    }
}
