//! Instances: the processes that use the store.
//!
//! The law: an instance is alive if and only if its lock file is locked. The lock file is already
//! locked when its name appears, and the row is inserted after that. [`crate::reap`] cleans up after
//! instances that have ended.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::db::{Commit, Db};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::random::random;
use crate::{StoreError, disk, time};

/// One execution of a program that opened a store. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl InstanceId {
    /// Parses the output of `Display`.
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| StoreError::corrupt(format!("`{text}` is not an instance id")))?;
        Ok(Self(bytes))
    }
}

/// The instance of this process.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    name: InstanceId,
    row: i64,
    scratch: PathBuf,
    /// Taken out at the end.
    lock: Mutex<Option<Lock>>,
}

impl InstanceHandle {
    /// The handle of a process that only reads, and has no row.
    pub(crate) fn read_only() -> Result<Self, StoreError> {
        let name = InstanceId(random()?);
        Ok(Self {
            name,
            row: 0,
            scratch: PathBuf::new(),
            lock: Mutex::new(None),
        })
    }

    /// Registers this process as an instance.
    pub(crate) fn register(layout: &Layout, db: &Db, command: &str) -> Result<Self, StoreError> {
        let name = InstanceId(random()?);
        let text = name.to_string();
        let lock = Lock::create(&layout.instances(), &layout.instance_lock(&text))?;
        let boot = boot_id()?;
        let row = db.write(Commit::Relaxed, |tx| {
            tx.prepare_cached(
                "INSERT INTO instance (name, boot, pid, command, started) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert((&text, boot, std::process::id(), command, time::now()))
            .map_err(StoreError::from)
        })?;
        let scratch = layout.scratch(&text);
        disk::make_dir(&scratch)?;
        Ok(Self {
            name,
            row,
            scratch,
            lock: Mutex::new(Some(lock)),
        })
    }

    pub(crate) fn name(&self) -> InstanceId {
        self.name
    }

    pub(crate) fn row(&self) -> i64 {
        self.row
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Takes the lock out, for whoever ends the instance; `None` if that was done before. Dropping the
    /// lock does what the kernel does if the process is killed.
    pub(crate) fn take_lock(&self) -> Option<Lock> {
        self.lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Identifies this boot of the kernel.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    #[cfg(test)]
    if let Some(boot) = crate::failpoint::fake_boot_id() {
        return Ok(boot);
    }
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(StoreError::at("read", path))?;
    Ok(text.trim().to_owned())
}
