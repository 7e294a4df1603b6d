//! Locks between processes: what the kernel drops when a process ends.
//!
//! The law: alive means that the lock is held. Locks are tried and never waited for. A lock
//! belongs to an open file description, so two handles in one process exclude each other like two
//! processes do, and every descriptor here is closed on exec.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::linkat;

use crate::{Removal, StoreError, disk};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Flock<File>,
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
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(dir);
        match unnamed {
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
        let unnamed = format!("/proc/self/fd/{}", held.as_raw_fd());
        linkat(
            AT_FDCWD,
            unnamed.as_str(),
            AT_FDCWD,
            path,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        Ok(Self { _held: held })
    }

    fn create_renamed(path: &Path) -> Result<Self, StoreError> {
        let unready = path.with_extension("new");
        let file = disk::create(&unready).map_err(StoreError::at("create", &unready))?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| StoreError::io("lock", &unready, e.into()))?;
        disk::rename(&unready, path)?;
        Ok(Self { _held: held })
    }

    /// Looks whether anybody holds the lock, and takes it if not.
    pub(crate) fn probe(path: &Path) -> Result<Probe, StoreError> {
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Probe::Missing),
            Err(error) => return Err(StoreError::io("open", path, error)),
        };
        Ok(
            match Self::take(file, FlockArg::LockExclusiveNonblock, path)? {
                Some(lock) => Probe::Free(lock),
                None => Probe::Held,
            },
        )
    }

    /// Tries a lock of the store itself, whose file is made if missing and never removed.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(Self::lasting(path)?, FlockArg::LockExclusiveNonblock, path)
    }

    /// As [`Self::try_exclusive`], together with others who share it.
    pub(crate) fn try_shared(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::take(Self::lasting(path)?, FlockArg::LockSharedNonblock, path)
    }

    fn lasting(path: &Path) -> Result<File, StoreError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::at("open", path))
    }

    fn take(file: File, how: FlockArg, path: &Path) -> Result<Option<Self>, StoreError> {
        match Flock::lock(file, how) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(StoreError::io("lock", path, errno.into())),
        }
    }

    /// Removes the file and then lets go.
    pub(crate) fn remove(self, path: &Path) -> Removal {
        disk::remove_file(path)
    }
}
