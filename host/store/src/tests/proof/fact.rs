//! What the store has promised, and whether it holds.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::{key, names};
use crate::history::LogReader;
use crate::{BuildId, BuildState, DiffId, Digest, Finding, Image, Store};

/// Something that a call has told to be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    Blob(Vec<u8>),
    /// By its tar.
    Layer(Vec<u8>),
    /// The step of this name made the layer.
    Hit(&'static str, DiffId),
    Image(Image),
    NoImage(&'static str),
    /// A build that has started.
    Build(BuildId),
    /// It has ended, with that status.
    Ended(BuildId, i32),
    Forgotten(BuildId),
    /// A piece in the log of a step. Never synced, so only a crash of the process leaves it.
    Output(BuildId, u32, Vec<u8>),
    /// Hints may go with power.
    Cache(&'static str, Vec<u8>),
    Value(&'static str, String),
}

impl Fact {
    fn outlives_power(&self) -> bool {
        !matches!(self, Self::Output(..) | Self::Cache(..) | Self::Value(..))
    }
}

/// All that was told so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts(Arc<Mutex<Vec<Fact>>>);

impl Facts {
    pub(super) fn of(facts: Vec<Fact>) -> Self {
        Self(Arc::new(Mutex::new(facts)))
    }

    pub(super) fn now(&self) -> Vec<Fact> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn add(&self, fact: Fact) {
        self.0.lock().unwrap().push(fact);
    }

    /// Takes back what is about to be changed: until that has ended, either may be found.
    pub(super) fn doubt(&self, of: impl Fn(&Fact) -> bool) {
        self.0.lock().unwrap().retain(|fact| !of(fact));
    }
}

/// Tells what does not hold. `power`: it was lost since.
pub(super) fn broken(store: &Store, facts: &[Fact], power: bool) -> Option<String> {
    let facts = facts.iter().filter(|fact| !power || fact.outlives_power());
    let mut wrong = facts.filter_map(|fact| match holds(store, fact) {
        Ok(true) => None,
        Ok(false) => Some(format!("{fact:?} does not hold")),
        Err(error) => Some(format!("{fact:?}: {error}")),
    });
    wrong.next()
}

fn holds(store: &Store, fact: &Fact) -> Result<bool, Box<dyn std::error::Error>> {
    Ok(match fact {
        Fact::Blob(bytes) => store.blob(Digest::of(bytes))?.as_ref() == Some(bytes),
        Fact::Layer(tar) => {
            let id = DiffId(Digest::of(tar));
            let mut read = Vec::new();
            store.open_layer(id)?.read_to_end(&mut read)?;
            let layer = store.layer(id)?.ok_or("no layer")?;
            read == *tar && store.index(id)?.entries().len() as u64 == layer.entries
        }
        Fact::Hit(name, id) => store.peek(key(name))?.map(|layer| layer.diff_id) == Some(*id),
        Fact::Image(image) => store.image(&image.name)?.is_some_and(|found| {
            (found.manifest, found.config, found.layers)
                == (image.manifest, image.config, image.layers.clone())
        }),
        Fact::NoImage(name) => store.image(name)?.is_none(),
        Fact::Build(id) => store.builds(1000)?.iter().any(|build| build.id == *id),
        Fact::Ended(id, status) => store.builds(1000)?.iter().any(|build| {
            build.id == *id
                && matches!(&build.state, BuildState::Ended(_, end) if end.status == *status)
        }),
        Fact::Forgotten(id) => store.builds(1000)?.iter().all(|build| build.id != *id),
        Fact::Output(id, step, piece) => {
            let logs = store.step_logs(*id)?;
            let (_, path) = logs.iter().find(|(at, _)| at == step).ok_or("no log")?;
            let mut reader = LogReader::open(path)?;
            let mut found = false;
            while let Some(frame) = reader.next_frame()? {
                found |= frame.data == *piece;
            }
            found
        }
        Fact::Cache(name, bytes) => store.load_cache(name).as_ref() == Some(bytes),
        Fact::Value(name, value) => store.fact("kind", name)?.as_ref() == Some(value),
    })
}

/// Whether anything but this instance seems to be at work.
pub(super) fn unrest(store: &Store) -> Option<String> {
    let count = |what: &str, sql: &str| {
        let sql = sql.to_owned();
        let found: i64 = store
            .read(|tx| Ok(tx.query_row(&sql, [store.me()], |row| row.get(0))?))
            .unwrap();
        (found != 0).then(|| format!("{found} {what}"))
    };
    let builds = store.builds(1000).unwrap();
    let runs = builds
        .iter()
        .any(|build| build.state == BuildState::Running);
    runs.then(|| "a build that runs".to_owned())
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
            count("drafts", sql)
        })
}

/// How clean a check must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clean {
    /// Nothing is found.
    Wholly,
    /// All that is found is an object whose removal failed, and a repair takes it away.
    ButLeftovers,
    /// Whatever is found, a repair mends it: the scenario begins with damage.
    AfterRepair,
}

/// Tells what a check finds that it should not.
pub(super) fn dirt(store: &Store, clean: Clean) -> Option<String> {
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

/// Opens the store as the next process would, and panics unless all is well.
pub(super) fn settle(root: &Path, facts: &[Fact], clean: Clean, power: bool) {
    let store = super::try_open(root).unwrap();
    let wrong = unrest(&store)
        .or_else(|| dirt(&store, clean))
        .or_else(|| broken(&store, facts, power));
    if let Some(wrong) = wrong {
        panic!("{wrong}");
    }
    // It is not only whole but works.
    let blob = store.put_blob(b"afterwards", "test").unwrap();
    assert!(store.blob(blob).unwrap().is_some());
    store.close().unwrap();
    for dir in ["instances", "tmp"] {
        let left = names(&root.join(dir));
        assert!(left.is_empty(), "left in {dir}: {left:?}");
    }
}
