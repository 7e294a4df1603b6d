//! Keeping disk space free during a build.
//!
//! The law: a build neither fills the disk nor lets others pay for what it writes. Once a second, and
//! more often near the low mark, a thread checks the free space. If it is below the mark, the thread
//! prunes until twice the mark is free: unused objects of the store, oldest first. What this build and
//! others use is leased, and stays. If that does not free enough, nothing large is written to the store
//! any more ([`Store::low_space`]); this is reported once, and a prune is tried again after a pause.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use super::{PruneEnd, PruneOptions, PruneReport};
use crate::{LowSpace, Store, StoreError};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same while less than this many times the low mark is free.
const INTERVAL_NEAR: Duration = Duration::from_millis(100);
const NEAR: u64 = 4;

/// Checks that are skipped while another process prunes.
const SKIP_WHILE_PRUNED: u32 = 5;

/// Checks that are skipped after a prune that could not free enough.
const SKIP_AFTER_FAILURE: u32 = 30;

/// What a [`FreeSpaceGuard`] needs from the program that runs it.
pub trait FreeSpaceHooks: Sync {
    /// Whether the build was cancelled: then a prune stops.
    fn is_cancelled(&self) -> bool;

    /// Reports what the guard has done, for the user.
    fn report(&self, event: FreeSpaceEvent<'_>);
}

/// What a [`FreeSpaceGuard`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpaceEvent<'a> {
    /// Unused data was removed.
    Freed {
        /// Free bytes before.
        free: u64,
        /// Removed bytes.
        freed: u64,
    },
    /// There is still less free space than the low mark, and nothing more can be removed: from now on
    /// nothing large is written to the store.
    Low {
        /// Free bytes.
        free: u64,
        /// What the prune did, and what is in use.
        report: &'a PruneReport,
    },
}

/// Keeps disk space free while something is done.
#[derive(Debug, Clone, Copy)]
pub struct FreeSpaceGuard<'a> {
    store: &'a Store,
    min_free: Option<u64>,
}

impl<'a> FreeSpaceGuard<'a> {
    /// A guard that prunes `store` if less than `min_free` bytes are free; `None` stands for
    /// [`crate::Space::low_mark`], and zero turns the guard off.
    #[must_use]
    pub fn new(store: &'a Store, min_free: Option<u64>) -> Self {
        Self { store, min_free }
    }

    /// Checks the free space once, then runs `work` with the guard beside it.
    pub fn run<T>(self, hooks: &dyn FreeSpaceHooks, work: impl FnOnce() -> T) -> T {
        if self.min_free == Some(0) {
            return work();
        }
        let (end, ended) = sync_channel(0);
        let mut checks = Checks {
            guard: self,
            hooks,
            ended,
            skip: 0,
            was_low: false,
            interval: INTERVAL,
        };
        checks.check();
        let done = thread::scope(|scope| {
            let thread = thread::Builder::new().name("free-space".into());
            if let Err(error) = thread.spawn_scoped(scope, || checks.run()) {
                log::warn!("cannot watch the free disk space during this build: {error}");
            }
            let done = work();
            // The thread ends when it sees this, also in the middle of a prune.
            drop(end);
            done
        });
        self.store.set_low_space(None);
        done
    }
}

/// The state of the checks.
struct Checks<'a> {
    guard: FreeSpaceGuard<'a>,
    hooks: &'a dyn FreeSpaceHooks,
    /// Disconnected when the work is done.
    ended: Receiver<()>,
    /// Checks that look only at the free space.
    skip: u32,
    was_low: bool,
    /// Time to the next check.
    interval: Duration,
}

