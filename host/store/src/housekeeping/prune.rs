//! Prune: what nothing keeps goes, children before parents, least recently used first.
//!
//! The law: a pass is finite. There is one list of candidates and each is tried once; whether it may
//! go is asked again in the transaction that condemns it, which no lease can slip past. Condemned is
//! on disk before the first byte goes, and what cannot be removed stays condemned and stops nothing.
//! The pass can be cut off at any instruction; the next one goes on from there. One process prunes
//! at a time, builds never wait for it, and nothing is held while progress is told but the lock that
//! says so.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Duration;

use rusqlite::Transaction;

use super::graph::Graph;
use super::{Filter, reserve, room, usage};
use crate::db::Commit;
use crate::history::{Forgotten, Keep};
use crate::lock::Lock;
use crate::object::{remove_files, settle_removals, unpin};
use crate::{Digest, Item, Removal, Store, StoreError, disk, image, instance, time};

/// Objects that are condemned in one transaction.
const BATCH: usize = 128;

/// What a prune shall do.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Also what images with names are made of: an image loses its name when a part of it goes. With
    /// [`Self::unused_for`], only images that were not made in that time.
    pub images: bool,
    /// Only what was not used for this long.
    pub unused_for: Option<Duration>,
    /// Only what passes all of these.
    pub filters: Vec<Filter>,
    /// Stop when the store takes at most this many bytes.
    pub max_used: Option<u64>,
    /// Stop when at least this many bytes are free on the file system.
    pub min_free: Option<u64>,
    /// Leave the store this many bytes, whatever the other limits say.
    pub reserved: u64,
    /// Only say what would go.
    pub dry_run: bool,
}

impl PruneOptions {
    /// Whether enough can be enough.
    fn is_bounded(&self) -> bool {
        self.max_used.is_some() || self.min_free.is_some() || self.reserved > 0
    }

    /// Whether something with these properties passes all filters; only objects have digests.
    #[must_use]
    pub fn takes(&self, digest: Option<Digest>, kind: &str, origin: &str) -> bool {
        let mut filters = self.filters.iter();
        filters.all(|filter| filter.takes(digest, kind, origin))
    }

    /// Whether nothing shall be left that is not in use, history included.
    fn is_for_all(&self) -> bool {
        let is_choosy = self.unused_for.is_some() || !self.filters.is_empty();
        self.images && !is_choosy && !self.is_bounded()
    }
}

/// One candidate that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Its digest.
    pub digest: Option<Digest>,
    /// `layer`, `manifest`, …
    pub kind: String,
    /// Bytes that the file system had allocated for it.
    pub bytes: u64,
    /// What came of it.
    pub removal: Removal,
}

/// How a prune ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PruneEnd {
    /// Everything that may go is gone, or as much as was asked for.
    #[default]
    Complete,
    /// Everything that may go is gone, and it was less than was asked for.
    Incomplete,
    /// The caller stopped it.
    Cancelled,
    /// Another process is at it.
    AlreadyRunning,
}

/// What a prune did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PruneReport {
    /// How it ended.
    pub end: PruneEnd,
    /// Bytes of the files that are seen to be gone.
    pub freed: u64,
    /// Objects that are gone.
    pub removed: u64,
    /// What could not be removed, and why. It stays condemned, and is tried again next time.
    pub failed: Vec<String>,
    /// What live instances use.
    pub in_use: Vec<Item>,
    /// What else is kept: for images that have names, and layers below others that are kept.
    pub kept: Vec<Item>,
}

/// One prune at work.
struct Pass<'a> {
    store: &'a Store,
    dry_run: bool,
    progress: &'a mut dyn FnMut(&Pruned) -> ControlFlow<()>,
    report: PruneReport,
    /// Names that keep nothing.
    weak_names: HashSet<String>,
}

/// Something to remove.
struct Candidate {
    id: i64,
    digest: Option<Digest>,
    kind: String,
}

