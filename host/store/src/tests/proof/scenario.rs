//! The operations that are tried, and the stores that they start with.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::super::{key, layer, step, tar};
use super::promise::{Clean, Promise, Promises};
use super::snapshot::{self, Snapshot};
use super::{fast_dir, try_open};
use crate::db::Commit;
use crate::{
    BuildInfo, BuildOutcome, Class, DiffId, IngestError, Layer, Lookup, OpenOptions, PruneOptions,
    ResourceKind, Store, Trust,
};

type Done = Result<(), Box<dyn std::error::Error>>;

/// A store in a directory of its own.
pub(super) struct Case {
    /// The directory that is recorded; the store is below it.
    pub(super) dir: PathBuf,
    pub(super) promises: Promises,
    /// Opened before the operation begins.
    store: Option<Store>,
}

/// What a scenario starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// Not even a directory.
    Nothing,
    /// Layers, blobs, images and builds, all instances ended.
    Used,
    /// As [`Self::Used`], with the last transactions still in the write-ahead log.
    WithWal,
    /// With an instance that was killed while it did many things.
    Killed,
    /// With damage of each kind.
    Damaged,
    /// With garbage in place of the database.
    Ruined,
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) base: Base,
    /// Whether the store is opened before, without a fault.
    opened: bool,
    op: fn(&Case) -> Done,
}

pub(super) const ALL: [Scenario; 24] = [
    begins("open new", Base::Nothing, open_new),
    begins("open", Base::Used, open_close),
    begins("open after a kill", Base::Killed, open_close),
    begins("open to prune", Base::Used, open_to_prune),
    begins("rebuild", Base::WithWal, rebuild),
    begins("rebuild of a ruin", Base::Ruined, rebuild),
    within("blob", Base::Used, blob),
    within("large blob", Base::Used, large_blob),
    within("layer", Base::Used, new_layer),
    within("the same again", Base::Used, same_again),
    within("given up", Base::Used, given_up),
    within("claim and commit", Base::Used, claim_and_commit),
    within("claim dropped", Base::Used, claim_dropped),
    within("tag and untag", Base::Used, tag_and_untag),
    within("history", Base::Used, history),
    within("history removed", Base::Used, history_removed),
    within("prune", Base::Used, prune),
    within("prune with images", Base::Used, prune_images),
    within("prune within limits", Base::Used, prune_limits),
    within("prune after a kill", Base::Killed, prune),
    within("check", Base::Damaged, check),
    within("damage met", Base::Damaged, damage_met),
    within("hints", Base::Used, hints),
    within("close", Base::Used, close),
];

const fn begins(name: &'static str, base: Base, op: fn(&Case) -> Done) -> Scenario {
    let opened = false;
    Scenario {
        name,
        base,
        opened,
        op,
    }
}

const fn within(name: &'static str, base: Base, op: fn(&Case) -> Done) -> Scenario {
    let opened = true;
    Scenario {
        name,
        base,
        opened,
        op,
    }
}

impl Scenario {
    /// Puts the start of the scenario into `dir`.
    pub(super) fn prepare(&self, dir: &Path) -> Case {
        let (snapshot, promises) = self.base.get();
        snapshot::make(dir, snapshot);
        let mut case = Case {
            dir: dir.to_owned(),
            promises: Promises::of(promises.clone()),
            store: None,
        };
        if self.opened {
            case.store = Some(try_open(&case.root()).unwrap());
        }
        case
    }

    pub(super) fn run(&self, case: &Case) -> Done {
        (self.op)(case)
    }

    /// What a check may find afterwards.
    pub(super) fn clean(&self) -> Clean {
        match self.base {
            Base::Nothing | Base::Used | Base::Killed => Clean::Wholly,
            // Other files in the directory of objects.
            Base::WithWal | Base::Ruined | Base::Damaged => Clean::AfterRepair,
        }
    }
}

impl Case {
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("new/store")
    }

    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    fn open(&self) -> &Store {
        self.store.as_ref().expect("opened before")
    }

    pub(super) fn end(self) -> Option<Store> {
        self.store
    }
}

