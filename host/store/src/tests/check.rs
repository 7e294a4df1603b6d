//! What a check finds, counts and repairs, and what is done about dead instances.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::lock::Lock;
use crate::{Finding, ResourceKind, StoreError};

#[test]
fn a_dead_instance_is_a_finding_until_it_is_cleaned_up_after() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let lock = outside.path().join("vm.lock");
    let alive = Lock::try_exclusive(&lock).unwrap().unwrap();
    let dead = root.open();
    let name = dead.instance().to_string();
    let vm = ResourceKind::Vm { pid: 1, lock };
    dead.add_resource(vm).unwrap();
    drop(dead);
    // Neither opening nor a repair cleans up after an instance with a live VM.
    let store = root.open();
    let finding = Finding::DeadInstance(name);
    for repair in [false, true] {
        let report = store.check(repair).unwrap();
        assert_eq!(report.findings, [(finding.clone(), false)]);
        assert!(!report.is_clean() && !report.is_repaired());
    }
    drop(alive);
    assert_eq!(
        store.check(false).unwrap().findings,
        [(finding.clone(), false)]
    );
    let report = store.check(true).unwrap();
    assert_eq!(report.findings, [(finding, true)]);
    assert!(!report.is_clean() && report.is_repaired());
    assert!(store.check(false).unwrap().is_clean());
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_damaged_object_that_a_check_has_found_is_a_miss() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    let blobs = root.path().join("blobs");
    let path = blobs.join(&names(&blobs)[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let damaged = Finding::Damaged(Digest(made.diff_id.0.0));
    for _ in 0..2 {
        let findings = store.check(false).unwrap().findings;
        assert_eq!(findings, [(damaged.clone(), false)]);
    }
    let Lookup::Claimed(claim) = store.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("a damaged layer is a hit")
    };
    let again = layer(&store, "a");
    claim
        .commit(&again, &[], &Provenance::default(), false)
        .unwrap();
    assert_eq!(again.diff_id, made.diff_id);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_file_that_cannot_be_a_cache_is_found_and_removed() {
    let root = Root::new();
    let store = root.open();
    store.save_cache("fine", b"x").unwrap();
    let unused = root.path().join("cache").join("no cache");
    std::fs::write(&unused, b"").unwrap();
    let found = Finding::Stray(std::fs::canonicalize(&unused).unwrap());
    assert_eq!(
        store.check(false).unwrap().findings,
        [(found.clone(), false)]
    );
    assert_eq!(store.check(true).unwrap().findings, [(found, true)]);
    assert_eq!(store.load_cache("fine"), Some(b"x".to_vec()));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_lock_that_nobody_holds_and_no_row_names_is_found_and_removed() {
    let root = Root::new();
    let store = root.open();
    let path = store.layout().instance_lock("nobody");
    let held = Lock::try_exclusive(&path).unwrap().unwrap();
    // An instance that is just being registered.
    assert!(store.check(true).unwrap().is_clean());
    drop(held);
    let found = Finding::Stray(path);
    assert_eq!(store.check(true).unwrap().findings, [(found, true)]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn opening_a_store_finishes_what_was_interrupted() {
    let root = Root::new();
    let store = root.open();
    store.put_blob(b"condemned", "test").unwrap();
    store.close().unwrap();
    let tombstone = "UPDATE object SET state = 'condemned'";
    assert_eq!(root.database().execute(tombstone, []).unwrap(), 1);
    let rebuild = root.path().join("tmp").join("rebuild");
    std::fs::create_dir_all(rebuild.join("of")).unwrap();
    let store = root.open();
    assert!(!rebuild.exists());
    assert_eq!(names(&root.path().join("blobs")), [""; 0]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn resources_of_dead_instances_are_removed() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let place = |name: &str| outside.path().join(name);
    let made = ["file", "socket"].map(place);
    let dead = root.open();
    for path in &made {
        std::fs::write(path, b"").unwrap();
    }
    std::fs::create_dir_all(place("dir").join("below")).unwrap();
    let [file, socket] = made.clone();
    let kinds = [
        ResourceKind::File(file),
        ResourceKind::Socket(socket),
        ResourceKind::Directory(place("dir")),
    ];
    for kind in &kinds {
        assert!(!kind.is_ended_vm().unwrap());
        dead.add_resource(kind.clone()).unwrap();
    }
    assert_eq!(dead.live_resources().unwrap(), kinds);
    drop(dead);
    root.open().close().unwrap();
    assert_eq!(names(outside.path()), [""; 0]);
    root.assert_clean();
}

/// A process that has this file, if any, open and locked.
fn sleeper(locked: Option<&Path>) -> Child {
    let stdin = locked.map_or_else(Stdio::null, |path| {
        let file = std::fs::File::create(path).unwrap();
        file.try_lock().unwrap();
        file.into()
    });
    let mut sleep = Command::new("sleep");
    sleep.arg("60").stdin(stdin).spawn().unwrap()
}

#[test]
fn a_process_is_ended_only_if_it_holds_the_lock_of_its_vm() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let outside = outside.path().canonicalize().unwrap();
    let [mine, others] = ["mine.lock", "others.lock"].map(|name| outside.join(name));
    let mut monitor = sleeper(Some(&mine));
    let mut stranger = sleeper(None);
    let alive = Lock::try_exclusive(&others).unwrap().unwrap();
    for (process, lock) in [(&monitor, mine), (&stranger, others)] {
        let dead = root.open();
        let pid = process.id();
        dead.add_resource(ResourceKind::Vm { pid, lock }).unwrap();
    }
    root.open().close().unwrap();
    assert_eq!(monitor.wait().unwrap().signal(), Some(9));
    assert_eq!(stranger.try_wait().unwrap(), None);
    drop(alive);
    root.open().close().unwrap();
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(names(&outside), [""; 0]);
    root.assert_clean();
}

#[test]
fn a_vm_has_ended_when_nobody_holds_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("vm.lock");
    let vm = ResourceKind::Vm {
        pid: 1,
        lock: lock.clone(),
    };
    assert!(vm.is_ended_vm().unwrap());
    let held = Lock::try_exclusive(&lock).unwrap().unwrap();
    assert!(!vm.is_ended_vm().unwrap());
    drop(held);
    assert!(vm.is_ended_vm().unwrap());
}

#[test]
fn the_reserve_stays_while_there_is_free_space() {
    let root = Root::new();
    let made = || {
        let room = root.path().join("reserve").join("room");
        std::os::unix::fs::MetadataExt::ino(&room.metadata().unwrap())
    };
    root.open().close().unwrap();
    let first = made();
    let store = root.open();
    prune(&store, &PruneOptions::default());
    store.close().unwrap();
    assert_eq!(made(), first);
}

#[test]
#[ignore = "needs root"]
fn as_root_a_store_of_somebody_else_is_left_alone() {
    let root = Root::new();
    std::os::unix::fs::chown(root.path(), Some(4321), None).unwrap();
    let refused = Store::open(root.path(), &OpenOptions::default());
    assert!(matches!(
        refused.unwrap_err(),
        StoreError::NotOurs { owner: 4321, .. }
    ));
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn leftovers_are_swept_once_after_each_boot() {
    let root = Root::new();
    root.open().close().unwrap();
    let leftover = root.path().join("blobs").join("77");
    std::fs::write(&leftover, b"").unwrap();
    root.open().close().unwrap();
    assert!(leftover.exists());
    let sql = "UPDATE fact SET value = 'another' WHERE name = 'swept'";
    assert_eq!(root.database().execute(sql, []).unwrap(), 1);
    root.open().close().unwrap();
    assert!(!leftover.exists());
    root.assert_clean();
}

#[test]
fn a_reader_uses_suspect_objects_and_misses_removed_ones() {
    let root = Root::new();
    let store = root.open();
    let blob = store.put_blob(b"bytes", "test").unwrap();
    store.close().unwrap();
    let doubt = "UPDATE object SET suspect = 1";
    assert_eq!(root.database().execute(doubt, []).unwrap(), 1);
    let reader = || {
        let read_only = true;
        let command = "test".to_owned();
        Store::open(root.path(), &OpenOptions { command, read_only }).unwrap()
    };
    assert!(reader().open_blob(blob).unwrap().is_some());
    let blobs = root.path().join("blobs");
    std::fs::remove_file(blobs.join(&names(&blobs)[0])).unwrap();
    assert!(reader().open_blob(blob).unwrap().is_none());
}

#[test]
fn a_pending_object_that_is_not_needed_is_removed_at_once() {
    let root = Root::new();
    let store = root.open();
    let blobs = root.path().join("blobs");
    let objects = || -> (i64, usize) {
        let sql = "SELECT count(*) FROM object";
        let rows = root.database().query_row(sql, [], |row| row.get(0));
        (rows.unwrap(), names(&blobs).len())
    };
    layer(&store, "x");
    layer(&store, "x");
    assert_eq!(objects(), (1, 1));
    store.layer_writer("test").unwrap().abandon();
    store.blob_writer("test").unwrap().abandon();
    assert_eq!(objects(), (1, 1));
    // An error of the directory is reported as such, and not taken for an external file.
    let away = root.path().join("away");
    std::fs::rename(&blobs, &away).unwrap();
    let error = store.put_blob(b"y", "test").unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
    std::fs::rename(&away, &blobs).unwrap();
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn every_object_is_counted_with_its_bytes() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    store.put_blob(b"four", "manifest").unwrap();
    let report = store.check(false).unwrap();
    assert_eq!(
        (report.objects, report.bytes, report.is_clean()),
        (2, made.size + 4, true)
    );
    store.close().unwrap();
}

#[test]
fn an_index_of_another_layer_with_as_many_entries_is_found() {
    let root = Root::new();
    let store = root.open();
    let (one, other) = (layer(&store, "one"), layer(&store, "two"));
    let index = root.path().join("index");
    let files = names(&index);
    assert_eq!(files.len(), 2);
    std::fs::copy(index.join(&files[1]), index.join(&files[0])).unwrap();
    let bad = Finding::BadIndex(Digest(one.diff_id.0.0));
    assert_eq!(store.check(false).unwrap().findings, [(bad.clone(), false)]);
    assert_eq!(store.check(true).unwrap().findings, [(bad, true)]);
    assert!(store.check(false).unwrap().is_clean());
    assert_ne!(
        store.index(one.diff_id).unwrap(),
        store.index(other.diff_id).unwrap()
    );
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn rows_that_refer_to_what_is_not_valid_are_found() {
    let root = Root::new();
    let store = root.open();
    step(&store, "a", &[]);
    let database = root.database();
    let set = |state| {
        let sql = "UPDATE object SET state = ?1 WHERE kind = 'layer'";
        assert_eq!(database.execute(sql, [state]).unwrap(), 1);
    };
    set("condemned");
    let report = store.check(false).unwrap();
    let wrong = Finding::Database("1 objects are referred to, but are not valid".to_owned());
    assert_eq!(report.database_damage(), Some(&wrong));
    assert_eq!(report.findings, [(wrong, false)]);
    set("valid");
    assert!(store.check(false).unwrap().is_clean());
    store.close().unwrap();
    root.assert_clean();
}