impl Store {
    /// Removes what nothing keeps. `progress` is told of each object that was tried, and may stop
    /// the pass.
    ///
    /// # Errors
    /// If the store fails. That something could not be removed is no error but in the report.
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
            weak_names: HashSet::new(),
        };
        if !options.dry_run {
            reserve::give_up(self.layout())?;
        }
        let done = pass.run(options);
        if !options.dry_run {
            reserve::make(self.layout());
        }
        done?;
        Ok(pass.report)
    }

    /// How many bytes a prune with these options sets out to free; [`u64::MAX`] if there is no goal.
    ///
    /// # Errors
    /// If the store or its file system cannot be looked at.
    pub fn prune_goal(&self, options: &PruneOptions) -> Result<u64, StoreError> {
        if !options.is_bounded() {
            return Ok(u64::MAX);
        }
        let layout = self.layout();
        let total = disk::allocated_below(layout.root())?;
        let mut keep = options.max_used.unwrap_or(u64::MAX);
        if let Some(min_free) = options.min_free {
            keep =
                keep.min(total.saturating_sub(min_free.saturating_sub(room::space(layout)?.free)));
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
        // Whatever the clock said when they were made.
        let named_until = options.unused_for.map_or(i64::MAX, |_| before);
        if options.images {
            self.weak_names = store.names_until(named_until)?;
        }
        if !self.dry_run {
            if self.finish_condemned()?.is_break() {
                return Ok(());
            }
            instance::reap(store.layout(), &store.inner.db)?;
            self.sweep();
        }
        self.remove_unused(options, before)?;
        if !self.dry_run && self.report.end != PruneEnd::Cancelled {
            store.forget_facts()?;
            if options.is_for_all() {
                self.forgot(store.forget_builds()?);
                self.forgot(store.forget_caches()?);
            }
            self.forgot(store.trim_history(Keep::DEFAULT)?);
        }
        Ok(())
    }

    /// Removes what was condemned before. That needs no room in the database until bytes are gone.
    fn finish_condemned(&mut self) -> Result<ControlFlow<()>, StoreError> {
        let condemned = self.store.read(|tx| {
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
        for batch in condemned.chunks(BATCH) {
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
            node.images.retain(|name| !self.weak_names.contains(name));
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
                let ids =
                    store.write(Commit::Durable, |tx| condemn(tx, &batch, &self.weak_names))?;
                batch.retain(|candidate| ids.contains(&candidate.id));
            }
            if self.remove(&batch)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Removes the files of condemned objects and tells of each.
    fn remove(&mut self, batch: &[Candidate]) -> Result<ControlFlow<()>, StoreError> {
        let layout = self.store.layout();
        let mut removals = Vec::with_capacity(batch.len());
        let mut flow = ControlFlow::Continue(());
        for candidate in batch {
            let bytes = usage::allocated(layout, candidate.id);
            let removal = if self.dry_run {
                Removal::Gone
            } else {
                remove_files(layout, candidate.id)
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
            settle_removals(&self.store.inner.db, &removals)?;
        }
        Ok(flow)
    }

    /// What cannot even be looked at is one of the things that could not be removed.
    fn sweep(&mut self) {
        let strays = self.store.sweep().unwrap_or_else(|error| {
            self.report.failed.push(error.to_string());
            Vec::new()
        });
        for (stray, removal) in strays {
            match removal {
                Removal::Gone => log::info!("removed the leftover {}", stray.path.display()),
                Removal::Busy(why) | Removal::Failed(why) => self.report.failed.push(why),
            }
        }
    }

    fn forgot(&mut self, forgotten: Forgotten) {
        self.report.freed += forgotten.freed;
        self.report.failed.extend(forgotten.failed);
    }
}

/// Condemns what of a batch nothing keeps at this moment, children before their parents, and takes
/// away the weak names of what goes. Returns what is condemned now.
fn condemn(
    tx: &Transaction<'_>,
    batch: &[Candidate],
    weak_names: &HashSet<String>,
) -> Result<Vec<i64>, StoreError> {
    let mut condemned = Vec::with_capacity(batch.len());
    for candidate in batch {
        let names = image::names_of(tx, candidate.id)?;
        if !names.iter().all(|name| weak_names.contains(name)) {
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
                image::delete(tx, &name)?;
            }
            unpin(tx, candidate.id)?;
            condemned.push(candidate.id);
        }
    }
    Ok(condemned)
}

impl Store {
    /// The names of images that were made until then, in seconds since 1970.
    fn names_until(&self, then: i64) -> Result<HashSet<String>, StoreError> {
        self.read(|tx| {
            let mut rows = tx.prepare_cached("SELECT name FROM image WHERE created <= ?1")?;
            let names = rows.query_map([then], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    /// Facts about objects that are gone.
    fn forget_facts(&self) -> Result<(), StoreError> {
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
