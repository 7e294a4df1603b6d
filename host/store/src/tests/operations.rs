//! Random operations of several instances, some of which die, against a model in memory.
//!
//! After each operation the database is read and compared with the model: the valid objects, the
//! results, the images, the builds, and the claims and leases of live instances. A check finds only
//! what could not be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use nix::errno::Errno;
use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::Connection;

use super::proof::{fast_dir, settle};
use super::{ENDED, key, layer, open};
use crate::failpoint::{IoOperation, with_hook};
use crate::{
    BuildId, BuildInfo, Claim, DiffId, Digest, Finding, Lookup, Provenance, PruneOptions, Store,
    StoreError, Trust,
};

/// Names of steps, each of which makes the layer of its name.
const STEPS: [&str; 4] = ["a", "b", "c", "d"];
const BLOBS: [&str; 3] = ["blob 1", "blob 2", "blob 3"];
const IMAGES: [&str; 2] = ["image 1", "image 2"];
const HANDLES: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Open,
    Close(usize),
    /// As a killed process: nothing is cleaned up.
    Kill(usize),
    /// Runs a step on top of another, or only claims it.
    Step {
        at: usize,
        step: usize,
        parent: usize,
        hold: bool,
    },
    /// Commits or drops the oldest claim that is held.
    Settle {
        at: usize,
        commit: bool,
    },
    Blob(usize, usize),
    Tag {
        at: usize,
        image: usize,
        step: usize,
        blob: usize,
    },
    Untag(usize, usize),
    Build(usize),
    EndBuild(usize),
    Prune {
        at: usize,
        images: bool,
        limit: Limit,
        fault: Option<bool>,
    },
    /// Rebuilds the database, if nobody has the store open.
    Rebuild,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    None,
    Age,
    Dry,
    Goal,
}

fn ops() -> impl Strategy<Value = Op> {
    let at = 0..HANDLES;
    let limit = prop_oneof![
        4 => Just(Limit::None),
        1 => Just(Limit::Age),
        1 => Just(Limit::Dry),
        1 => Just(Limit::Goal),
    ];
    prop_oneof![
        3 => Just(Op::Open),
        1 => at.clone().prop_map(Op::Close),
        1 => at.clone().prop_map(Op::Kill),
        8 => (at.clone(), 0..STEPS.len(), 0..STEPS.len(), any::<bool>())
            .prop_map(|(at, step, parent, hold)| Op::Step { at, step, parent, hold }),
        3 => (at.clone(), any::<bool>()).prop_map(|(at, commit)| Op::Settle { at, commit }),
        3 => (at.clone(), 0..BLOBS.len()).prop_map(|(at, blob)| Op::Blob(at, blob)),
        3 => (at.clone(), 0..IMAGES.len(), 0..STEPS.len(), 0..BLOBS.len())
            .prop_map(|(at, image, step, blob)| Op::Tag { at, image, step, blob }),
        1 => (at.clone(), 0..IMAGES.len()).prop_map(|(at, image)| Op::Untag(at, image)),
        1 => at.clone().prop_map(Op::Build),
        1 => at.clone().prop_map(Op::EndBuild),
        4 => (at, any::<bool>(), limit, proptest::option::weighted(0.3, any::<bool>()))
            .prop_map(|(at, images, limit, fault)| Op::Prune { at, images, limit, fault }),
        1 => Just(Op::Rebuild),
    ]
}

/// A live instance.
struct Handle {
    store: Store,
    held: Vec<(usize, Claim)>,
    builds: Vec<BuildId>,
}

/// What must be in the store. Objects are identified by their content.
#[derive(Debug, Default)]
struct Model {
    /// Each with the id of its row: parents are older.
    valid: BTreeMap<&'static str, i64>,
    edges: BTreeSet<(&'static str, &'static str)>,
    results: BTreeSet<&'static str>,
    images: BTreeMap<&'static str, (&'static str, &'static str)>,
    /// Of live instances, by id of their row.
    leases: BTreeSet<(i64, &'static str)>,
    claims: BTreeMap<&'static str, i64>,
    builds: usize,
    ended: usize,
    /// Whether a tombstoned object may still exist.
    stuck: bool,
}

impl Model {
    fn forget(&mut self, instance: i64) {
        self.leases.retain(|(who, _)| *who != instance);
        self.claims.retain(|_, who| *who != instance);
    }

