//! The disks of a pool as others see them: those that no VM uses, and all files for the audit.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::{DiskError, Files, allocated, names, try_lock};

/// The contents of a pool.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// Disks that are locked.
    pub(crate) held: Vec<PathBuf>,
    /// Files that belong to no disk.
    pub(crate) strays: Vec<PathBuf>,
}

/// Lists the pool in `dir` and changes nothing.
pub(crate) fn inventory(dir: &Path) -> io::Result<Inventory> {
    // The other files first: a lock file is created before them and removed after them.
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "lock") {
            others.push(path);
        }
    }
    let names = names(dir)?;
    let is_stray = |path: &PathBuf| {
        let known = path
            .extension()
            .is_some_and(|end| end == "img" || end == "clean");
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        !known || stem.is_none_or(|stem| names.iter().all(|name| name != stem))
    };
    let held = |name: &String| {
        let files = Files::new(dir, name);
        (files.lock.exists() && try_lock(&files.lock).is_none()).then_some(files.disk)
    };
    Ok(Inventory {
        held: names.iter().filter_map(held).collect(),
        strays: others.into_iter().filter(is_stray).collect(),
    })
}

/// A disk that no VM uses. As long as the value lives, no VM can take it.
#[derive(Debug)]
pub struct FreeDisk {
    files: Files,
    _lock: File,
}

/// The disks in `dir` that no VM uses; the most recently used ones are last.
///
/// # Errors
/// If the directory cannot be read.
pub fn free(dir: &Path) -> Result<Vec<FreeDisk>, DiskError> {
    let names = names(dir).map_err(|err| DiskError::Pool(dir.into(), err))?;
    let mut free: Vec<FreeDisk> = names
        .iter()
        .map(|name| Files::new(dir, name))
        .filter_map(|files| try_lock(&files.lock).map(|_lock| FreeDisk { files, _lock }))
        .collect();
    free.sort_by_key(FreeDisk::released);
    Ok(free)
}

impl FreeDisk {
    /// Bytes that it takes on the host's disk.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        allocated(&self.files.disk)
    }

    /// When its last VM ended, if that ended cleanly; otherwise the disk cannot be used again.
    #[must_use]
    pub fn released(&self) -> Option<SystemTime> {
        fs::metadata(&self.files.clean).ok()?.modified().ok()
    }

    /// Removes the disk.
    ///
    /// # Errors
    /// If its files cannot be removed; then the next process tries again.
    pub fn remove(self) -> Result<(), DiskError> {
        self.files.remove()
    }
}
