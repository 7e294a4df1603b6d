//! Stores of other versions: an older one is migrated with everything in it, and a newer one is refused
//! and left as it is.
//!
//! `fixtures/schema-N.tar` is a store that the last program with schema N has made: the content of
//! [`fill`]. After a change of the schema, make the fixture of the new version with
//!
//! ```text
//! cargo test -p store --test versions -- --ignored by_hand_make_the_fixture
//! ```
//!
//! and commit it. Never make the fixture of an old version again with a newer program.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use store::{
    BuildInfo, BuildOutcome, BuildState, Class, DiffId, Digest, EntryKind, Layer, LogReader,
    Lookup, OpenOptions, Provenance, StepKey, StepLog, Store, StoreError, Trust,
};
use tempfile::TempDir;

fn fixture(schema: i64) -> PathBuf {
    let name = format!("tests/fixtures/schema-{schema}.tar");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The schema version of the store in a directory.
fn schema(root: &Path) -> i64 {
    let database = Connection::open(root.join("store.db")).unwrap();
    let version = database.query_row("PRAGMA user_version", [], |row| row.get(0));
    version.unwrap()
}

/// The schema version of this program.
fn current() -> i64 {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close().unwrap();
    schema(dir.path())
}

fn unpack(schema: i64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = fixture(schema);
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    tar::Archive::new(file).unpack(dir.path()).unwrap();
    dir
}

fn open(root: &Path) -> Store {
    try_open(root, false).unwrap()
}

fn try_open(root: &Path, read_only: bool) -> Result<Store, StoreError> {
    let command = "test".to_owned();
    Store::open(root, &OpenOptions { command, read_only })
}

fn key(name: &str) -> StepKey {
    StepKey(store::sha256(name.as_bytes()))
}

fn layer(store: &Store, path: &str, content: &[u8]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, content).unwrap();
    let mut writer = store.layer_writer("COPY . .").unwrap();
    writer.write_all(&tar.into_inner().unwrap()).unwrap();
    writer.finish().unwrap()
}

fn step(store: &Store, name: &str, made: &Layer, parents: &[DiffId]) {
    let Lookup::Claimed(claim) = store.claim(key(name), Trust::Host).unwrap() else {
        panic!("{name} is claimed")
    };
    claim
        .commit(made, parents, &Provenance::default(), false)
        .unwrap();
}

fn outcome(class: Class, status: i32, message: &str, image: Option<Digest>) -> BuildOutcome {
    let message = message.to_owned();
    BuildOutcome {
        class,
        status,
        message,
        image,
    }
}

/// Puts something of each kind into a new store. [`assert_filled`] expects exactly this.
fn fill(root: &Path) {
    let store = open(root);
    let base = layer(&store, "etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    step(&store, "base", &base, &[]);
    let top = layer(&store, "bin/app", b"#!/bin/sh\n");
    step(&store, "top", &top, &[base.diff_id]);
    // Another result of the same step is an event.
    let other = layer(&store, "bin/app", b"#!/bin/bash\n");
    step(&store, "top", &other, &[base.diff_id]);
    let manifest = store.put_blob(b"a manifest", "manifest").unwrap();
    let config = store.put_blob(b"a configuration", "config").unwrap();
    let layers = [base.diff_id, top.diff_id];
    store
        .set_image("example.org/app:latest", manifest, config, &layers)
        .unwrap();
    let info = BuildInfo {
        context: ".".to_owned(),
        dockerfile: "Dockerfile".to_owned(),
        target: "app".to_owned(),
    };
    let build = store.start_build(&info).unwrap();
    let mut log = store.step_log(build, 1, "RUN make").unwrap();
    log.append(1, b"hello\n");
    let ended = outcome(Class::Success, 0, "", Some(manifest));
    store.end_build(build, &ended).unwrap();
    let build = store.start_build(&info).unwrap();
    let ended = outcome(Class::User, 3, "RUN false failed", None);
    store.end_build(build, &ended).unwrap();
    store.start_build(&info).unwrap();
    store.set_fact("unpacked", "x", "y").unwrap();
    store.save_cache("context", b"a cache").unwrap();
    store.close().unwrap();
}

/// Everything of [`fill`] is found, and nothing else. Before schema 3, results did not say which steps
/// their VM had run, so they are forgotten.
fn assert_filled(store: &Store, version: i64) {
    let image = store.image("example.org/app:latest").unwrap().unwrap();
    assert_eq!(store.images().unwrap(), std::slice::from_ref(&image));
    assert_eq!(image.manifest, store::sha256(b"a manifest"));
    assert_eq!(image.config, store::sha256(b"a configuration"));
    for blob in [&b"a manifest"[..], b"a configuration"] {
        let found = store.blob(store::sha256(blob)).unwrap();
        assert_eq!(found.as_deref(), Some(blob));
    }
    let [base, top] = image.layers[..] else {
        panic!("{:?}", image.layers)
    };
    for (id, name, path, length) in [
        (base, "base", "etc/passwd", 26),
        (top, "top", "bin/app", 10),
    ] {
        let layer = store.layer(id).unwrap().unwrap();
        let result = store.peek(key(name), Trust::Host).unwrap();
        assert_eq!(result, Some(layer.clone()).filter(|_| version >= 3));
        let mut bytes = Vec::new();
        store
            .open_layer(id)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(DiffId(store::sha256(&bytes)), id);
        let index = store.index(id).unwrap();
        assert_eq!(index.entries().len() as u64, layer.entries);
        let entry = index.entries().iter().find(|e| e.path == path.as_bytes());
        let kind = &entry.expect(path).kind;
        assert!(
            matches!(kind, EntryKind::File { size, .. } if *size == length),
            "{kind:?}"
        );
    }
    let objects = store.du().unwrap().items;
    assert_eq!(objects.len(), 5, "{objects:?}");
    assert_history(store);
    let events = store.events().unwrap();
    let events: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(events, ["result differs"]);
    let fact = store.fact("unpacked", "x").unwrap();
    assert_eq!(fact.as_deref(), Some("y"));
    assert_eq!(
        store.load_cache("context").as_deref(),
        Some(&b"a cache"[..])
    );
    let report = store.check(false).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.objects, 5);
}

