//! What is set aside so that a prune can begin on a full disk: deleting takes room and files, too.
//!
//! It is given up before a prune where there is little of either, and made again after. On file
//! systems that copy on write it is a help and no guarantee. Only who holds the prune lock touches it.

use super::room;
use crate::layout::Layout;
use crate::{Removal, StoreError, disk};

/// As much as the log of the database needs to condemn and delete one batch of objects, in bytes.
const SIZE: i64 = 4 << 20;

/// Empty files. Opening a store makes its lock, its scratch directory and two files of the database.
const FILES: u64 = 8;

/// Sets it aside, if that was not done. Having none is no reason to fail.
pub(crate) fn make(layout: &Layout) {
    if let Ok(false) = is_there(layout)
        && let Err(error) = allocate(layout)
    {
        log::debug!("no reserve: {error}");
        if let Err(error) = remove(layout) {
            log::warn!("cannot remove a reserve that was not made: {error}");
        }
    }
}

/// Whether it is set aside.
pub(crate) fn is_there(layout: &Layout) -> Result<bool, StoreError> {
    let is_of_older_version = disk::length(&layout.reserve())?.is_some(); // one file
    Ok(!is_of_older_version && disk::length(&layout.reserved_room())?.is_some())
}

fn allocate(layout: &Layout) -> Result<(), StoreError> {
    remove(layout)?; // of one that was not finished
    disk::make_dir(&layout.reserve())?;
    for n in 0..FILES {
        let path = layout.reserve().join(n.to_string());
        disk::create(&path).map_err(StoreError::at("create", &path))?;
    }
    let path = layout.reserved_room();
    let file = disk::create(&path).map_err(StoreError::at("create", &path))?;
    disk::allocate(&file, SIZE).map_err(StoreError::at("allocate", &path))
}

/// Gives it up if the disk is nearly full.
pub(crate) fn give_up(layout: &Layout) -> Result<(), StoreError> {
    let space = room::space(layout)?;
    let has_files = space.files.is_none_or(|free| free > FILES * 2);
    if space.free > SIZE.cast_unsigned() * 2 && has_files {
        return Ok(());
    }
    remove(layout)
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
