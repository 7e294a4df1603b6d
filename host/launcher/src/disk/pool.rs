//! Takes a disk from the pool, or creates one, and releases it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::{DiskError, Files, allocated, create, is_same_file, names, try_lock};
use super::template;

/// Prefix of the names of disks. Disks with another prefix were laid out by another version.
const LAYOUT: &str = "ext4-1-";

/// A disk on which more than this is written (in bytes) is not kept. It holds the layers of many
/// builds, and most of them are not needed any more, but nobody knows which; filling a new disk
/// costs less than finding out.
const MAX_WRITTEN: u64 = 16 << 30;

/// How often a new name is tried when another process took it first.
const ATTEMPTS: usize = 8;

/// Where disks live and how many may stay.
#[derive(Debug, Clone)]
pub struct DiskPool {
    dir: PathBuf,
    boot: String,
    size: u64,
    keep: usize,
}

/// A disk that this process uses.
#[derive(Debug)]
pub struct Disk {
    pub(super) files: Files,
    boot: String,
    keep: usize,
    fresh: bool,
    /// Closing it unlocks the disk; nothing else does.
    _lock: File,
}

impl DiskPool {
    /// The pool in `dir`. `boot` names this boot of the host; `size` is that of new disks in bytes
    /// (they are sparse), and at most `keep` disks stay when their VMs have ended.
    #[must_use]
    pub fn new(dir: &Path, boot: &str, size: u64, keep: usize) -> Self {
        Self {
            dir: dir.into(),
            boot: boot.into(),
            size,
            keep,
        }
    }

    /// Takes the most recently used clean disk, or creates a new one. Discards free disks that are
    /// not clean.
    ///
    /// # Errors
    /// If the pool's directory cannot be read or written.
    pub fn take(&self) -> Result<Disk, DiskError> {
        let mut free = self.lock_free_disks()?;
        free.sort_by_key(|(since, ..)| *since);
        let Some((_, files, lock)) = free.pop() else {
            return self.create();
        };
        fs::remove_file(&files.clean).map_err(|err| DiskError::File(files.clean.clone(), err))?;
        Ok(self.disk(files, lock, false))
    }

    /// Creates a new disk, even if one is free.
    ///
    /// # Errors
    /// If the pool's directory cannot be written.
    pub fn create(&self) -> Result<Disk, DiskError> {
        let (files, lock) = self.create_lock()?;
        let written = create(&files.disk).and_then(|disk| template::write(&disk, self.size));
        if let Err(err) = written {
            files.remove()?;
            return Err(DiskError::File(files.disk, err));
        }
        Ok(self.disk(files, lock, true))
    }

    /// Creates the lock file of a new disk and locks it.
    fn create_lock(&self) -> Result<(Files, File), DiskError> {
        let mut last_error = io::Error::other("no free name");
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            getrandom::fill(&mut random)
                .map_err(|err| DiskError::Pool(self.dir.clone(), io::Error::other(err)))?;
            let files = Files::new(&self.dir, &format!("{LAYOUT}{}", hex::encode(random)));
            let lock =
                create(&files.lock).map_err(|err| DiskError::File(files.lock.clone(), err))?;
            // Another process that goes through the pool may have locked it first. It finds no disk
            // and removes the file, so this name is lost.
            match lock.try_lock() {
                Ok(()) if is_same_file(&lock, &files.lock) => return Ok((files, lock)),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(err)) => last_error = err,
            }
        }
        Err(DiskError::Pool(self.dir.clone(), last_error))
    }

    fn disk(&self, files: Files, lock: File, fresh: bool) -> Disk {
        Disk {
            files,
            boot: self.boot.clone(),
            keep: self.keep,
            fresh,
            _lock: lock,
        }
    }

    /// Locks every free disk, and removes those that cannot be used. Dropping the list unlocks the
    /// disks.
    fn lock_free_disks(&self) -> Result<Vec<(SystemTime, Files, File)>, DiskError> {
        let mut free = Vec::new();
        for name in names(&self.dir).map_err(|err| DiskError::Pool(self.dir.clone(), err))? {
            let files = Files::new(&self.dir, &name);
            let Some(lock) = try_lock(&files.lock) else {
                continue;
            };
            match files
                .clean_since(&self.boot)
                .filter(|_| name.starts_with(LAYOUT))
            {
                Some(since) => free.push((since, files, lock)),
                None => {
                    log::info!("discarding guest disk {name}, which was not released cleanly");
                    files.remove()?;
                }
            }
        }
        Ok(free)
    }
}

impl Disk {
    /// The sparse file that holds the disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files.disk
    }

    /// It was just created and holds no layers.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns the disk to the pool after its VM has synced, unmounted and ended. If the pool holds
    /// more than it should, the disk is removed instead.
    ///
    /// # Errors
    /// If its files cannot be written or removed; then the next process discards it.
    pub fn release(self) -> Result<(), DiskError> {
        let dir = self.files.lock.parent().unwrap_or_else(|| Path::new("/"));
        let count = names(dir)
            .map_err(|err| DiskError::Pool(dir.into(), err))?
            .len();
        if count > self.keep || allocated(&self.files.disk) > MAX_WRITTEN {
            return self.discard();
        }
        fs::write(&self.files.clean, &self.boot)
            .map_err(|err| DiskError::File(self.files.clean.clone(), err))
    }

    /// Removes the disk. No VM may be using it any more.
    ///
    /// # Errors
    /// If its files cannot be removed; then the next process tries again.
    pub fn discard(self) -> Result<(), DiskError> {
        self.files.remove()
    }
}
