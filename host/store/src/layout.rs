//! The paths of everything below the root of a store.

use std::path::{Path, PathBuf};

use crate::{StoreError, disk};

/// The paths of a store.
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

    /// Creates the directories that are missing.
    pub(crate) fn make(&self) -> Result<(), StoreError> {
        for dir in self.dirs() {
            disk::make_dir_all(&dir)?;
        }
        Ok(())
    }

    /// The directories directly below the root.
    pub(crate) fn dirs(&self) -> [PathBuf; 6] {
        [
            self.blobs(),
            self.indexes(),
            self.instances(),
            self.scratches(),
            self.logs(),
            self.caches(),
        ]
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("store.db")
    }

    /// The write-ahead log of the database.
    pub(crate) fn wal(&self) -> PathBuf {
        self.root.join("store.db-wal")
    }

    /// The memory that the processes with the database open share.
    pub(crate) fn shared_memory(&self) -> PathBuf {
        self.root.join("store.db-shm")
    }

    /// A new database that is about to replace the current one.
    pub(crate) fn next_database(&self) -> PathBuf {
        self.root.join("store.db.next")
    }

    /// The lock that each process holds shared while it has the store open, and exclusively to change
    /// the schema.
    pub(crate) fn version_lock(&self) -> PathBuf {
        self.root.join("version.lock")
    }

    /// The lock for cleaning up an instance whose own lock file is missing.
    pub(crate) fn reap_lock(&self) -> PathBuf {
        self.root.join("reap.lock")
    }

    /// The lock of the one process that prunes.
    pub(crate) fn prune_lock(&self) -> PathBuf {
        self.root.join("prune.lock")
    }

    /// Disk space and files that are kept aside for a full disk.
    pub(crate) fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// The file of the reserve that holds the disk space. Stores of any age call it `room`.
    pub(crate) fn reserved_bytes(&self) -> PathBuf {
        self.reserve().join("room")
    }

    /// The file of the reserve that holds the disk space for records of what has ended.
    pub(crate) fn reserved_for_end(&self) -> PathBuf {
        self.reserve().join("end")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The content of an object. The name is the id of its row, which is never reused.
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

    /// The scratch directories of all instances.
    pub(crate) fn scratches(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn scratch(&self, instance: &str) -> PathBuf {
        self.scratches().join(instance)
    }

    /// Where a rebuild makes the new database; protected by the version lock.
    pub(crate) fn rebuilding(&self) -> PathBuf {
        self.scratches().join("rebuild")
    }

    /// Where older versions kept guest disks for later VMs.
    pub(crate) fn old_disks(&self) -> PathBuf {
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
