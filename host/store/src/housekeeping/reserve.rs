//! Room that is set aside so that a prune can begin on a full disk: deleting takes space, too.
//!
//! It is given up before a prune where there is little room, and made again after. On file systems
//! that copy on write it is a help and no guarantee. Only who holds the prune lock touches it.

use super::room;
use crate::layout::Layout;
use crate::{Removal, StoreError, disk};

/// As much as the log of the database needs to condemn and delete one batch of objects.
const SIZE: i64 = 4 << 20;

/// Sets the room aside, if that was not done. Having none is no reason to fail.
pub(crate) fn make(layout: &Layout) {
    let path = layout.reserve();
    if let Ok(None) = disk::length(&path)
        && let Err(error) = allocate(layout)
    {
        log::debug!("no reserve: {error}");
        if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_file(&path) {
            log::warn!("cannot remove a reserve that was not made: {why}");
        }
    }
}

fn allocate(layout: &Layout) -> Result<(), StoreError> {
    let path = layout.reserve();
    let file = disk::create(&path).map_err(StoreError::at("create", &path))?;
    disk::allocate(&file, SIZE).map_err(StoreError::at("allocate", &path))
}

/// Gives the room up if the disk is nearly full.
pub(crate) fn give_up(layout: &Layout) -> Result<(), StoreError> {
    if room::space(layout)?.free > SIZE.cast_unsigned() * 2 {
        return Ok(());
    }
    match disk::remove_file(&layout.reserve()) {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}