impl Checks<'_> {
    fn run(mut self) {
        while self.ended.recv_timeout(self.interval) == Err(RecvTimeoutError::Timeout) {
            self.check();
        }
    }

    /// One check.
    fn check(&mut self) {
        match self.free_if_low() {
            Ok(is_low) => self.was_low = is_low,
            Err(why) => {
                self.skip = SKIP_AFTER_FAILURE;
                log::warn!("cannot look for free disk space: {why}");
            }
        }
    }

    /// Prunes if there is little free space. Returns whether there is still too little.
    fn free_if_low(&mut self) -> Result<bool, String> {
        let store = self.guard.store;
        let space = store.space().map_err(with_causes)?;
        let mark = self.guard.min_free.unwrap_or_else(|| space.low_mark());
        self.interval = if space.free < mark.saturating_mul(NEAR) {
            INTERVAL_NEAR
        } else {
            INTERVAL
        };
        if space.free >= mark {
            store.set_low_space(None);
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(self.was_low && space.free < mark);
        }
        if space.free >= mark {
            return Ok(false);
        }
        // The floor holds also while the database cannot be used.
        let report = self.prune(mark.saturating_mul(2)).unwrap_or_else(|why| {
            log::warn!("cannot free disk space for this build: {why}");
            PruneReport::default()
        });
        if report.freed > 0 {
            let (free, freed) = (space.free, report.freed);
            self.hooks.report(FreeSpaceEvent::Freed { free, freed });
        }
        if report.end == PruneEnd::AlreadyRunning {
            self.skip = SKIP_WHILE_PRUNED;
            return Ok(self.was_low);
        }
        let free = store.space().map_err(with_causes)?.free;
        if free >= mark {
            store.set_low_space(None);
            return Ok(false);
        }
        store.set_low_space(Some(LowSpace { free, floor: mark }));
        self.skip = SKIP_AFTER_FAILURE;
        if !self.was_low {
            let report = &report;
            self.hooks.report(FreeSpaceEvent::Low { free, report });
        }
        Ok(true)
    }

    fn prune(&self, min_free: u64) -> Result<PruneReport, String> {
        let options = PruneOptions {
            min_free: Some(min_free),
            ..PruneOptions::default()
        };
        let mut go_on = |_: &_| match self.ended.try_recv() {
            Err(TryRecvError::Disconnected) => ControlFlow::Break(()),
            _ if self.hooks.is_cancelled() => ControlFlow::Break(()),
            Ok(()) | Err(TryRecvError::Empty) => ControlFlow::Continue(()),
        };
        let report = self.guard.store.prune(&options, &mut go_on);
        report.map_err(with_causes)
    }
}

