//! The store as the registry of VMs.

use std::fs;
use std::path::{Path, PathBuf};

use store::{ResourceId, ResourceKind, Store};

use crate::vm::BootError;
use crate::vm::registry::{Record, Registry, RegistryError, Resource};

/// A store, with the real path of its scratch directory.
pub(super) struct StoreRegistry {
    store: Store,
    scratch: PathBuf,
}

impl StoreRegistry {
    /// A lock file is recognised by the path that the kernel shows for it, so links are resolved.
    pub(super) fn new(store: &Store) -> Result<Self, BootError> {
        Ok(Self {
            store: store.clone(),
            scratch: fs::canonicalize(store.scratch())?,
        })
    }
}

impl Registry for StoreRegistry {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn record(&self, resource: &Resource) -> Result<Box<dyn Record>, RegistryError> {
        let kind = match resource {
            Resource::Monitor { lock, pid } => ResourceKind::Vm {
                pid: *pid,
                lock: lock.clone(),
            },
            Resource::Directory(path) => ResourceKind::Directory(path.clone()),
        };
        let id = self.store.add_resource(kind)?;
        Ok(Box::new(StoreRecord {
            store: self.store.clone(),
            id,
        }))
    }

    fn load(&self, name: &str) -> Option<Vec<u8>> {
        self.store.load_cache(name)
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        Ok(self.store.save_cache(name, bytes)?)
    }
}

struct StoreRecord {
    store: Store,
    id: ResourceId,
}

impl Record for StoreRecord {
    fn remove(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(self.store.drop_resource(self.id)?)
    }
}
