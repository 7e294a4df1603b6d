//! Freeing space when a write finds the disk full.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use crate::{PruneEnd, PruneOptions, Store, StoreError};

/// Minimum to be freed on a full disk, in bytes.
const MINIMUM: u64 = 16 << 20;

/// How often, and after what pause, a process checks whether another one has freed space.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

impl Store {
    /// Frees space on a full disk in the middle of an ingest: prunes unused objects, oldest first, until
    /// the low mark is free. If another process is pruning, waits for it in bounds. Returns whether
    /// trying to write again makes sense.
    pub(crate) fn free_space(&self) -> bool {
        match self.try_to_free_space() {
            Ok(retry) => retry,
            Err(error) => {
                log::warn!("the disk is full, and freeing space failed: {error}");
                false
            }
        }
    }

    fn try_to_free_space(&self) -> Result<bool, StoreError> {
        let before = self.space()?;
        let options = PruneOptions {
            min_free: Some(before.low_mark().max(MINIMUM)),
            ..PruneOptions::default()
        };
        for _ in 0..ATTEMPTS {
            let report = self.prune(&options, &mut |_| ControlFlow::Continue(()))?;
            // A prune removes leftovers and old logs as well, and others free space, too: what counts
            // is the free space.
            let free = self.space()?.free;
            if report.freed > 0 || free > before.free || free >= MINIMUM {
                log::info!("the disk was full: {free} bytes are free now");
                return Ok(true);
            }
            if report.end != PruneEnd::AlreadyRunning {
                return Ok(false);
            }
            thread::sleep(PAUSE);
        }
        Ok(false)
    }
}
