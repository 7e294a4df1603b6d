//! Free space on the file system of the store.

use nix::sys::statvfs::statvfs;

use crate::layout::Layout;
use crate::{Store, StoreError, reserve};

/// Maximum of the low mark, in bytes: what a build needs within seconds.
const MAX_LOW_MARK: u64 = 2 << 30;

/// The low mark of a small file system is this fraction of its size: a twentieth.
const LOW_MARK_FRACTION: u64 = 20;

/// Space on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this user can still write.
    pub free: u64,
    /// Size of the file system in bytes.
    pub size: u64,
    /// Number of files that can still be created; `None` if the file system has no such limit.
    pub files: Option<u64>,
}

impl Space {
    /// With fewer free bytes than this, a store should be pruned: a twentieth of the file system, at
    /// most 2 GiB.
    #[must_use]
    pub fn low_mark(&self) -> u64 {
        (self.size / LOW_MARK_FRACTION).min(MAX_LOW_MARK)
    }
}

/// Releases the reserve if the disk is nearly full, for a prune.
pub(crate) fn release_reserve(layout: &Layout) -> Result<(), StoreError> {
    let space = space(layout)?;
    let has_files = space.files.is_none_or(|free| free > reserve::FILES * 2);
    if space.free > reserve::FOR_PRUNE.cast_unsigned() * 2 && has_files {
        return Ok(());
    }
    reserve::remove(layout)
}

/// The space on the file system of the store.
pub(super) fn space(layout: &Layout) -> Result<Space, StoreError> {
    let root = layout.root();
    let found = statvfs(root).map_err(|e| StoreError::io("inspect", root, e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Space {
        free: bytes(found.blocks_available()),
        size: bytes(found.blocks()),
        files: (found.files() > 0).then(|| found.files_available()),
    })
}

impl Store {
    /// The space on the file system of the store.
    ///
    /// # Errors
    /// If the file system cannot be queried.
    pub fn space(&self) -> Result<Space, StoreError> {
        space(self.layout())
    }
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn the_low_mark_is_a_twentieth_of_small_file_systems_and_2_gib_of_large_ones() {
        let mark = |size| {
            let (free, files) = (0, None);
            Space { free, size, files }.low_mark()
        };
        assert_eq!(mark(0), 0);
        assert_eq!(mark(20 << 20), 1 << 20);
        assert_eq!(mark(40 << 30), 2 << 30);
        assert_eq!(mark(400 << 30), 2 << 30);
    }
}
