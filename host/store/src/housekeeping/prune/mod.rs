//! Prune: removes objects that nothing keeps, children before parents, least recently used first.
//!
//! The law: a prune is finite. There is one list of candidates, and each is tried once. Whether it may
//! be removed is checked again in the transaction that tombstones it, so no lease can be missed. The
//! tombstone is on disk before the files are removed; an object that cannot be removed keeps its
//! tombstone and does not stop the rest. A prune can be killed at any instruction, and the next one
//! continues. Only one process prunes at a time, and builds never wait for it: while progress is
//! reported, only the prune lock is held.

mod options;

use std::collections::HashSet;
use std::ops::ControlFlow;

use rusqlite::Transaction;

pub use self::options::{PruneEnd, PruneOptions, PruneReport, Pruned};
use super::graph::Graph;
use super::{free_space, usage};
use crate::db::Commit;
use crate::history::{Deleted, HistoryLimits};
use crate::lock::Lock;
use crate::{Digest, Removal, Store, StoreError, disk, reap, references, removal, reserve, time};

/// How many objects are tombstoned in one transaction.
const BATCH: usize = 128;

/// A running prune.
struct Pass<'a> {
    store: &'a Store,
    dry_run: bool,
    progress: &'a mut dyn FnMut(&Pruned) -> ControlFlow<()>,
    report: PruneReport,
    /// Image names that are removed with the parts of the image.
    removable_names: HashSet<String>,
}

/// An object to remove.
struct Candidate {
    id: i64,
    digest: Option<Digest>,
    kind: String,
}

impl Store {
    /// Removes objects that nothing keeps. `progress` is called after each object, and can cancel the
    /// prune.
    ///
    /// # Errors
    /// If the store fails. A failed removal is in the report instead.
    pub fn prune(
        &self,
        options: &PruneOptions,
        progress: &mut dyn FnMut(&Pruned) -> ControlFlow<()>,
    ) -> Result<PruneReport, StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        let Some(_lock) = Lock::try_exclusive(&self.layout().prune_lock())? else {
            let end = PruneEnd::AlreadyRunning;
            return Ok(PruneReport {
                end,
                ..PruneReport::default()
            });
        };
        let report = PruneReport::default();
        let mut pass = Pass {
            store: self,
            dry_run: options.dry_run,
            progress,
            report,
            removable_names: HashSet::new(),
        };
        if !options.dry_run {
            free_space::release_reserve(self.layout())?;
        }
        let done = pass.run(options);
        if !options.dry_run {
            reserve::make(self.layout());
        }
        done?;
        Ok(pass.report)
    }

    /// How many bytes a prune with these options tries to free; [`u64::MAX`] if there is no limit.
    ///
    /// # Errors
    /// If the size of the store, or the free space, cannot be read.
    pub fn prune_goal(&self, options: &PruneOptions) -> Result<u64, StoreError> {
        if !options.is_bounded() {
            return Ok(u64::MAX);
        }
        let layout = self.layout();
        let total = disk::allocated_below(layout.root())?;
        let mut keep = options.max_used.unwrap_or(u64::MAX);
        if let Some(min_free) = options.min_free {
            let missing = min_free.saturating_sub(free_space::space(layout)?.free);
            keep = keep.min(total.saturating_sub(missing));
        }
        if options.max_used.is_none() && options.min_free.is_none() {
            keep = 0;
        }
        Ok(total.saturating_sub(keep.max(options.reserved)))
    }
}

