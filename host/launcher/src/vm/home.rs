//! What a VM needs from the store, as a seam: tests put a plain directory in its place, and one
//! whose every operation can fail.

use std::path::{Path, PathBuf};

/// An error of the ledger.
pub(crate) type HomeError = Box<dyn std::error::Error + Send + Sync>;

/// A thing outside the database that must be found again if this process dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing {
    /// A monitor, which holds this lock file locked as long as it lives.
    Monitor {
        /// The lock file.
        lock: PathBuf,
        /// Its process id; zero if it has none yet.
        pid: u32,
    },
    /// A guest disk in use.
    Disk(PathBuf),
    /// A directory of this process.
    Directory(PathBuf),
}

/// The record of a thing.
pub(crate) trait Row: Send {
    /// Removes the record, after the absence of the thing was observed.
    fn remove(self: Box<Self>) -> Result<(), HomeError>;
}

/// Where VMs of this process live.
pub(crate) trait Home: Send + Sync {
    /// A directory that only this process uses.
    fn scratch(&self) -> &Path;

    /// The directory of the guest disks, which processes share.
    fn disks(&self) -> PathBuf;

    /// Records a thing that will be made next.
    fn record(&self, thing: &Thing) -> Result<Box<dyn Row>, HomeError>;

    /// Small remembered bytes; `None` also if they are damaged.
    fn load(&self, name: &str) -> Option<Vec<u8>>;

    /// Remembers small bytes.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError>;
}