/// An error and its causes as one line.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn with_causes(error: StoreError) -> String {
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::errno::Errno;

    use super::*;
    use crate::OpenOptions;
    use crate::failpoint::{IoOperation, with_hook};
    use crate::lock::Lock;

    /// More than any disk has free.
    const ALWAYS_LOW: Option<u64> = Some(u64::MAX / 4);

    #[derive(Default)]
    struct Recorder {
        cancelled: AtomicBool,
        reports: Mutex<Vec<&'static str>>,
    }

    impl Recorder {
        fn reports(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.reports.lock().unwrap())
        }
    }

    impl FreeSpaceHooks for Recorder {
        fn is_cancelled(&self) -> bool {
            self.cancelled.load(Ordering::SeqCst)
        }

        fn report(&self, event: FreeSpaceEvent<'_>) {
            self.reports.lock().unwrap().push(match event {
                FreeSpaceEvent::Freed { freed, .. } => {
                    assert!(freed > 0);
                    "freed"
                }
                FreeSpaceEvent::Low { .. } => "low",
            });
        }
    }

    /// A store with blobs that nothing keeps.
    fn store_with(blobs: &[&[u8]]) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let open = || Store::open(root.path(), &OpenOptions::default()).unwrap();
        let store = open();
        for blob in blobs {
            store.put_blob(blob, "test").unwrap();
        }
        store.close().unwrap();
        let store = open();
        (root, store)
    }

    fn count(store: &Store) -> usize {
        store.du().unwrap().items.len()
    }

    fn checks<'a>(store: &'a Store, hooks: &'a Recorder, ended: Receiver<()>) -> Checks<'a> {
        Checks {
            guard: FreeSpaceGuard::new(store, ALWAYS_LOW),
            hooks,
            ended,
            skip: 0,
            was_low: false,
            interval: INTERVAL,
        }
    }

    #[test]
    fn below_the_mark_nothing_large_is_written_and_the_database_still_is() {
        use std::io::Write as _;
        let (_root, store) = store_with(&[]);
        let hooks = Recorder::default();
        let large = vec![7; 3 << 20];
        let written = FreeSpaceGuard::new(&store, ALWAYS_LOW).run(&hooks, || {
            store.put_blob(b"small", "test").unwrap();
            store.start_build(&crate::BuildInfo::default()).unwrap();
            let mut writer = store.blob_writer("test").unwrap();
            match writer.write_all(&large) {
                Ok(()) => writer.finish().map(|_| ()),
                Err(error) => Err(StoreError::io("write", store.root(), error)),
            }
        });
        assert!(
            matches!(written, Err(StoreError::LowSpace(_))),
            "{written:?}"
        );
        // The guard of one build is not that of the next one.
        let mut writer = store.blob_writer("test").unwrap();
        writer.write_all(&large).unwrap();
        writer.finish().unwrap();
        store.close().unwrap();
    }

    #[test]
    fn a_prune_that_fails_does_not_lift_the_floor() {
        let (_root, store) = store_with(&[b"unused"]);
        let hooks = Recorder::default();
        let (_end, ended) = sync_channel(0);
        let mut checks = checks(&store, &hooks, ended);
        let broken = |operation: IoOperation<'_>| {
            if matches!(operation, IoOperation::BeginWrite | IoOperation::BeginRead) {
                return Err(Errno::EIO.into());
            }
            Ok(())
        };
        with_hook(broken, || checks.check());
        assert!(store.low_space().is_some());
        assert_eq!(hooks.reports(), ["low"]);
        store.close().unwrap();
    }

    #[test]
    fn with_enough_space_again_everything_is_written_and_near_the_mark_checks_are_frequent() {
        let (_root, store) = store_with(&[]);
        let hooks = Recorder::default();
        let (_end, ended) = sync_channel(0);
        let mut checks = checks(&store, &hooks, ended);
        checks.check();
        assert!(store.low_space().is_some());
        assert_eq!(checks.interval, INTERVAL_NEAR);
        // Also during the pause between two prunes.
        assert!(checks.skip > 0);
        checks.guard.min_free = Some(1);
        checks.check();
        assert_eq!(store.low_space(), None);
        assert_eq!(checks.interval, INTERVAL);
        store.close().unwrap();
    }

    #[test]
    fn unused_objects_are_removed_before_the_work_begins_and_leased_ones_stay() {
        let (_root, store) = store_with(&[b"unused", b"used"]);
        let used = crate::sha256(b"used");
        assert!(store.blob(used).unwrap().is_some());
        let hooks = Recorder::default();
        FreeSpaceGuard::new(&store, ALWAYS_LOW).run(&hooks, || {
            assert_eq!(hooks.reports(), ["freed", "low"]);
            assert_eq!(count(&store), 1);
        });
        assert!(store.blob(used).unwrap().is_some());
        store.close().unwrap();
    }

    #[test]
    fn zero_turns_the_guard_off_and_enough_space_means_no_prune() {
        let (_root, store) = store_with(&[b"unused"]);
        let hooks = Recorder::default();
        for min_free in [0, 1] {
            FreeSpaceGuard::new(&store, Some(min_free)).run(&hooks, || ());
        }
        assert_eq!((hooks.reports(), count(&store)), (vec![], 1));
        store.close().unwrap();
    }

    #[test]
    fn low_space_is_reported_once_and_tried_again_after_a_pause() {
        let (_root, store) = store_with(&[]);
        let hooks = Recorder::default();
        let (_end, ended) = sync_channel(0);
        let mut checks = checks(&store, &hooks, ended);
        checks.check();
        assert_eq!(hooks.reports(), ["low"]);
        for left in (0..SKIP_AFTER_FAILURE).rev() {
            checks.check();
            assert_eq!(checks.skip, left);
        }
        checks.check();
        assert_eq!((hooks.reports(), checks.skip), (vec![], SKIP_AFTER_FAILURE));
        // With enough space in between it is news again.
        checks.skip = 0;
        checks.guard.min_free = Some(1);
        checks.check();
        checks.guard.min_free = ALWAYS_LOW;
        checks.check();
        assert_eq!(hooks.reports(), ["low"]);
        store.close().unwrap();
    }

    #[test]
    fn while_another_process_prunes_nothing_is_reported_and_the_pause_is_short() {
        let (_root, store) = store_with(&[b"unused"]);
        let hooks = Recorder::default();
        let (_end, ended) = sync_channel(0);
        let mut checks = checks(&store, &hooks, ended);
        let lock = Lock::try_exclusive(&store.layout().prune_lock()).unwrap();
        assert!(lock.is_some());
        checks.check();
        assert_eq!((hooks.reports(), checks.skip), (vec![], SKIP_WHILE_PRUNED));
        assert_eq!(count(&store), 1);
        drop(lock);
        store.close().unwrap();
    }

    #[test]
    fn a_prune_stops_when_the_build_is_cancelled_or_done() {
        for is_cancelled in [true, false] {
            let (_root, store) = store_with(&[b"one", b"two", b"three"]);
            let hooks = Recorder::default();
            let (end, ended) = sync_channel(0);
            if is_cancelled {
                hooks.cancelled.store(true, Ordering::SeqCst);
            } else {
                drop(end);
            }
            checks(&store, &hooks, ended).check();
            assert_eq!(count(&store), 0, "a batch is tombstoned at once");
            let files = crate::disk::list(&store.layout().blobs()).unwrap();
            assert_eq!(files.len(), 2, "and then removed one by one");
            store.close().unwrap();
        }
    }
}