    /// Removes what nothing keeps. With `images`, names keep nothing, and are removed with their parts.
    fn prune(&mut self, images: bool) {
        let pinned = |name: &str| {
            let mut parts = self.images.values();
            self.leases.iter().any(|(_, leased)| *leased == name)
                || !images && parts.any(|(layer, blob)| *layer == name || *blob == name)
        };
        let mut kept: BTreeSet<&str> = BTreeSet::new();
        let mut by_age: Vec<_> = self.valid.iter().collect();
        by_age.sort_by_key(|(_, id)| std::cmp::Reverse(**id));
        for (name, _) in by_age {
            let child = |(child, parent): &(&str, &str)| parent == name && kept.contains(child);
            if pinned(name) || self.edges.iter().any(child) {
                kept.insert(name);
            }
        }
        self.images
            .retain(|_, (layer, blob)| kept.contains(layer) && kept.contains(blob));
        self.valid.retain(|name, _| kept.contains(name));
        self.results.retain(|name| kept.contains(name));
        self.edges
            .retain(|(child, parent)| kept.contains(child) && kept.contains(parent));
    }
}

/// The store and its model.
struct Bench {
    dir: tempfile::TempDir,
    handles: Vec<Handle>,
    model: Model,
}

fn is_busy(error: &StoreError) -> bool {
    matches!(error, StoreError::Busy(_))
}

impl Bench {
    fn new() -> Self {
        let dir = fast_dir();
        let model = Model::default();
        Self {
            dir,
            handles: Vec::new(),
            model,
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    fn database(&self) -> Connection {
        Connection::open(self.root().join("store.db")).unwrap()
    }

    /// The id of the row of a valid object.
    fn id(&self, content: Digest) -> i64 {
        let sql = "SELECT id FROM object WHERE digest = ?1 AND state = 'valid'";
        self.database()
            .query_row(sql, [content.0], |row| row.get(0))
            .unwrap()
    }

    /// Applies an operation to the store and the model.
    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Open if self.handles.len() < HANDLES => {
                let store = open(&self.root());
                self.handles.push(Handle {
                    store,
                    held: Vec::new(),
                    builds: Vec::new(),
                });
            }
            Op::Open => {}
            Op::Rebuild => self.rebuild()?,
            Op::Close(at) | Op::Kill(at) => {
                if at < self.handles.len() {
                    let handle = self.handles.remove(at);
                    self.model.forget(handle.store.instance_row());
                    if matches!(op, Op::Kill(_)) {
                        handle.store.inner.die();
                    } else {
                        handle.store.close().unwrap();
                    }
                }
            }
            Op::Step { at, .. }
            | Op::Settle { at, .. }
            | Op::Blob(at, _)
            | Op::Tag { at, .. }
            | Op::Untag(at, _)
            | Op::Build(at)
            | Op::EndBuild(at)
            | Op::Prune { at, .. } => {
                if at < self.handles.len() {
                    self.work(at, op)?;
                }
            }
        }
        Ok(())
    }

    /// Commits or drops the claim that was held first.
    fn settle(&mut self, at: usize, commit: bool) {
        if self.handles[at].held.is_empty() {
            return;
        }
        let (step, claim) = self.handles[at].held.remove(0);
        if commit {
            self.commit(at, step, step, claim);
        } else {
            self.model.claims.remove(STEPS[step]);
            drop(claim);
        }
    }

    fn tag(
        &mut self,
        at: usize,
        image: &'static str,
        step: &'static str,
        blob: &'static str,
    ) -> Result<(), TestCaseError> {
        let digest = crate::sha256(blob.as_bytes());
        let store = &self.handles[at].store;
        let done = store.set_image(image, digest, digest, &[diff_id(step)]);
        let there = [step, blob]
            .iter()
            .all(|part| self.model.valid.contains_key(part));
        prop_assert_eq!(done.is_ok(), there, "{:?}", done);
        if there {
            self.model.images.insert(image, (step, blob));
        }
        Ok(())
    }