impl Base {
    /// Made once, then copied.
    fn get(self) -> &'static (Snapshot, Vec<Promise>) {
        static MADE: [OnceLock<(Snapshot, Vec<Promise>)>; 6] = [const { OnceLock::new() }; 6];
        MADE[self as usize].get_or_init(|| self.make())
    }

    fn make(self) -> (Snapshot, Vec<Promise>) {
        let dir = fast_dir();
        let root = dir.path().join("new/store");
        if self == Self::Nothing {
            return (Snapshot::new(), Vec::new());
        }
        let mut promises = used(&root);
        if self != Self::WithWal {
            fold(&root);
        }
        match self {
            Self::Nothing | Self::Used => {}
            Self::WithWal => promises.retain(is_content),
            Self::Killed => return (killed(dir.path(), &root, &mut promises), promises),
            Self::Damaged => damage(&root, &mut promises),
            Self::Ruined => {
                promises.retain(is_content);
                std::fs::write(root.join("store.db"), vec![0x5a; 20_000]).unwrap();
            }
        }
        (snapshot::of(dir.path()), promises)
    }
}

/// What a rebuild can find in the object files alone.
fn is_content(promise: &Promise) -> bool {
    matches!(promise, Promise::Blob(_) | Promise::Layer(_))
}

fn small(name: &str) -> Vec<u8> {
    tar(&[("file", name.as_bytes())])
}

fn ingest(store: &Store, tar: &[u8]) -> Result<Layer, IngestError> {
    let mut writer = store.layer_writer("test")?;
    // An error comes again from `finish`.
    writer.write_all(tar).ok();
    writer.finish()
}

fn outcome(status: i32) -> BuildOutcome {
    BuildOutcome {
        class: Class::User,
        status,
        message: "no".to_owned(),
        image: None,
    }
}

fn image(case: &Promises, store: &Store, name: &'static str, layers: &[DiffId]) -> Done {
    let (manifest, config) = (crate::sha256(b"manifest"), crate::sha256(b"config"));
    case.doubt(|promise| match promise {
        Promise::Image(image) => image.name == name,
        Promise::NoImage(none) => *none == name,
        _ => false,
    });
    store.set_image(name, manifest, config, layers)?;
    case.add(Promise::Image(crate::Image {
        name: name.to_owned(),
        manifest,
        config,
        layers: layers.to_vec(),
        created: 0,
    }));
    Ok(())
}

fn used(root: &Path) -> Vec<Promise> {
    let promises = Promises::default();
    let (store, other) = (try_open(root).unwrap(), try_open(root).unwrap());
    for blob in [&b"manifest"[..], b"config", b"loose blob"] {
        store.put_blob(blob, "test").unwrap();
        promises.add(Promise::Blob(blob.to_vec()));
    }
    let a = step(&store, "a", &[]).diff_id;
    let b = step(&store, "b", &[a]).diff_id;
    layer(&store, "loose");
    for name in ["a", "b", "loose"] {
        promises.add(Promise::Layer(small(name)));
    }
    promises.add(Promise::Hit("a", a));
    promises.add(Promise::Hit("b", b));
    image(&promises, &store, "kept", &[a]).unwrap();
    image(&promises, &store, "other", &[a, b]).unwrap();
    let ended = store.start_build(&BuildInfo::default()).unwrap();
    let mut log = store.step_log(ended, 1, "RUN x").unwrap();
    log.append(1, b"old output");
    store.end_build(ended, &outcome(3)).unwrap();
    promises.add(Promise::Ended(ended, 3));
    promises.add(Promise::Output(ended, 1, b"old output".to_vec()));
    let lost = other.start_build(&BuildInfo::default()).unwrap();
    promises.add(Promise::Build(lost));
    drop(other);
    store.save_cache("cache", b"cached").unwrap();
    promises.add(Promise::Cache("cache", b"cached".to_vec()));
    store.set_fact("kind", "known", "value").unwrap();
    promises.add(Promise::Value("known", "value".to_owned()));
    store.close().unwrap();
    try_open(root).unwrap().close().unwrap();
    promises.now()
}

