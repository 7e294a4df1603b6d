//! Replacing the database by another one, so that a crash cannot leave a mixture.
//!
//! The write-ahead log of the old database must not be applied to the new one, so it is removed
//! first, which damages the old database. Therefore the new one is durably given a name beside the
//! old one before that, and any process that finds that name finishes the replacement.

use std::path::Path;

use crate::layout::Layout;
use crate::{Removal, StoreError, disk};

/// Replaces the database of the store by `database`, a single durable file. Here and below the caller
/// holds the version lock exclusively.
pub(crate) fn replace(layout: &Layout, database: &Path) -> Result<(), StoreError> {
    disk::rename(database, &layout.next_database())?;
    disk::sync_dir(layout.root())?;
    finish(layout)
}

/// Whether a replacement was begun and not finished.
pub(super) fn is_begun(layout: &Layout) -> Result<bool, StoreError> {
    Ok(disk::length(&layout.next_database())?.is_some())
}

/// Finishes a replacement, from any point after the new database got its name.
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
