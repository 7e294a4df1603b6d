//! Opening and closing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, Transaction};

use crate::db::{self, Commit, Db};
use crate::housekeeping::{give_up_reserve, has_reserve, make_reserve};
use crate::instance::{self, Me};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::{DiffId, Index, InstanceId, Removal, StoreError, disk, place};

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// What the user ran, for "who holds this". Must hold no secrets.
    pub command: String,
    /// Only look: nothing is made, leased or written, and what is found may go at any moment.
    pub read_only: bool,
}

/// An open store. Clones share one instance.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) db: Db,
    me: Me,
    read_only: bool,
    closed: AtomicBool,
    pub(crate) indexes: Mutex<HashMap<DiffId, Arc<Index>>>,
}

#[cfg(test)]
impl Inner {
    /// Leaves all as a killed process would, whatever clones there are.
    pub(crate) fn die(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.me.die();
    }
}

/// Where there is no reserve, makes one, unless a prune is using it up just now.
fn set_room_aside(layout: &Layout) -> Result<(), StoreError> {
    if !has_reserve(layout)?
        && let Some(_lock) = Lock::try_exclusive(&layout.prune_lock())?
    {
        make_reserve(layout);
    }
    Ok(())
}

/// Removes what a stopped rebuild has left. None runs, since the caller has the version lock.
fn clear_rebuild(layout: &Layout) {
    if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_tree(&layout.rebuilding()) {
        log::warn!("cannot remove what a rebuild has left: {why}");
    }
}

impl Store {
    /// Opens the store in the directory `root`, and makes it if it is missing. What dead instances
    /// left is settled, and this process becomes an instance.
    ///
    /// # Errors
    /// [`StoreError::NetworkFs`], [`StoreError::NotOurs`], [`StoreError::NewerSchema`] where the
    /// store must not be used; [`StoreError::Missing`] if it is to be read only and is not there.
    pub fn open(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        let store = Self::open_as_it_is(root, options)?;
        if !options.read_only {
            set_room_aside(store.layout())?;
        }
        Ok(store)
    }

    fn open_as_it_is(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        let read_only = options.read_only;
        let layout = Layout::new(place::prepare(root, read_only)?);
        if !read_only {
            let is_new = disk::length(&layout.database())?.is_none();
            layout.make()?;
            if is_new {
                db::refuse_orphans(&layout)?;
                place::make_lasting(layout.root())?;
            }
        }
        let db = Db::open(&layout, read_only)?;
        let me = if read_only {
            Me::watching()?
        } else {
            clear_rebuild(&layout);
            instance::reap(&layout, &db)?;
            Me::register(&layout, &db, &options.command)?
        };
        let inner = Inner {
            layout,
            db,
            me,
            read_only,
            closed: AtomicBool::new(false),
            indexes: Mutex::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        if !read_only && let Err(error) = store.sweep_after_boot() {
            log::warn!("cannot look for leftovers: {error}");
        }
        Ok(store)
    }

    /// Opens the store in order to prune it. If the disk is so full that even that fails, the room
    /// that was set aside is given up for it; [`Self::prune`] sets it aside again.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_prune(root: &Path, options: &OpenOptions) -> Result<Self, StoreError> {
        match Self::open(root, options) {
            Err(StoreError::Full { path }) => {
                let layout = Layout::new(place::prepare(root, options.read_only)?);
                match Lock::try_exclusive(&layout.prune_lock())? {
                    Some(_lock) => give_up_reserve(&layout)?,
                    None => return Err(StoreError::Full { path }),
                }
                Self::open_as_it_is(root, options)
            }
            opened => opened,
        }
    }

    /// Ends the instance: its leases, claims, scratch, resources and lock file. Clones can only
    /// read afterwards. If it is not called, the next process that opens the store does the same.
    ///
    /// # Errors
    /// If something could not be removed; it is tried again by the next process.
    pub fn close(self) -> Result<(), StoreError> {
        if self.inner.read_only || self.inner.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.inner.me.end(&self.inner.layout, &self.inner.db)
    }

    /// The directory of the store, without links in its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// The instance that this process is.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.inner.me.name()
    }

    /// A directory of this instance alone, which goes when the instance ends. A store that was
    /// opened for reading only has none.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.inner.me.scratch()
    }

    /// Where the disks of builder VMs are kept. The store only counts them.
    #[must_use]
    pub fn disks_dir(&self) -> PathBuf {
        self.inner.layout.disks()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// The row of this instance.
    pub(crate) fn me(&self) -> i64 {
        self.inner.me.row()
    }

    /// Runs a transaction that writes. `work` must hold only SQL.
    pub(crate) fn write<T>(
        &self,
        commit: Commit,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.inner.read_only {
            return Err(StoreError::ReadOnly);
        }
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        self.inner.db.write(commit, work)
    }

    /// Runs a transaction that reads.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.db.read(work)
    }
}
