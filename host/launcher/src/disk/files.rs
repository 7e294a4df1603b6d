//! The files of a guest disk, and the lock that says who uses it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use thiserror::Error;

/// Unit in which the kernel counts the allocated blocks of a file, in bytes.
const STAT_BLOCK: u64 = 512;

/// Why there is no disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The pool's directory cannot be used.
    #[error("cannot use the guest disks in `{0}`")]
    Pool(PathBuf, #[source] io::Error),
    /// A file of a disk cannot be used.
    #[error("cannot use the guest disk file `{0}`")]
    File(PathBuf, #[source] io::Error),
}

#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) lock: PathBuf,
    pub(super) disk: PathBuf,
    pub(super) clean: PathBuf,
}

impl Files {
    pub(super) fn new(dir: &Path, name: &str) -> Self {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        Self {
            lock: file("lock"),
            disk: file("img"),
            clean: file("clean"),
        }
    }

    /// Removes all files of the disk. The caller holds its lock.
    pub(super) fn remove(&self) -> Result<(), DiskError> {
        for path in [&self.clean, &self.disk, &self.lock] {
            match fs::remove_file(path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(DiskError::File(path.clone(), err));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// When the disk was released, if that was during this boot of the host.
    pub(super) fn clean_since(&self, boot: &str) -> Option<SystemTime> {
        let found = fs::read_to_string(&self.clean).ok()?;
        fs::metadata(&self.disk).ok()?;
        (found == boot).then(|| fs::metadata(&self.clean).ok()?.modified().ok())?
    }
}

/// Bytes that a file takes on the host's disk; zero if it does not exist.
pub(super) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.blocks() * STAT_BLOCK)
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Names of the disks in `dir`.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".lock")) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Locks this file, if it exists and no process holds its lock.
pub(super) fn try_lock(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        // The disk may have been removed between opening and locking.
        Ok(()) => is_same_file(&file, path).then_some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(err)) => {
            log::warn!("cannot lock `{}`: {err}", path.display());
            None
        }
    }
}

/// Whether `path` still names this open file.
pub(super) fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}
