//! One database in place of another, so that a crash cannot leave a part of each.
//!
//! The log of the old one must not be taken for the new one's, so it goes first; and from then on
//! the old one is not what it was. Therefore the new one gets a name beside it before, durably.
//! Whoever finds that name finishes what was begun.

use std::path::Path;

use crate::layout::Layout;
use crate::{Removal, StoreError, disk};

/// Puts a database, one durable file, where that of the store is. The caller holds the version lock
/// alone, here and below.
pub(crate) fn replace(layout: &Layout, database: &Path) -> Result<(), StoreError> {
    disk::rename(database, &layout.next_database())?;
    disk::sync_dir(layout.root())?;
    finish(layout)
}

/// Whether a new database waits to be put in place.
pub(super) fn is_begun(layout: &Layout) -> Result<bool, StoreError> {
    Ok(disk::length(&layout.next_database())?.is_some())
}

/// Goes on from any point after the new one got its name.
pub(super) fn finish(layout: &Layout) -> Result<(), StoreError> {
    for suffix in ["db-wal", "db-shm"] {
        match disk::remove_file(&layout.database().with_extension(suffix)) {
            Removal::Gone => {}
            Removal::Busy(why) | Removal::Failed(why) => return Err(StoreError::Busy(why)),
        }
    }
    disk::sync_dir(layout.root())?;
    disk::rename(&layout.next_database(), &layout.database())?;
    disk::sync_dir(layout.root())
}