    fn work(&mut self, at: usize, op: &Op) -> Result<(), TestCaseError> {
        let me = self.handles[at].store.instance_row();
        match *op {
            Op::Step {
                step, parent, hold, ..
            } => self.step(at, step, parent, hold)?,
            Op::Settle { commit, .. } => self.settle(at, commit),
            Op::Blob(_, blob) => {
                let blob = BLOBS[blob];
                self.handles[at]
                    .store
                    .put_blob(blob.as_bytes(), "test")
                    .unwrap();
                let id = self.id(crate::sha256(blob.as_bytes()));
                prop_assert_eq!(*self.model.valid.entry(blob).or_insert(id), id);
                self.model.leases.insert((me, blob));
            }
            Op::Tag {
                image, step, blob, ..
            } => self.tag(at, IMAGES[image], STEPS[step], BLOBS[blob])?,
            Op::Untag(_, image) => {
                let was = self.handles[at].store.remove_image(IMAGES[image]).unwrap();
                prop_assert_eq!(was, self.model.images.remove(IMAGES[image]).is_some());
            }
            Op::Build(_) => {
                let build = self.handles[at]
                    .store
                    .start_build(&BuildInfo::default())
                    .unwrap();
                self.handles[at].builds.push(build);
                self.model.builds += 1;
            }
            Op::EndBuild(_) => {
                if let Some(build) = self.handles[at].builds.pop() {
                    // A prune of everything deletes builds that are not running, and this one is running.
                    self.handles[at].store.end_build(build, &ENDED).unwrap();
                    self.model.ended += 1;
                }
            }
            Op::Prune {
                images,
                limit,
                fault,
                ..
            } => self.prune(at, images, limit, fault),
            Op::Open | Op::Rebuild | Op::Close(_) | Op::Kill(_) => {}
        }
        Ok(())
    }

