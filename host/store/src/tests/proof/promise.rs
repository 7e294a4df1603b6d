//! What the store has promised, and whether it holds.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::{key, names};
use crate::history::LogReader;
use crate::{BuildId, BuildState, DiffId, Finding, Image, Store, Trust};

/// Something that a call has promised by returning success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Promise {
    Blob(Vec<u8>),
    /// A layer with this tar.
    Layer(Vec<u8>),
    /// The result of the step of this name.
    Hit(&'static str, DiffId),
    Image(Image),
    NoImage(&'static str),
    /// A build that has started.
    Build(BuildId),
    /// It has ended with this status.
    Ended(BuildId, i32),
    Forgotten(BuildId),
    /// Output in the log of a step. It is never synced, so it survives only a crash of the process.
    Output(BuildId, u32, Vec<u8>),
    /// Hints can be lost with power.
    Cache(&'static str, Vec<u8>),
    Value(&'static str, String),
}

impl Promise {
    fn outlives_power(&self) -> bool {
        !matches!(self, Self::Output(..) | Self::Cache(..) | Self::Value(..))
    }
}

/// All promises so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Promises(Arc<Mutex<Vec<Promise>>>);

impl Promises {
    pub(super) fn of(promises: Vec<Promise>) -> Self {
        Self(Arc::new(Mutex::new(promises)))
    }

    pub(super) fn now(&self) -> Vec<Promise> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn add(&self, promise: Promise) {
        self.0.lock().unwrap().push(promise);
    }

    /// Drops promises about what is being changed: until that has ended, either state may be found.
    pub(super) fn doubt(&self, of: impl Fn(&Promise) -> bool) {
        self.0.lock().unwrap().retain(|promise| !of(promise));
    }
}

/// Describes a broken promise. `power`: power was lost since.
pub(super) fn broken(store: &Store, promises: &[Promise], power: bool) -> Option<String> {
    let promises = promises
        .iter()
        .filter(|promise| !power || promise.outlives_power());
    let mut wrong = promises.filter_map(|promise| match is_kept(store, promise) {
        Ok(true) => None,
        Ok(false) => Some(format!("{promise:?} does not hold")),
        Err(error) => Some(format!("{promise:?}: {error}")),
    });
    wrong.next()
}

fn is_kept(store: &Store, promise: &Promise) -> Result<bool, Box<dyn std::error::Error>> {
    Ok(match promise {
        Promise::Blob(bytes) => store.blob(crate::sha256(bytes))?.as_ref() == Some(bytes),
        Promise::Layer(tar) => {
            let id = DiffId(crate::sha256(tar));
            let mut read = Vec::new();
            store.open_layer(id)?.read_to_end(&mut read)?;
            let layer = store.layer(id)?.ok_or("no layer")?;
            read == *tar && store.index(id)?.entries().len() as u64 == layer.entries
        }
        Promise::Hit(name, id) => {
            store
                .peek(key(name), Trust::Host)?
                .map(|layer| layer.diff_id)
                == Some(*id)
        }
        Promise::Image(image) => store.image(&image.name)?.is_some_and(|found| {
            (found.manifest, found.config, found.layers)
                == (image.manifest, image.config, image.layers.clone())
        }),
        Promise::NoImage(name) => store.image(name)?.is_none(),
        Promise::Build(id) => store.builds(1000)?.iter().any(|build| build.id == *id),
        Promise::Ended(id, status) => store.builds(1000)?.iter().any(|build| {
            build.id == *id
                && matches!(&build.state, BuildState::Ended(_, end) if end.status == *status)
        }),
        Promise::Forgotten(id) => store.builds(1000)?.iter().all(|build| build.id != *id),
        Promise::Output(id, step, piece) => {
            let logs = store.step_logs(*id)?;
            let (_, path) = logs.iter().find(|(at, _)| at == step).ok_or("no log")?;
            let mut reader = LogReader::open(path)?;
            let mut found = false;
            while let Some(frame) = reader.next_frame()? {
                found |= frame.data == *piece;
            }
            found
        }
        Promise::Cache(name, bytes) => store.load_cache(name).as_ref() == Some(bytes),
        Promise::Value(name, value) => store.fact("kind", name)?.as_ref() == Some(value),
    })
}

/// Describes anything that still belongs to another instance.
fn held_by_others(store: &Store) -> Option<String> {
    let count = |what: &str, sql: &str| {
        let sql = sql.to_owned();
        let found: i64 = store
            .read(|tx| Ok(tx.query_row(&sql, [store.instance_row()], |row| row.get(0))?))
            .unwrap();
        (found != 0).then(|| format!("{found} {what}"))
    };
    let builds = store.builds(1000).unwrap();
    let runs = builds
        .iter()
        .any(|build| build.state == BuildState::Running);
    runs.then(|| "a running build".to_owned())
        .or_else(|| {
            count(
                "other instances",
                "SELECT count(*) FROM instance WHERE id <> ?1",
            )
        })
        .or_else(|| count("leases", "SELECT count(*) FROM lease WHERE instance <> ?1"))
        .or_else(|| count("claims", "SELECT count(*) FROM claim WHERE instance <> ?1"))
        .or_else(|| {
            let sql = "SELECT count(*) FROM resource WHERE instance <> ?1";
            count("resources", sql)
        })
        .or_else(|| {
            let sql = "SELECT count(*) FROM object WHERE state = 'writing' AND maker <> ?1";
            count("pending objects", sql)
        })
}

/// What a check may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clean {
    /// Nothing.
    Wholly,
    /// Only objects whose removal failed; a repair removes them.
    ButLeftovers,
    /// Anything, if a repair repairs it: the scenario begins with damage.
    AfterRepair,
}

/// Describes what a check finds and should not.
fn violation(store: &Store, clean: Clean) -> Option<String> {
    let report = store.check(false).unwrap();
    let bad = report.findings.iter().find(|(finding, _)| match clean {
        Clean::Wholly => true,
        Clean::ButLeftovers => !matches!(finding, Finding::Leftover { why: Some(_), .. }),
        Clean::AfterRepair => false,
    });
    if let Some((finding, _)) = bad {
        return Some(format!("the check finds: {finding}"));
    }
    if report.is_clean() {
        return None;
    }
    let repaired = store.check(true).unwrap();
    if !repaired.is_repaired() {
        return Some(format!("not repaired: {:?}", repaired.findings));
    }
    let again = store.check(false).unwrap().findings;
    (!again.is_empty()).then(|| format!("found after the repair: {again:?}"))
}

/// Opens the store as the next process would, and panics unless everything is right.
pub(super) fn settle(root: &Path, promises: &[Promise], clean: Clean, power: bool) {
    let store = super::try_open(root).unwrap();
    let wrong = held_by_others(&store)
        .or_else(|| violation(&store, clean))
        .or_else(|| broken(&store, promises, power));
    if let Some(wrong) = wrong {
        panic!("{wrong}");
    }
    // The store can also be used.
    let blob = store.put_blob(b"afterwards", "test").unwrap();
    assert!(store.blob(blob).unwrap().is_some());
    store.close().unwrap();
    for dir in ["instances", "tmp"] {
        let left = names(&root.join(dir));
        assert!(left.is_empty(), "left in {dir}: {left:?}");
    }
}
