//! Room on the file system: what there is, and how a write on a full disk gets some.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use crate::layout::Layout;
use crate::{PruneEnd, PruneOptions, Store, StoreError};

/// Most that is kept free, in bytes: what a build takes within seconds.
const MOST: u64 = 2 << 30;

/// The share of a small file system that is kept free.
const SHARE: u64 = 20;

/// Least that is freed on a full disk, in bytes.
const LEAST: u64 = 16 << 20;

/// How often, and after what time, a process looks whether another one has made room.
const TRIES: u32 = 100;
const TICK: Duration = Duration::from_millis(50);

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this user can still write.
    pub free: u64,
    /// All there is.
    pub size: u64,
    /// Files that can still be made; `None` where the file system has no such limit.
    pub files: Option<u64>,
}

impl Space {
    /// With less free than this a store should be pruned: a twentieth of the file system, at most
    /// 2 GiB.
    #[must_use]
    pub fn low_mark(&self) -> u64 {
        (self.size / SHARE).min(MOST)
    }
}

/// Looks at the file system of the store.
pub(super) fn space(layout: &Layout) -> Result<Space, StoreError> {
    let root = layout.root();
    let found = statvfs(root).map_err(|e| StoreError::io("look at", root, e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Space {
        free: bytes(found.blocks_available()),
        size: bytes(found.blocks()),
        files: (found.files() > 0).then(|| found.files_available()),
    })
}

impl Store {
    /// The room on the file system of the store.
    ///
    /// # Errors
    /// If the file system cannot be asked.
    pub fn space(&self) -> Result<Space, StoreError> {
        space(self.layout())
    }

    /// Makes room on a full disk in the middle of taking something in: what nothing keeps goes,
    /// oldest first, until the mark is free. Returns whether there is hope that more can be written
    /// now, be it by the work of another process. Waits in bounds for one that is at it.
    pub(crate) fn make_room(&self) -> bool {
        match self.try_to_make_room() {
            Ok(hope) => hope,
            Err(error) => {
                log::warn!("the disk is full, and making room failed: {error}");
                false
            }
        }
    }

    fn try_to_make_room(&self) -> Result<bool, StoreError> {
        let before = self.space()?;
        let options = PruneOptions {
            min_free: Some(before.low_mark().max(LEAST)),
            ..PruneOptions::default()
        };
        for _ in 0..TRIES {
            let report = self.prune(&options, &mut |_| ControlFlow::Continue(()))?;
            // Leftovers and old logs go, too, and others make room: what counts is what is free.
            let free = self.space()?.free;
            if report.freed > 0 || free > before.free || free >= LEAST {
                log::info!("the disk was full: {free} bytes are free now");
                return Ok(true);
            }
            if report.end != PruneEnd::AlreadyRunning {
                return Ok(false);
            }
            thread::sleep(TICK);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn the_mark_is_a_share_of_small_file_systems_and_some_gigabytes_of_large_ones() {
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
