//! Locks between processes, which the kernel releases when their owner dies.
//!
//! The law: an owner is alive if and only if its lock is held. Locks are tried, never waited for. A
//! lock belongs to an open file description, so two handles in one process exclude each other as two
//! processes do. All descriptors are closed on exec.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::failpoint::{IoOperation, before};
use crate::{Removal, StoreError, disk};

/// A lock that is held; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Flock<File>,
}

/// What a look at a lock file found.
#[derive(Debug)]
pub(crate) enum Probe {
    /// Its owner is alive.
    Held,
    /// Its owner is dead, and the lock is now ours.
    Free(Lock),
    /// There is no such file.
    Missing,
}

impl Lock {
    /// Creates a lock file that is already locked when its name appears.
    pub(crate) fn create(dir: &Path, path: &Path) -> Result<Self, StoreError> {
        match disk::create_unnamed(dir) {
            Ok(file) => Self::link(file, path).map_err(StoreError::at("create", path)),
            // Not every file system supports unnamed files.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Self::create_renamed(path)
            }
            Err(error) => Err(StoreError::io("create a file in", dir, error)),
        }
    }

    fn link(file: File, path: &Path) -> io::Result<Self> {
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
        disk::link(&held, path)?;
        Ok(Self { held })
    }

    fn create_renamed(path: &Path) -> Result<Self, StoreError> {
        let unready = path.with_extension("new");
        let file = disk::create(&unready).map_err(StoreError::at("create", &unready))?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| StoreError::io("lock", &unready, e.into()))?;
        disk::rename(&unready, path)?;
        Ok(Self { held })
    }

    /// Takes the lock if nobody holds it.
    pub(crate) fn probe(path: &Path) -> Result<Probe, StoreError> {
        let Some(file) = disk::open(path)? else {
            return Ok(Probe::Missing);
        };
        Ok(
            match Self::take(file, FlockArg::LockExclusiveNonblock, path)? {
                Some(lock) => Probe::Free(lock),
                None => Probe::Held,
            },
        )
    }

    /// Whether its owner is alive. A process that cleans up after a dead owner does not count, except
    /// in the moment before it calls [`Self::share`].
    pub(crate) fn is_held(path: &Path) -> Result<bool, StoreError> {
        let Some(file) = disk::open(path)? else {
            return Ok(false);
        };
        Ok(Self::take(file, FlockArg::LockSharedNonblock, path)?.is_none())
    }

    /// Turns the lock of a dead owner into a shared one: [`Self::is_held`] is then false, and others
    /// still cannot take it. `None` if another process got it in between.
    pub(crate) fn share(self) -> Option<Self> {
        self.held.relock(FlockArg::LockSharedNonblock).ok()?;
        Some(self)
    }

    /// Tries a lock of the store itself. Its file is created if missing, and never removed.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(
            disk::open_lasting(path)?,
            FlockArg::LockExclusiveNonblock,
            path,
        )
    }

    /// As [`Self::try_exclusive`], but shared with others.
    pub(crate) fn try_shared(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(
            disk::open_lasting(path)?,
            FlockArg::LockSharedNonblock,
            path,
        )
    }

    fn take(file: File, how: FlockArg, path: &Path) -> Result<Option<Self>, StoreError> {
        before(IoOperation::Lock(path)).map_err(StoreError::at("lock", path))?;
        match Flock::lock(file, how) {
            Ok(held) => Ok(Some(Self { held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(StoreError::io("lock", path, errno.into())),
        }
    }

    /// Removes the file, then releases the lock.
    pub(crate) fn remove(self, path: &Path) -> Removal {
        disk::remove_file(path)
    }
}
