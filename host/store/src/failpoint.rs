//! Failpoints: each I/O operation of the store is announced here just before it is done.
//!
//! In a product this does nothing. A test can install a hook for its thread, which then makes an
//! operation fail, or looks at the disk as it is just before the operation.

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(test)]
pub(crate) use hooked::{Hooks, before, before_sql, fake_boot_id, with_boot_id, with_hook};
#[cfg(not(test))]
pub(crate) use unhooked::{Hooks, before, before_sql};

/// How durable a transaction is when its commit returns; [`crate::db`] says when to use which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    /// On disk.
    Durable,
    /// Visible to all processes, and lost if power is lost soon after.
    Relaxed,
}

/// An I/O operation that is about to be done.
#[derive(Debug, Clone, Copy)]
#[expect(
    dead_code,
    reason = "only tests read the fields, and print the operation"
)]
pub(crate) enum IoOperation<'a> {
    /// Opening, listing or measuring: changes nothing, but can fail.
    Inspect(&'a Path),
    /// Trying a lock: changes nothing on disk, but can fail.
    Lock(&'a Path),
    MakeDir(&'a Path),
    /// Taking rights from others.
    SetMode(&'a Path),
    Create(&'a Path),
    /// Giving an unnamed file its first name.
    Link(&'a Path),
    /// At this offset, or at the current position of the file.
    Write(&'a File, &'a [u8], Option<u64>),
    /// Truncating a file to this length.
    Truncate(&'a File, u64),
    Allocate(&'a File),
    SyncFile(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    RemoveFile(&'a Path),
    RemoveTree(&'a Path),
    /// Beginning a read transaction.
    BeginRead,
    /// Beginning a write transaction.
    BeginWrite,
    Commit(Commit),
    /// Copying the write-ahead log of a database back into the database.
    Checkpoint,
}

#[cfg(not(test))]
mod unhooked {
    use super::{IoOperation, io};

    /// Called before each I/O operation on the file system.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "hooks make operations fail in tests"
    )]
    pub(crate) fn before(_: IoOperation<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Called before each I/O operation on the database.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "hooks make operations fail in tests"
    )]
    pub(crate) fn before_sql(_: IoOperation<'_>) -> rusqlite::Result<()> {
        Ok(())
    }

    /// The hooks of one thread, to be installed in another.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Hooks;

    impl Hooks {
        pub(crate) fn of_this_thread() -> Self {
            Self
        }

        pub(crate) fn install(self) {}
    }
}

#[cfg(test)]
mod hooked {
    use std::cell::RefCell;
    use std::fmt;
    use std::sync::{Arc, Mutex, PoisonError};

    use nix::errno::Errno;
    use rusqlite::ffi;

    use super::{IoOperation, io};

    type Hook = Box<dyn FnMut(IoOperation<'_>) -> io::Result<()> + Send>;

    /// The hooks of one thread, to be installed in another.
    #[derive(Clone, Default)]
    pub(crate) struct Hooks {
        hook: Option<Arc<Mutex<Hook>>>,
        boot_id: Option<String>,
    }

    thread_local! {
        static HOOKS: RefCell<Hooks> = RefCell::default();
    }

    impl fmt::Debug for Hooks {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Hooks")
        }
    }

    impl Hooks {
        pub(crate) fn of_this_thread() -> Self {
            HOOKS.with_borrow(Self::clone)
        }

        pub(crate) fn install(self) {
            HOOKS.with_borrow_mut(|hooks| *hooks = self);
        }
    }

    /// Restores the previous hooks, also after a panic.
    struct Restore(Hooks);

    impl Restore {
        fn after(change: impl FnOnce(Hooks) -> Hooks) -> Self {
            let before = Hooks::of_this_thread();
            change(before.clone()).install();
            Self(before)
        }
    }

    impl Drop for Restore {
        fn drop(&mut self) {
            std::mem::take(&mut self.0).install();
        }
    }

    /// Runs `work` with a hook that is called before each I/O operation of this thread and of the
    /// threads that it starts. An operation for which the hook returns an error fails with it.
    pub(crate) fn with_hook<T>(
        hook: impl FnMut(IoOperation<'_>) -> io::Result<()> + Send + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        let hook: Option<Arc<Mutex<Hook>>> = Some(Arc::new(Mutex::new(Box::new(hook))));
        let _restore = Restore::after(|before| Hooks { hook, ..before });
        work()
    }

    /// Runs `work` as after a reboot.
    pub(crate) fn with_boot_id<T>(boot_id: &str, work: impl FnOnce() -> T) -> T {
        let boot_id = Some(boot_id.to_owned());
        let _restore = Restore::after(|before| Hooks { boot_id, ..before });
        work()
    }

    /// The boot id to be used on this thread instead of the kernel's.
    pub(crate) fn fake_boot_id() -> Option<String> {
        Hooks::of_this_thread().boot_id
    }

    pub(crate) fn before(operation: IoOperation<'_>) -> io::Result<()> {
        match Hooks::of_this_thread().hook {
            None => Ok(()),
            Some(hook) => hook.lock().unwrap_or_else(PoisonError::into_inner)(operation),
        }
    }

    pub(crate) fn before_sql(operation: IoOperation<'_>) -> rusqlite::Result<()> {
        before(operation).map_err(|error| {
            let code = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC) => ffi::SQLITE_FULL,
                Some(Errno::EBUSY) => ffi::SQLITE_BUSY,
                _ => ffi::SQLITE_IOERR,
            };
            rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
        })
    }
}