impl Pass<'_> {
    fn run(&mut self, options: &PruneOptions) -> Result<(), StoreError> {
        let store = self.store;
        let age = options
            .unused_for
            .map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        let before = time::now().saturating_sub(age);
        // Without an age all names, even those that a wrong clock dated into the future.
        let named_until = options.unused_for.map_or(i64::MAX, |_| before);
        if options.images {
            self.removable_names = store.image_names_until(named_until)?;
        }
        if !self.dry_run {
            if self.finish_tombstoned()?.is_break() {
                return Ok(());
            }
            reap::reap(store.layout(), &store.inner.db)?;
            self.sweep();
        }
        self.remove_unused(options, before)?;
        if !self.dry_run && self.report.end != PruneEnd::Cancelled {
            store.delete_facts()?;
            if options.is_for_all() {
                self.count(store.delete_builds()?);
                self.count(store.delete_caches()?);
            }
            self.count(store.trim_history(HistoryLimits::DEFAULT)?);
        }
        Ok(())
    }

    /// Removes what was tombstoned before. This writes to the database only after files are gone, so it
    /// works on a full disk.
    fn finish_tombstoned(&mut self) -> Result<ControlFlow<()>, StoreError> {
        let tombstoned = self.store.read(|tx| {
            let mut rows = tx.prepare_cached(
                "SELECT id, digest, kind FROM object WHERE state <> 'valid' AND state = 'condemned' \
                 ORDER BY id",
            )?;
            let rows = rows.query_map([], |row| {
                let digest: Option<[u8; 32]> = row.get(1)?;
                Ok(Candidate {
                    id: row.get(0)?,
                    digest: digest.map(Digest),
                    kind: row.get(2)?,
                })
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        for batch in tombstoned.chunks(BATCH) {
            if self.remove(batch)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn remove_unused(&mut self, options: &PruneOptions, before: i64) -> Result<(), StoreError> {
        let store = self.store;
        let mut graph = store.read(Graph::load)?;
        for node in &mut graph.nodes {
            node.images
                .retain(|name| !self.removable_names.contains(name));
        }
        (self.report.in_use, self.report.kept) = usage::kept(&graph, store.layout());
        let order = graph.removable(|node| {
            node.used <= before && options.takes(Some(node.digest), &node.kind, &node.origin)
        });
        let goal = store.prune_goal(options)?;
        let start = self.report.freed;
        let mut left = order.into_iter();
        loop {
            let mut missing = goal.saturating_sub(self.report.freed - start);
            let mut batch = Vec::new();
            while missing > 0 && batch.len() < BATCH {
                let Some(node) = left.next().and_then(|at| graph.nodes.get(at)) else {
                    break;
                };
                missing = missing.saturating_sub(usage::allocated(store.layout(), node.id));
                let (id, digest, kind) = (node.id, Some(node.digest), node.kind.clone());
                batch.push(Candidate { id, digest, kind });
            }
            if batch.is_empty() {
                let short = goal != u64::MAX && goal > self.report.freed - start;
                self.report.end = if short {
                    PruneEnd::Incomplete
                } else {
                    PruneEnd::Complete
                };
                return Ok(());
            }
            if !self.dry_run {
                let ids = store.write(Commit::Durable, |tx| {
                    tombstone(tx, &batch, &self.removable_names)
                })?;
                batch.retain(|candidate| ids.contains(&candidate.id));
            }
            if self.remove(&batch)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Removes the files of tombstoned objects, and reports each.
    fn remove(&mut self, batch: &[Candidate]) -> Result<ControlFlow<()>, StoreError> {
        let layout = self.store.layout();
        let mut removals = Vec::with_capacity(batch.len());
        let mut flow = ControlFlow::Continue(());
        for candidate in batch {
            let bytes = usage::allocated(layout, candidate.id);
            let removal = if self.dry_run {
                Removal::Gone
            } else {
                removal::remove_files(layout, candidate.id)
            };
            match &removal {
                Removal::Gone => {
                    self.report.removed += 1;
                    self.report.freed += bytes;
                }
                Removal::Busy(why) | Removal::Failed(why) => self.report.failed.push(why.clone()),
            }
            removals.push((candidate.id, removal.clone()));
            let (digest, kind) = (candidate.digest, candidate.kind.clone());
            if (self.progress)(&Pruned {
                digest,
                kind,
                bytes,
                removal,
            })
            .is_break()
            {
                self.report.end = PruneEnd::Cancelled;
                flow = ControlFlow::Break(());
                break;
            }
        }
        if !self.dry_run {
            removal::record(&self.store.inner.db, &removals)?;
        }
        Ok(flow)
    }

    /// Removes files that belong to nothing. A failure is one of the failed removals.
    fn sweep(&mut self) {
        let strays = self.store.sweep().unwrap_or_else(|error| {
            self.report.failed.push(error.to_string());
            Vec::new()
        });
        for (stray, removal) in strays {
            match removal {
                Removal::Gone => log::info!("removed unused file {}", stray.path.display()),
                Removal::Busy(why) | Removal::Failed(why) => self.report.failed.push(why),
            }
        }
    }

    fn count(&mut self, deleted: Deleted) {
        self.report.freed += deleted.freed;
        self.report.failed.extend(deleted.failed);
    }
}

/// Tombstones those objects of a batch that nothing keeps now, children before their parents, and
/// deletes their removable image names. Returns their ids.
fn tombstone(
    tx: &Transaction<'_>,
    batch: &[Candidate],
    removable_names: &HashSet<String>,
) -> Result<Vec<i64>, StoreError> {
    let mut tombstoned = Vec::with_capacity(batch.len());
    for candidate in batch {
        let names = references::image_names(tx, candidate.id)?;
        if !names.iter().all(|name| removable_names.contains(name)) {
            continue;
        }
        let changed = tx
            .prepare_cached(
                "UPDATE object SET state = 'condemned', maker = NULL \
                 WHERE id = ?1 AND state = 'valid' \
                 AND NOT EXISTS (SELECT 1 FROM lease WHERE object = ?1) \
                 AND NOT EXISTS (SELECT 1 FROM edge WHERE parent = ?1)",
            )?
            .execute([candidate.id])?;
        if changed == 1 {
            for name in names {
                references::delete_image(tx, &name)?;
            }
            references::delete_hints(tx, candidate.id)?;
            tombstoned.push(candidate.id);
        }
    }
    Ok(tombstoned)
}

impl Store {
    /// The names of images that were made until this time, in seconds since 1970.
    fn image_names_until(&self, then: i64) -> Result<HashSet<String>, StoreError> {
        self.read(|tx| {
            let mut rows = tx.prepare_cached("SELECT name FROM image WHERE created <= ?1")?;
            let names = rows.query_map([then], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    /// Deletes facts that refer to objects that no longer exist.
    fn delete_facts(&self) -> Result<(), StoreError> {
        self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached(
                "DELETE FROM fact WHERE value LIKE 'sha256:%' AND NOT EXISTS (SELECT 1 FROM object \
                 WHERE state = 'valid' AND digest = unhex(substr(fact.value, 8)))",
            )?
            .execute([])?;
            Ok(())
        })
    }
}
