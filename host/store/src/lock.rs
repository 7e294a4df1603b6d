//! Locks between processes: what the kernel drops when a process ends.
//!
//! The law: alive means that the lock is held. Locks are tried and never waited for. A lock
//! belongs to an open file description, so two handles in one process exclude each other like two
//! processes do, and every descriptor here is closed on exec.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::effect::{Effect, before};
use crate::{Removal, StoreError, disk};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Flock<File>,
}

/// What trying a lock told.
#[derive(Debug)]
pub(crate) enum Probe {
    /// Its owner lives.
    Held,
    /// Its owner is dead, and now it is ours.
    Free(Lock),
    /// There is no such file.
    Missing,
}

impl Lock {
    /// Makes a lock file whose name appears already locked.
    pub(crate) fn create(dir: &Path, path: &Path) -> Result<Self, StoreError> {
        match disk::create_unnamed(dir) {
            Ok(file) => Self::link(file, path).map_err(StoreError::at("make", path)),
            // Not every file system has unnamed files.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Self::create_renamed(path)
            }
            Err(error) => Err(StoreError::io("make a file in", dir, error)),
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

    /// Looks whether anybody holds the lock, and takes it if not.
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

    /// Whether its owner lives. Somebody who settles what a dead owner left is not taken for it, but
    /// for the moment before [`Self::share`].
    pub(crate) fn is_held(path: &Path) -> Result<bool, StoreError> {
        let Some(file) = disk::open(path)? else {
            return Ok(false);
        };
        Ok(Self::take(file, FlockArg::LockSharedNonblock, path)?.is_none())
    }

    /// Shares the lock of a dead owner with those who only look; others still cannot take it. `None`
    /// if it was lost on the way.
    pub(crate) fn share(self) -> Option<Self> {
        self.held.relock(FlockArg::LockSharedNonblock).ok()?;
        Some(self)
    }

    /// Tries a lock of the store itself, whose file is made if missing and never removed.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(
            disk::open_lasting(path)?,
            FlockArg::LockExclusiveNonblock,
            path,
        )
    }

    /// As [`Self::try_exclusive`], together with others who share it.
    pub(crate) fn try_shared(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(
            disk::open_lasting(path)?,
            FlockArg::LockSharedNonblock,
            path,
        )
    }

    fn take(file: File, how: FlockArg, path: &Path) -> Result<Option<Self>, StoreError> {
        before(Effect::Lock(path)).map_err(StoreError::at("lock", path))?;
        match Flock::lock(file, how) {
            Ok(held) => Ok(Some(Self { held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(StoreError::io("lock", path, errno.into())),
        }
    }

    /// Removes the file and then lets go.
    pub(crate) fn remove(self, path: &Path) -> Removal {
        disk::remove_file(path)
    }
}
