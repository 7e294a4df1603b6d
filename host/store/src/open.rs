//! Opening and closing a store.

use std::path::Path;

use crate::db::{self, Db};
use crate::housekeeping::free_space;
use crate::instance::InstanceHandle;
use crate::layout::Layout;
use crate::lock::Lock;
use crate::{Removal, Store, StoreError, disk, location, reap, reserve};

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The command that the user ran, shown to others who ask what uses an object. Must contain no
    /// secrets.
    pub command: String,
    /// Only read: nothing is created, leased or written, and objects that are found can be removed at
    /// any moment. An older store is migrated all the same.
    pub read_only: bool,
}

impl Store {
    /// Opens the store in the directory `root`, and creates it if it is missing. Cleans up after
    /// instances that have died, and makes this process an instance.
    ///
    /// # Errors
    /// [`StoreError::NetworkFs`], [`StoreError::NotOurs`], [`StoreError::OpenToOthers`] and
    /// [`StoreError::NewerSchema`] if the store must not be used; [`StoreError::Missing`] if it is opened read-only and does not exist.
    pub fn open(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        let store = Self::open_without_reserve(root, options)?;
        if !options.read_only {
            make_reserve(store.layout())?;
        }
        Ok(store)
    }

    fn open_without_reserve(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        let read_only = options.read_only;
        let layout = Layout::new(location::prepare_root(root, read_only)?);
        if !read_only {
            let is_new = disk::length(&layout.database())?.is_none();
            layout.make()?;
            // Older versions left the modes of these to the umask.
            for file in [layout.database(), layout.wal(), layout.shared_memory()] {
                disk::make_private(&file)?;
            }
            if is_new {
                db::refuse_orphans(&layout)?;
                location::sync_ancestors(layout.root())?;
            }
        }
        let db = Db::open(&layout, read_only)?;
        let instance = if read_only {
            InstanceHandle::read_only()?
        } else {
            clear_rebuild(&layout);
            clear_old_disks(&layout);
            reap::reap(&layout, &db)?;
            InstanceHandle::register(&layout, &db, &options.command)?
        };
        let store = Self::new(layout, db, instance, read_only);
        if !read_only && let Err(error) = store.sweep_after_boot() {
            log::warn!("cannot look for unused files: {error}");
        }
        Ok(store)
    }

    /// Opens the store in order to prune it. If the disk is too full for that, the reserve is released
    /// first; [`Self::prune`] makes it again.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_prune(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        match Self::open(root, options) {
            Err(StoreError::Full { path }) => {
                let layout = Layout::new(location::prepare_root(root, options.read_only)?);
                match Lock::try_exclusive(&layout.prune_lock())? {
                    Some(_lock) => free_space::release_reserve(&layout)?,
                    None => return Err(StoreError::Full { path }),
                }
                Self::open_without_reserve(root, options)
            }
            opened => opened,
        }
    }

    /// Ends the instance, with its leases, claims, scratch directory, resources and lock file. Clones
    /// can only read afterwards. If this is not called, the next process that opens the store does it.
    ///
    /// # Errors
    /// If something could not be removed; the next process tries again.
    pub fn close(self) -> Result<(), StoreError> {
        if self.is_read_only() || self.set_closed() {
            return Ok(());
        }
        reap::end(&self.inner.instance, self.layout(), &self.inner.db)
    }
}

/// Makes the reserve if it is missing, unless a prune is just using it.
fn make_reserve(layout: &Layout) -> Result<(), StoreError> {
    if !reserve::is_complete(layout)?
        && let Some(_lock) = Lock::try_exclusive(&layout.prune_lock())?
    {
        reserve::make(layout);
    }
    Ok(())
}

/// Removes the guest disks that older versions kept. No older version uses the store any more, since its
/// schema is newer.
fn clear_old_disks(layout: &Layout) {
    if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_tree(&layout.old_disks()) {
        log::warn!("cannot remove the guest disks of an older version: {why}");
    }
}

/// Removes the files of an interrupted rebuild. No rebuild is running, since the caller has the version
/// lock.
fn clear_rebuild(layout: &Layout) {
    if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_tree(&layout.rebuilding()) {
        log::warn!("cannot remove the files of an interrupted rebuild: {why}");
    }
}
