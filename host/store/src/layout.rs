//! Where things lie below the root of a store.

use std::path::{Path, PathBuf};

use crate::{StoreError, disk};

/// Names of everything in a store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories that are missing.
    pub(crate) fn make(&self) -> Result<(), StoreError> {
        for dir in self.dirs() {
            disk::make_dir_all(&dir)?;
        }
        Ok(())
    }

    /// The directories directly below the root.
    pub(crate) fn dirs(&self) -> [PathBuf; 7] {
        [
            self.blobs(),
            self.indexes(),
            self.instances(),
            self.scratches(),
            self.disks(),
            self.logs(),
            self.caches(),
        ]
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("store.db")
    }

    /// The log of the database.
    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("store.db-wal")
    }

    /// A database that is about to take the place of the other one.
    pub(crate) fn next_database(&self) -> PathBuf {
        self.root.join("store.db.next")
    }

    /// Held shared by every process that has the store open, exclusively to change the schema.
    pub(crate) fn version_lock(&self) -> PathBuf {
        self.root.join("version.lock")
    }

    /// Held to settle an instance whose own lock file is missing.
    pub(crate) fn reap_lock(&self) -> PathBuf {
        self.root.join("reap.lock")
    }

    /// Held by the one process that prunes.
    pub(crate) fn prune_lock(&self) -> PathBuf {
        self.root.join("prune.lock")
    }

    /// What is given up so that a prune can begin on a full disk.
    pub(crate) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// The bytes of it.
    pub(crate) fn reserved_room(&self) -> PathBuf {
        self.reserve().join("room")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The bytes of an object. The name is that of its row and is never used again.
    pub(crate) fn blob(&self, object: i64) -> PathBuf {
        self.blobs().join(object.to_string())
    }

    pub(crate) fn indexes(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The index of a layer.
    pub(crate) fn index(&self, object: i64) -> PathBuf {
        self.indexes().join(object.to_string())
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    pub(crate) fn instance_lock(&self, instance: &str) -> PathBuf {
        self.instances().join(format!("{instance}.lock"))
    }

    pub(crate) fn scratches(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn scratch(&self, instance: &str) -> PathBuf {
        self.scratches().join(instance)
    }

    /// Where a new database is made, under the version lock.
    pub(crate) fn rebuilding(&self) -> PathBuf {
        self.scratches().join("rebuild")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The logs of a build.
    pub(crate) fn build_logs(&self, build: i64) -> PathBuf {
        self.logs().join(build.to_string())
    }

    /// The log of a step of a build.
    pub(crate) fn step_log(&self, build: i64, step: u32) -> PathBuf {
        self.build_logs(build).join(format!("{step}.log"))
    }

    pub(crate) fn caches(&self) -> PathBuf {
        self.root.join("cache")
    }
}