fn assert_history(store: &Store) {
    let builds = store.builds(10).unwrap();
    let [interrupted, failed, succeeded] = &builds[..] else {
        panic!("{builds:?}")
    };
    assert_eq!(succeeded.info.target, "app");
    assert_eq!(interrupted.state, BuildState::Interrupted);
    let manifest = Some(store::sha256(b"a manifest"));
    for (build, expected) in [
        (succeeded, outcome(Class::Success, 0, "", manifest)),
        (failed, outcome(Class::User, 3, "RUN false failed", None)),
    ] {
        let BuildState::Ended(_, outcome) = &build.state else {
            panic!("{build:?}")
        };
        assert_eq!(*outcome, expected);
    }
    let logs = store.step_logs(succeeded.id).unwrap();
    let [(1, path)] = &logs[..] else {
        panic!("{logs:?}")
    };
    let mut log = LogReader::open(path).unwrap();
    let mut frame = || {
        log.next_frame()
            .unwrap()
            .map(|frame| (frame.stream, frame.data))
    };
    assert_eq!(frame(), Some((StepLog::NAME, b"RUN make".to_vec())));
    assert_eq!(frame(), Some((1, b"hello\n".to_vec())));
    assert_eq!(frame(), None);
}

#[test]
fn a_store_of_each_older_version_is_opened_with_everything_in_it() {
    let current = current();
    for version in 1..=current {
        let dir = unpack(version);
        assert_eq!(schema(dir.path()), version);
        // A reader migrates as well: after an update it may be the first to come.
        let reader = try_open(dir.path(), true).unwrap();
        assert_filled(&reader, version);
        drop(reader);
        assert_eq!(schema(dir.path()), current);
        let dir = unpack(version);
        let store = open(dir.path());
        assert_eq!(schema(dir.path()), current);
        assert_filled(&store, version);
        // It can be used, too.
        let made = layer(&store, "new", version.to_string().as_bytes());
        step(&store, "new", &made, &[]);
        assert_eq!(store.peek(key("new"), Trust::Host).unwrap(), Some(made));
        let report = store.check(false).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        store.close().unwrap();
    }
}

/// Everything below a directory, except what SQLite creates in order to read a database: its shared
/// memory, and an empty log.
fn content(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.is_dir();
            if is_dir {
                left.push(path.clone());
            }
            let bytes = (!is_dir).then(|| fs::read(&path).unwrap());
            let is_empty_log = path.ends_with("store.db-wal") && bytes.as_deref() == Some(b"");
            if !path.ends_with("store.db-shm") && !is_empty_log {
                found.insert(path, bytes);
            }
        }
    }
    found
}

#[test]
fn a_store_of_a_newer_version_is_refused_with_advice_and_not_changed() {
    let current = current();
    for newer in [current + 1, i64::from(i32::MAX)] {
        let dir = unpack(current);
        let database = Connection::open(dir.path().join("store.db")).unwrap();
        database.pragma_update(None, "user_version", newer).unwrap();
        database.close().map_err(|(_, error)| error).unwrap();
        let before = content(dir.path());
        let options = OpenOptions::default();
        for refused in [
            try_open(dir.path(), false),
            try_open(dir.path(), true),
            Store::open_to_prune(dir.path(), &options),
        ] {
            let error = refused.unwrap_err();
            assert!(
                matches!(error, StoreError::NewerSchema { found, known, .. }
                    if (found, known) == (newer, current)),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
            assert!(text.contains("use the newer version"), "{text}");
        }
        let after = content(dir.path());
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            after.keys().collect::<Vec<_>>()
        );
        assert!(before == after, "a refused store was changed");
    }
}

#[test]
#[ignore = "makes the fixture of the current version; see the module"]
fn by_hand_make_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let version = schema(dir.path());
    // Large, and made again whenever a store is opened.
    fs::remove_dir_all(dir.path().join("reserve")).unwrap();
    let mut archive = tar::Builder::new(File::create(fixture(version)).unwrap());
    archive.append_dir_all("", dir.path()).unwrap();
    archive.finish().unwrap();
}
