//! The reserve: disk space and files that are released so that a prune can begin on a full disk, since
//! deleting needs some of both; and so that a build that a full disk has ended can say so.
//!
//! It is released before a prune if little of either is left, and made again afterwards, or when a store
//! is opened. On a
//! copy-on-write file system it helps, but guarantees nothing. Only the holder of the prune lock may
//! touch it.

use super::free_space;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::{Removal, StoreError, disk};

/// What the log of the database needs to tombstone and delete one batch of objects, in bytes.
const SIZE: i64 = 4 << 20;

/// Number of empty files. Opening a store creates its lock file, its scratch directory and two files of
/// the database.
const FILES: u64 = 8;

/// Makes the reserve if it is missing. Having none is not an error.
pub(crate) fn make(layout: &Layout) {
    if let Ok(false) = exists(layout)
        && let Err(error) = allocate(layout)
    {
        log::debug!("cannot make the reserve: {error}");
        if let Err(error) = remove(layout) {
            log::warn!("cannot remove an incomplete reserve: {error}");
        }
    }
}

/// Whether there is a complete reserve.
pub(crate) fn exists(layout: &Layout) -> Result<bool, StoreError> {
    // Older versions had a single file instead of the directory.
    let is_of_older_version = disk::length(&layout.reserve())?.is_some();
    Ok(!is_of_older_version && disk::length(&layout.reserved_bytes())?.is_some())
}

fn allocate(layout: &Layout) -> Result<(), StoreError> {
    remove(layout)?; // an incomplete one
    disk::make_dir(&layout.reserve())?;
    for n in 0..FILES {
        let path = layout.reserve().join(n.to_string());
        disk::create(&path).map_err(StoreError::at("create", &path))?;
    }
    let path = layout.reserved_bytes();
    let file = disk::create(&path).map_err(StoreError::at("create", &path))?;
    disk::allocate(&file, SIZE).map_err(StoreError::at("allocate", &path))
}

/// Releases the reserve if the disk is nearly full.
pub(crate) fn release(layout: &Layout) -> Result<(), StoreError> {
    let space = free_space::space(layout)?;
    let has_files = space.files.is_none_or(|free| free > FILES * 2);
    if space.free > SIZE.cast_unsigned() * 2 && has_files {
        return Ok(());
    }
    remove(layout)
}

/// Releases the reserve for records of what has ended. Returns whether there was one; not while a prune
/// uses it.
pub(crate) fn use_up(layout: &Layout) -> Result<bool, StoreError> {
    let Some(_lock) = Lock::try_exclusive(&layout.prune_lock())? else {
        return Ok(false);
    };
    let there = exists(layout)?;
    if there {
        log::info!("the disk is full: the reserve is used");
        remove(layout)?;
    }
    Ok(there)
}

fn remove(layout: &Layout) -> Result<(), StoreError> {
    let path = layout.reserve();
    let removal = match disk::length(&path)? {
        Some(_) => disk::remove_file(&path),
        None => disk::remove_tree(&path),
    };
    match removal {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}
