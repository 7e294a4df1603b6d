//! The store as the place where VMs live.

use std::fs;
use std::path::{Path, PathBuf};

use store::{ResourceId, ResourceKind, Store};

use crate::vm::BootError;
use crate::vm::home::{Home, HomeError, Row, Thing};

/// A store, with the real path of its scratch directory.
pub(super) struct StoreHome {
    store: Store,
    scratch: PathBuf,
}

impl StoreHome {
    /// A lock file is recognised by the path that the kernel shows for it, so links are resolved.
    pub(super) fn new(store: &Store) -> Result<Self, BootError> {
        Ok(Self {
            store: store.clone(),
            scratch: fs::canonicalize(store.scratch())?,
        })
    }
}

impl Home for StoreHome {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn disks(&self) -> PathBuf {
        self.store.disks_dir()
    }

    fn record(&self, thing: &Thing) -> Result<Box<dyn Row>, HomeError> {
        let kind = match thing {
            Thing::Monitor { lock, pid } => ResourceKind::Vm {
                pid: *pid,
                lock: lock.clone(),
            },
            Thing::Disk(path) => ResourceKind::Disk(path.clone()),
            Thing::Directory(path) => ResourceKind::Directory(path.clone()),
        };
        let id = self.store.add_resource(kind)?;
        Ok(Box::new(StoreRow {
            store: self.store.clone(),
            id,
        }))
    }

    fn load(&self, name: &str) -> Option<Vec<u8>> {
        self.store.load_cache(name)
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        Ok(self.store.save_cache(name, bytes)?)
    }
}

struct StoreRow {
    store: Store,
    id: ResourceId,
}

impl Row for StoreRow {
    fn remove(self: Box<Self>) -> Result<(), HomeError> {
        Ok(self.store.drop_resource(self.id)?)
    }
}
