//! The registry: what a VM needs from the store, as a trait. Tests use a plain directory in its
//! place.

use std::path::{Path, PathBuf};

/// An error of the registry.
pub(crate) type RegistryError = Box<dyn std::error::Error + Send + Sync>;

/// A resource outside the database, which must be found again if this process dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A monitor, which holds this lock file locked as long as it lives.
    Monitor {
        /// The lock file.
        lock: PathBuf,
        /// Its process id; zero if it has none yet.
        pid: u32,
    },
    /// A directory of this process.
    Directory(PathBuf),
}

/// The record of a resource.
pub(crate) trait Record: Send {
    /// Removes the record, after the absence of the resource was observed.
    fn remove(self: Box<Self>) -> Result<(), RegistryError>;
}

/// Where the VMs of this process live.
pub(crate) trait Registry: Send + Sync {
    /// A directory that only this process uses.
    fn scratch(&self) -> &Path;

    /// Records a resource that will be made next.
    fn record(&self, resource: &Resource) -> Result<Box<dyn Record>, RegistryError>;

    /// Loads a small cache file; `None` also if it is damaged.
    fn load(&self, name: &str) -> Option<Vec<u8>>;

    /// Saves a small cache file.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), RegistryError>;
}
