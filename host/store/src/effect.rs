//! The seam in front of the disk: each thing that the store does to it is told here first.
//!
//! In a product this is nothing at all. In tests a thread can be watched, and then each effect can
//! be made to fail, or the disk be looked at as it is just before it.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::db::Commit;

#[cfg(not(test))]
pub(crate) use unwatched::{Watch, before, before_sql};
#[cfg(test)]
pub(crate) use watched::{Watch, before, before_sql, boot, booted, watching};

/// What is about to be done.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "tests look inside, and show it")]
pub(crate) enum Effect<'a> {
    /// Opening, listing or measuring: changes nothing, and can fail.
    Look(&'a Path),
    /// Trying a lock: as above.
    Lock(&'a Path),
    MakeDir(&'a Path),
    Create(&'a Path),
    /// Giving a file without a name its first one.
    Link(&'a Path),
    /// At that place, or where the file stands.
    Write(&'a File, &'a [u8], Option<u64>),
    /// Cutting a file to this length.
    Cut(&'a File, u64),
    Allocate(&'a File),
    SyncFile(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    RemoveFile(&'a Path),
    RemoveTree(&'a Path),
    /// Beginning a transaction that reads.
    Read,
    /// Beginning a transaction that writes.
    Begin,
    Commit(Commit),
    /// Folding the log of a database back into it.
    Fold,
}

#[cfg(not(test))]
mod unwatched {
    use super::{Effect, io};

    /// Called before each effect on the file system.
    #[expect(clippy::unnecessary_wraps, reason = "effects fail in tests")]
    pub(crate) fn before(_: Effect<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Called before each effect on the database.
    #[expect(clippy::unnecessary_wraps, reason = "effects fail in tests")]
    pub(crate) fn before_sql(_: Effect<'_>) -> rusqlite::Result<()> {
        Ok(())
    }

    /// Takes what watches this thread along to another one.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Watch;

    impl Watch {
        pub(crate) fn of_this_thread() -> Self {
            Self
        }

        pub(crate) fn enter(self) {}
    }
}

#[cfg(test)]
mod watched {
    use std::cell::RefCell;
    use std::fmt;
    use std::sync::{Arc, Mutex, PoisonError};

    use nix::errno::Errno;
    use rusqlite::ffi;

    use super::{Effect, io};

    type Watcher = Box<dyn FnMut(Effect<'_>) -> io::Result<()> + Send>;

    /// What watches a thread, and what run of the kernel it believes in.
    #[derive(Clone, Default)]
    pub(crate) struct Watch {
        watcher: Option<Arc<Mutex<Watcher>>>,
        boot: Option<String>,
    }

    thread_local! {
        static WATCH: RefCell<Watch> = RefCell::default();
    }

    impl fmt::Debug for Watch {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Watch")
        }
    }

    impl Watch {
        pub(crate) fn of_this_thread() -> Self {
            WATCH.with_borrow(Self::clone)
        }

        pub(crate) fn enter(self) {
            WATCH.with_borrow_mut(|watch| *watch = self);
        }
    }

    /// Puts back what was before, also in a panic.
    struct Restore(Watch);

    impl Restore {
        fn after(change: impl FnOnce(Watch) -> Watch) -> Self {
            let before = Watch::of_this_thread();
            change(before.clone()).enter();
            Self(before)
        }
    }

    impl Drop for Restore {
        fn drop(&mut self) {
            std::mem::take(&mut self.0).enter();
        }
    }

    /// Runs `work` while `watcher` hears of each effect of this thread and those that it starts,
    /// and decides about it.
    pub(crate) fn watching<T>(
        watcher: impl FnMut(Effect<'_>) -> io::Result<()> + Send + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        let watcher: Option<Arc<Mutex<Watcher>>> = Some(Arc::new(Mutex::new(Box::new(watcher))));
        let _restore = Restore::after(|before| Watch { watcher, ..before });
        work()
    }

    /// Runs `work` as after a restart of the machine.
    pub(crate) fn booted<T>(boot: &str, work: impl FnOnce() -> T) -> T {
        let boot = Some(boot.to_owned());
        let _restore = Restore::after(|before| Watch { boot, ..before });
        work()
    }

    /// The run of the kernel that this thread shall believe in.
    pub(crate) fn boot() -> Option<String> {
        Watch::of_this_thread().boot
    }

    pub(crate) fn before(effect: Effect<'_>) -> io::Result<()> {
        match Watch::of_this_thread().watcher {
            None => Ok(()),
            Some(watcher) => watcher.lock().unwrap_or_else(PoisonError::into_inner)(effect),
        }
    }

    pub(crate) fn before_sql(effect: Effect<'_>) -> rusqlite::Result<()> {
        before(effect).map_err(|error| {
            let code = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC) => ffi::SQLITE_FULL,
                Some(Errno::EBUSY) => ffi::SQLITE_BUSY,
                _ => ffi::SQLITE_IOERR,
            };
            rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
        })
    }
}