/// Checkpoints the database, so that the log contains only what a scenario adds.
fn fold(root: &Path) {
    let database = rusqlite::Connection::open(root.join("store.db")).unwrap();
    database
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

/// The disk at the moment when an instance is killed that does many things at once.
fn killed(dir: &Path, root: &Path, promises: &mut Vec<Promise>) -> Snapshot {
    let store = try_open(root).unwrap();
    let Lookup::Claimed(_claim) = store.lookup(key("held"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    let made = step(&store, "made", &[]).diff_id;
    promises.push(Promise::Layer(small("made")));
    promises.push(Promise::Hit("made", made));
    let mut writer = store.layer_writer("unfinished").unwrap();
    writer.write_all(&vec![0; 1 << 20]).unwrap();
    let _empty = store.blob_writer("empty").unwrap();
    std::fs::create_dir(store.scratch().join("below")).unwrap();
    std::fs::write(store.scratch().join("below/left"), b"x").unwrap();
    let build = store.start_build(&BuildInfo::default()).unwrap();
    let mut log = store.step_log(build, 1, "RUN y").unwrap();
    log.append(1, b"last words");
    promises.push(Promise::Build(build));
    promises.push(Promise::Output(build, 1, b"last words".to_vec()));
    let snapshot = snapshot::of(dir);
    drop(writer);
    snapshot
}

fn damage(root: &Path, promises: &mut Vec<Promise>) {
    let store = try_open(root).unwrap();
    let id = |name: &str| {
        let wanted = crate::object::Wanted::Layer(crate::sha256(&small(name)));
        let found = store.read(|tx| crate::object::find(tx, wanted)).unwrap();
        found.unwrap().id.to_string()
    };
    let (a, b, loose) = (id("a"), id("b"), id("loose"));
    store.close().unwrap();
    fold(root);
    std::fs::remove_file(root.join("index").join(a)).unwrap();
    std::fs::write(root.join("index").join(b), b"no index").unwrap();
    std::fs::write(root.join("blobs").join(loose), b"torn").unwrap();
    promises.retain(|promise| *promise != Promise::Layer(small("loose")));
    std::fs::write(root.join("blobs/999"), b"unknown").unwrap();
    std::fs::create_dir_all(root.join("tmp/0123/below")).unwrap();
    std::fs::create_dir(root.join("logs/77")).unwrap();
}

fn open_new(case: &Case) -> Done {
    let store = try_open(&case.root())?;
    store.put_blob(b"first", "test")?;
    case.promises.add(Promise::Blob(b"first".to_vec()));
    Ok(store.close()?)
}

fn open_close(case: &Case) -> Done {
    Ok(try_open(&case.root())?.close()?)
}

fn open_to_prune(case: &Case) -> Done {
    let options = OpenOptions {
        command: "prune".to_owned(),
        read_only: false,
    };
    Ok(Store::open_to_prune(&case.root(), &options)?.close()?)
}

fn rebuild(case: &Case) -> Done {
    let rebuilt = Store::rebuild(&case.root())?;
    assert_eq!((rebuilt.layers, rebuilt.blobs), (3, 3));
    Ok(())
}

fn blob(case: &Case) -> Done {
    case.open().put_blob(b"new", "test")?;
    case.promises.add(Promise::Blob(b"new".to_vec()));
    Ok(())
}

/// A blob that the thread of the sink writes.
fn large_blob(case: &Case) -> Done {
    let bytes = vec![7; (1 << 20) + 1000];
    let mut writer = case.open().blob_writer("test")?;
    for piece in bytes.chunks(300_000) {
        if writer.write_all(piece).is_err() {
            break;
        }
    }
    writer.finish()?;
    case.promises.add(Promise::Blob(bytes));
    Ok(())
}

fn new_layer(case: &Case) -> Done {
    let tar = small("new");
    let made = ingest(case.open(), &tar)?;
    assert_eq!(made.diff_id, DiffId(crate::sha256(&tar)));
    case.promises.add(Promise::Layer(tar));
    Ok(())
}

fn same_again(case: &Case) -> Done {
    ingest(case.open(), &small("a"))?;
    case.open().put_blob(b"manifest", "test")?;
    let mut writer = case.open().blob_writer("test")?;
    writer.write_all(b"manifest")?;
    writer.finish()?;
    Ok(())
}

fn given_up(case: &Case) -> Done {
    let mut writer = case.open().layer_writer("test")?;
    writer.write_all(&small("never")[..700])?;
    writer.abandon();
    let mut writer = case.open().blob_writer("test")?;
    writer.write_all(b"never")?;
    drop(writer);
    match ingest(case.open(), b"no tar at all") {
        Err(IngestError::Store(error)) => Err(error.into()),
        refused => {
            assert!(refused.is_err());
            Ok(())
        }
    }
}

fn claim_and_commit(case: &Case) -> Done {
    let Lookup::Claimed(claim) = case.open().lookup(key("c"), Trust::Host)? else {
        return Err("not free".into());
    };
    let tar = small("c");
    let made = ingest(case.open(), &tar)?;
    case.promises.add(Promise::Layer(tar));
    let parent = DiffId(crate::sha256(&small("b")));
    let vm = case.open().record_vm()?;
    vm.begin(key("c"), "RUN c")?;
    claim.commit(&made, &[parent], &vm.so_far(), false)?;
    case.promises.add(Promise::Hit("c", made.diff_id));
    // A step runs again, and its result is another one.
    let Lookup::Claimed(claim) = case.open().claim(key("b"), Trust::Host)? else {
        return Err("not free".into());
    };
    case.promises
        .doubt(|promise| matches!(promise, Promise::Hit("b", _)));
    vm.begin(key("b"), "RUN b")?;
    claim.commit(&made, &[], &vm.so_far(), true)?;
    case.promises.add(Promise::Hit("b", made.diff_id));
    Ok(())
}

fn claim_dropped(case: &Case) -> Done {
    for release in [false, true] {
        match case.open().lookup(key("d"), Trust::Host)? {
            Lookup::Claimed(claim) if release => claim.release()?,
            Lookup::Claimed(claim) => drop(claim),
            Lookup::Hit(_) => panic!("a hit on what was never made"),
            // The first claim could not be released, and lasts until the end.
            Lookup::Busy(_) => return Err("busy".into()),
        }
    }
    Ok(())
}

fn tag_and_untag(case: &Case) -> Done {
    let store = case.open();
    let id = |name: &str| DiffId(crate::sha256(&small(name)));
    image(&case.promises, store, "new", &[id("a"), id("b")])?;
    image(&case.promises, store, "kept", &[id("b")])?;
    let other =
        |promise: &Promise| matches!(promise, Promise::Image(image) if image.name == "other");
    case.promises.doubt(other);
    assert!(store.remove_image("other")?);
    case.promises.add(Promise::NoImage("other"));
    let unknown = store.set_image("new", crate::sha256(b"?"), crate::sha256(b"config"), &[]);
    assert!(unknown.is_err());
    Ok(())
}

fn history(case: &Case) -> Done {
    let build = case.open().start_build(&BuildInfo::default())?;
    case.promises.add(Promise::Build(build));
    for number in [1, 2] {
        let mut log = case.open().step_log(build, number, "RUN z")?;
        let pieces = (0..3u8).map(|at| vec![at + 1; 700 - 300 * usize::from(at)]);
        for piece in pieces {
            let dropped = log.dropped();
            log.append(1, &piece);
            if log.dropped() == dropped {
                case.promises.add(Promise::Output(build, number, piece));
            }
        }
    }
    case.open().end_build(build, &outcome(7))?;
    case.promises.add(Promise::Ended(build, 7));
    Ok(())
}

fn history_removed(case: &Case) -> Done {
    for build in case.open().builds(1000)? {
        case.promises.doubt(|promise| match promise {
            Promise::Build(id) | Promise::Ended(id, _) | Promise::Output(id, ..) => *id == build.id,
            _ => false,
        });
        case.open().remove_build(build.id)?;
        case.promises.add(Promise::Forgotten(build.id));
    }
    Ok(())
}

fn prune_with(case: &Case, options: &PruneOptions, keeps: fn(&Promise) -> bool) -> Done {
    case.promises.doubt(|promise| !keeps(promise));
    let mut told = 0;
    let report = case.open().prune(options, &mut |_| {
        told += 1;
        ControlFlow::Continue(())
    })?;
    // The failure may also concern an unused file or a log, instead of an object.
    let failed = report.failed.len() as u64;
    assert!(
        (report.removed..=report.removed + failed).contains(&told),
        "{told} {report:?}"
    );
    Ok(())
}

/// What a prune without images does not remove.
fn is_of_an_image(promise: &Promise) -> bool {
    match promise {
        Promise::Layer(tar) => [small("a"), small("b")].contains(tar),
        Promise::Blob(bytes) => bytes != b"loose blob",
        Promise::Hit(name, _) => ["a", "b"].contains(name),
        _ => true,
    }
}

fn prune(case: &Case) -> Done {
    prune_with(case, &PruneOptions::default(), is_of_an_image)
}

fn prune_images(case: &Case) -> Done {
    let options = PruneOptions {
        images: true,
        ..PruneOptions::default()
    };
    prune_with(case, &options, |promise| {
        matches!(promise, Promise::Value(..))
    })
}

fn prune_limits(case: &Case) -> Done {
    let young = PruneOptions {
        unused_for: Some(Duration::from_secs(3600)),
        ..PruneOptions::default()
    };
    prune_with(case, &young, |_| true)?;
    let dry = PruneOptions {
        dry_run: true,
        images: true,
        ..PruneOptions::default()
    };
    prune_with(case, &dry, |_| true)?;
    let goal = PruneOptions {
        max_used: Some(1 << 40),
        ..PruneOptions::default()
    };
    prune_with(case, &goal, |_| true)?;
    // Layers are old, so unused ones are removed, but no blob.
    case.open().write(Commit::Relaxed, |tx| {
        let sql = "UPDATE object SET used = used - 7200 WHERE kind = 'layer'";
        Ok(tx.execute(sql, []).map(drop)?)
    })?;
    prune_with(case, &young, |promise| match promise {
        Promise::Blob(_) => true,
        promise => is_of_an_image(promise),
    })?;
    let less = PruneOptions {
        max_used: Some(case.open().du()?.total - 1),
        ..PruneOptions::default()
    };
    prune_with(case, &less, is_of_an_image)
}

fn check(case: &Case) -> Done {
    let report = case.open().check(true)?;
    if !report.is_repaired() {
        return Err("something is left".into());
    }
    assert_eq!(case.open().check(false)?.findings, []);
    Ok(())
}

fn damage_met(case: &Case) -> Done {
    for name in ["a", "b"] {
        let id = DiffId(crate::sha256(&small(name)));
        assert!(case.open().index(id)?.entries().len() == 1);
    }
    let loose = DiffId(crate::sha256(&small("loose")));
    assert_eq!(case.open().layer(loose)?, None);
    ingest(case.open(), &small("loose"))?;
    case.promises.add(Promise::Layer(small("loose")));
    Ok(())
}

fn hints(case: &Case) -> Done {
    case.promises
        .doubt(|promise| matches!(promise, Promise::Cache(..) | Promise::Value(..)));
    case.open().save_cache("cache", b"changed")?;
    case.promises
        .add(Promise::Cache("cache", b"changed".to_vec()));
    case.open().set_fact("kind", "known", "changed")?;
    case.promises
        .add(Promise::Value("known", "changed".to_owned()));
    Ok(())
}

fn close(case: &Case) -> Done {
    let store = case.open();
    let outside = case.dir.join("outside");
    let dir = store.add_resource(ResourceKind::Directory(outside.clone()))?;
    std::fs::create_dir_all(outside.join("below"))?;
    let socket = store.add_resource(ResourceKind::Socket(case.dir.join("socket")))?;
    store.add_resource(ResourceKind::File(case.dir.join("file")))?;
    std::fs::write(case.dir.join("file"), b"x")?;
    store.drop_resource(socket)?;
    std::fs::write(store.scratch().join("left"), b"x")?;
    store.blob_writer("unfinished")?.write_all(b"x")?;
    let Lookup::Claimed(claim) = store.lookup(key("claimed"), Trust::Host)? else {
        return Err("not free".into());
    };
    store.clone().close()?;
    assert!(!outside.exists(), "{dir:?}");
    drop(claim);
    Ok(())
}