    fn step(
        &mut self,
        at: usize,
        step: usize,
        parent: usize,
        hold: bool,
    ) -> Result<(), TestCaseError> {
        let name = STEPS[step];
        let me = self.handles[at].store.instance_row();
        match self.handles[at]
            .store
            .lookup(key(name), Trust::Host)
            .unwrap()
        {
            Lookup::Hit(hit) => {
                prop_assert!(self.model.results.contains(name));
                prop_assert_eq!(hit.layer.diff_id, diff_id(name));
                self.model.leases.insert((me, name));
            }
            Lookup::Busy(owner) => {
                prop_assert!(!self.model.results.contains(name));
                let who = self
                    .handles
                    .iter()
                    .find(|it| it.store.instance() == owner.instance);
                let who = who.map(|it| it.store.instance_row());
                prop_assert_eq!(who, self.model.claims.get(name).copied());
            }
            Lookup::Claimed(claim) => {
                prop_assert!(!self.model.results.contains(name));
                prop_assert_eq!(self.model.claims.insert(name, me), None);
                if hold {
                    self.handles[at].held.push((step, claim));
                } else {
                    self.commit(at, step, parent, claim);
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, at: usize, step: usize, parent: usize, claim: Claim) {
        let (name, parent) = (STEPS[step], STEPS[parent]);
        let store = &self.handles[at].store;
        let made = layer(store, name);
        claim
            .commit(&made, &[diff_id(parent)], &Provenance::default(), false)
            .unwrap();
        let (me, id) = (store.instance_row(), self.id(made.diff_id.0));
        self.model.valid.insert(name, id);
        self.model.claims.remove(name);
        self.model.results.insert(name);
        self.model.leases.insert((me, name));
        if self
            .model
            .valid
            .get(parent)
            .is_some_and(|parent| *parent < id)
        {
            self.model.edges.insert((name, parent));
        }
    }

    fn prune(&mut self, at: usize, images: bool, limit: Limit, fault: Option<bool>) {
        let options = PruneOptions {
            images,
            unused_for: matches!(limit, Limit::Age).then_some(Duration::from_secs(3600)),
            max_used: matches!(limit, Limit::Goal).then_some(1 << 50),
            dry_run: matches!(limit, Limit::Dry),
            ..PruneOptions::default()
        };
        let hook = move |operation: IoOperation<'_>| match (operation, fault) {
            (IoOperation::RemoveFile(path), Some(busy))
                if path.parent().is_some_and(|dir| dir.ends_with("blobs")) =>
            {
                Err(io::Error::from(if busy {
                    Errno::EBUSY
                } else {
                    Errno::EIO
                }))
            }
            _ => Ok(()),
        };
        let store = self.handles[at].store.clone();
        let report = with_hook(hook, || {
            store.prune(&options, &mut |_| ControlFlow::Continue(()))
        });
        let report = report.unwrap();
        if options.dry_run {
            return;
        }
        self.model.stuck = !report.failed.is_empty();
        if !matches!(limit, Limit::None) {
            return;
        }
        self.model.prune(images);
        if images {
            let running: usize = self.handles.iter().map(|it| it.builds.len()).sum();
            // The ended builds of live instances are deleted as well.
            self.model.ended = 0;
            let live = self
                .handles
                .iter()
                .map(|it| it.store.instance().to_string());
            let live: Vec<String> = live.collect();
            let ends = store.builds(1000).unwrap();
            assert!(
                ends.iter().all(|it| it.state == crate::BuildState::Running),
                "{live:?}"
            );
            self.model.builds = running;
        }
    }

    /// After a rebuild only content is left.
    fn rebuild(&mut self) -> Result<(), TestCaseError> {
        if !self.root().exists() {
            return Ok(());
        }
        match Store::rebuild(&self.root()) {
            Err(error) => prop_assert!(!self.handles.is_empty() && is_busy(&error), "{}", error),
            Ok(_) => {
                prop_assert!(self.handles.is_empty());
                // Tombstoned objects, and files of dead instances, may count as blobs now. From here on
                // only a prune shows what exists.
                let mut model = Model::default();
                std::mem::swap(&mut model, &mut self.model);
                let store = open(&self.root());
                store.check(true).unwrap();
                for name in model.valid.keys() {
                    let content = content(name);
                    prop_assert!(
                        store
                            .acquire(|tx| crate::object::find(
                                tx,
                                crate::object::Wanted::Bytes(content)
                            ))
                            .unwrap()
                            .is_some(),
                        "{} is lost",
                        name
                    );
                }
                store.close().unwrap();
                let store = open(&self.root());
                let all = PruneOptions {
                    images: true,
                    ..PruneOptions::default()
                };
                store
                    .prune(&all, &mut |_| ControlFlow::Continue(()))
                    .unwrap();
                store.close().unwrap();
            }
        }
        Ok(())
    }

    /// Compares the store with the model.
    fn compare(&self) -> Result<(), TestCaseError> {
        if self.handles.is_empty() {
            return Ok(());
        }
        let database = self.database();
        let texts = |sql: &str| -> BTreeSet<String> {
            let mut rows = database.prepare(sql).unwrap();
            let rows = rows.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let hex = |digest: Digest| hex::encode(digest.0).to_uppercase();
        let model = &self.model;
        let valid: BTreeSet<String> = model.valid.keys().map(|it| hex(content(it))).collect();
        prop_assert_eq!(
            texts("SELECT hex(digest) FROM object WHERE state = 'valid'"),
            valid
        );
        let results = model.results.iter().map(|it| hex(key(it).0)).collect();
        prop_assert_eq!(texts("SELECT hex(key) FROM action"), results);
        let images: BTreeSet<String> = model.images.keys().map(|it| (*it).to_owned()).collect();
        prop_assert_eq!(texts("SELECT name FROM image"), images);
        let live: BTreeSet<i64> = self
            .handles
            .iter()
            .map(|it| it.store.instance_row())
            .collect();
        let live: Vec<String> = live.iter().map(ToString::to_string).collect();
        let live = live.join(",");
        let claims = model
            .claims
            .iter()
            .map(|(it, who)| format!("{who} {}", hex(key(it).0)));
        let sql =
            format!("SELECT instance || ' ' || hex(key) FROM claim WHERE instance IN ({live})");
        prop_assert_eq!(texts(&sql), claims.collect());
        let leases = model
            .leases
            .iter()
            .map(|(who, it)| format!("{who} {}", hex(content(it))));
        let sql = format!(
            "SELECT instance || ' ' || hex(digest) FROM lease l JOIN object o ON o.id = l.object \
             WHERE instance IN ({live})"
        );
        prop_assert_eq!(texts(&sql), leases.collect());
        let count = |sql: &str| -> usize {
            let count: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
            usize::try_from(count).unwrap()
        };
        prop_assert_eq!(count("SELECT count(*) FROM build"), model.builds);
        prop_assert_eq!(
            count("SELECT count(*) FROM build WHERE ended IS NOT NULL"),
            model.ended
        );
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (finding, _) in self.handles[0].store.check(false).unwrap().findings {
            let known = match finding {
                Finding::Leftover { why: Some(_), .. } => self.model.stuck,
                // Reported until a process opens or prunes the store.
                Finding::DeadInstance(_) => true,
                _ => false,
            };
            prop_assert!(known, "{}", finding);
        }
        Ok(())
    }
}

fn content(name: &str) -> Digest {
    if BLOBS.contains(&name) {
        return crate::sha256(name.as_bytes());
    }
    crate::sha256(&super::tar(&[("file", name.as_bytes())]))
}

fn diff_id(step: &str) -> DiffId {
    DiffId(content(step))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_do_what_the_model_does(ops in vec(ops(), 10..40)) {
        let mut bench = Bench::new();
        bench.apply(&Op::Open)?;
        for op in &ops {
            bench.apply(op)?;
            bench.compare()?;
        }
        for handle in bench.handles.drain(..) {
            handle.store.close().unwrap();
        }
        let store = open(&bench.root());
        store.prune(&PruneOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
        store.close().unwrap();
        settle(&bench.root());
    }
}
