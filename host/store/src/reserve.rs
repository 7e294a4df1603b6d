//! The reserve: disk space and files that are kept aside for a full disk. One part lets a prune begin,
//! since deleting needs some of both; the other lets a build and its process record their end.
//!
//! Each is released when it is needed, and made again afterwards, or when a store is opened. On a
//! copy-on-write file system they help, but guarantee nothing. Only the holder of the prune lock may
//! touch them.

use std::path::Path;

use crate::layout::Layout;
use crate::lock::Lock;
use crate::{Removal, StoreError, disk};

/// What the log of the database needs to tombstone and delete one batch of objects, in bytes.
pub(crate) const FOR_PRUNE: i64 = 4 << 20;

/// What it needs to record the end of a build and of a process, in bytes.
const FOR_END: i64 = 1 << 20;

/// Number of empty files. Opening a store creates its lock file, its scratch directory and two files of
/// the database.
pub(crate) const FILES: u64 = 8;

/// Makes what is missing of the reserve. Having none is not an error.
pub(crate) fn make(layout: &Layout) {
    if let Ok(false) = exists(layout)
        && let Err(error) = make_for_prune(layout)
    {
        log::debug!("cannot make the reserve: {error}");
        if let Err(error) = remove(layout) {
            log::warn!("cannot remove an incomplete reserve: {error}");
        }
        return;
    }
    let path = layout.reserved_for_end();
    if let Ok(None) = disk::length(&path)
        && let Err(error) = allocate(&path, FOR_END)
    {
        log::debug!("cannot make the reserve for the end of a build: {error}");
        if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_file(&path) {
            log::warn!("cannot remove an incomplete reserve: {why}");
        }
    }
}

/// Whether the reserve is complete.
pub(crate) fn is_complete(layout: &Layout) -> Result<bool, StoreError> {
    Ok(exists(layout)? && disk::length(&layout.reserved_for_end())?.is_some())
}

/// Whether there is the part for a prune.
fn exists(layout: &Layout) -> Result<bool, StoreError> {
    // Older versions had a single file instead of the directory.
    let is_of_older_version = disk::length(&layout.reserve())?.is_some();
    Ok(!is_of_older_version && disk::length(&layout.reserved_bytes())?.is_some())
}

fn make_for_prune(layout: &Layout) -> Result<(), StoreError> {
    remove(layout)?; // an incomplete one
    disk::make_dir(&layout.reserve())?;
    for n in 0..FILES {
        let path = layout.reserve().join(n.to_string());
        disk::create(&path).map_err(StoreError::at("create", &path))?;
    }
    allocate(&layout.reserved_bytes(), FOR_PRUNE)
}

fn allocate(path: &Path, size: i64) -> Result<(), StoreError> {
    let file = disk::create(path).map_err(StoreError::at("create", path))?;
    disk::allocate(&file, size).map_err(StoreError::at("allocate", path))
}

/// Releases the part for the records of what has ended. Returns whether there was one; not while a prune
/// runs.
pub(crate) fn release_for_end(layout: &Layout) -> Result<bool, StoreError> {
    let path = layout.reserved_for_end();
    let Some(_lock) = Lock::try_exclusive(&layout.prune_lock())? else {
        return Ok(false);
    };
    if disk::length(&path)?.is_none() {
        return Ok(false);
    }
    gone(disk::remove_file(&path))?;
    Ok(true)
}

/// Releases the part for a prune.
pub(crate) fn remove(layout: &Layout) -> Result<(), StoreError> {
    let path = layout.reserve();
    gone(match disk::length(&path)? {
        Some(_) => disk::remove_file(&path),
        None => disk::remove_tree(&path),
    })
}

fn gone(removal: Removal) -> Result<(), StoreError> {
    match removal {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}
