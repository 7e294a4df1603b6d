//! The handle of an open store: its paths, its database, and the instance of this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, Transaction};

use crate::budget::{Budget, Charge};
use crate::db::{Commit, Db};
use crate::instance::InstanceHandle;
use crate::layout::Layout;
use crate::{DiffId, Index, InstanceId, LowSpace, StoreError, reserve};

/// An open store. Clones share one instance.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    budget: Option<Arc<Budget>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) db: Db,
    pub(crate) instance: InstanceHandle,
    read_only: bool,
    closed: AtomicBool,
    /// Set while nothing large may be written.
    low_space: Mutex<Option<LowSpace>>,
    /// Indexes that were read or made.
    indexes: Mutex<HashMap<DiffId, Arc<Index>>>,
}

#[cfg(test)]
impl Inner {
    /// Leaves everything as a killed process would, whatever clones there are.
    pub(crate) fn die(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(self.instance.take_lock());
    }
}

impl Store {
    pub(crate) fn new(layout: Layout, db: Db, instance: InstanceHandle, read_only: bool) -> Self {
        let inner = Inner {
            layout,
            db,
            instance,
            read_only,
            closed: AtomicBool::new(false),
            low_space: Mutex::default(),
            indexes: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            budget: None,
        }
    }

    /// A clone for one build, which adds at most `limit` bytes of layers and other blobs: with it and its
    /// clones nothing more is written then ([`StoreError::OverBudget`]).
    #[must_use]
    pub fn with_budget(&self, limit: u64) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            budget: Some(Arc::new(Budget::new(limit))),
        }
    }

    /// The bytes that count against the budget of this clone. Zero without one.
    #[must_use]
    pub fn budget_used(&self) -> u64 {
        self.budget.as_ref().map_or(0, |budget| budget.used())
    }

    /// What an object that is about to be written takes from the budget.
    pub(crate) fn charge(&self) -> Charge {
        Charge::new(self.budget.as_ref())
    }

    /// The root directory of the store. Its path contains no symbolic links.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// The instance of this process.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.inner.instance.name()
    }

    /// A directory of this instance alone, which is removed when the instance ends. Empty if the store
    /// was opened read-only.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.inner.instance.scratch()
    }

    /// Why this process writes nothing large to the store, if a [`crate::FreeSpaceGuard`] has found that
    /// there is too little free space.
    #[must_use]
    pub fn low_space(&self) -> Option<LowSpace> {
        let low = self.inner.low_space.lock();
        *low.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_low_space(&self, low: Option<LowSpace>) {
        let current = self.inner.low_space.lock();
        *current.unwrap_or_else(PoisonError::into_inner) = low;
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// The id of the row of this instance.
    pub(crate) fn instance_row(&self) -> i64 {
        self.inner.instance.row()
    }

    /// Forbids writes through this handle and its clones. Returns whether they were forbidden before.
    pub(crate) fn set_closed(&self) -> bool {
        self.inner.closed.swap(true, Ordering::SeqCst)
    }

    /// Runs a transaction that writes. `work` must contain only SQL.
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

    /// Runs the transaction that ends a build. On a full disk it has the space of the reserve. So has the
    /// end of the instance; but nothing before it, after which the build could use up that space.
    pub(crate) fn write_end<T>(
        &self,
        commit: Commit,
        mut work: impl FnMut(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.write(commit, &mut work) {
            Err(StoreError::Full { .. }) if reserve::release_for_end(self.layout())? => {
                self.write(commit, work)
            }
            done => done,
        }
    }

    /// Runs a transaction that reads.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.db.read(work)
    }

    /// The index of a layer, if this process has read or made it.
    pub(crate) fn cached_index(&self, id: DiffId) -> Option<Arc<Index>> {
        let cached = self.inner.indexes.lock();
        let cached = cached.unwrap_or_else(PoisonError::into_inner);
        cached.get(&id).map(Arc::clone)
    }

    pub(crate) fn cache_index(&self, id: DiffId, index: &Arc<Index>) {
        let cached = self.inner.indexes.lock();
        let mut cached = cached.unwrap_or_else(PoisonError::into_inner);
        cached.insert(id, Arc::clone(index));
    }
}
