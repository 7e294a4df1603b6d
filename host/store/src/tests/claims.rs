//! Hits, claims, leases and names, between handles of one store.

use super::*;
use crate::db::Commit;
use crate::history::TRIM_INTERVAL;
use crate::{BuildInfo, BuildOutcome, BuildState, Class, ResourceKind, StoreError};

#[test]
fn a_layer_goes_in_and_comes_out() {
    let root = Root::new();
    let store = root.open();
    let bytes = tar(&[("b/c", b"hello"), ("a", b"")]);
    let layer = ingest(&store, &bytes).unwrap();
    assert_eq!(layer.diff_id, DiffId(crate::sha256(&bytes)));
    assert_eq!((layer.size, layer.entries), (bytes.len() as u64, 2));
    assert_eq!(store.layer(layer.diff_id).unwrap(), Some(layer.clone()));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut store.open_layer(layer.diff_id).unwrap(), &mut read).unwrap();
    assert_eq!(read, bytes);
    let index = store.index(layer.diff_id).unwrap();
    store.close().unwrap();
    let again = root.open();
    assert_eq!(*again.index(layer.diff_id).unwrap(), *index);
    again.close().unwrap();
    root.assert_clean();
}

#[test]
fn one_of_two_gets_the_claim_and_the_other_learns_who_has_it() {
    let root = Root::new();
    let (one, two) = (root.open(), root.open());
    let Lookup::Claimed(claim) = one.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    let Lookup::Busy(owner) = two.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not busy")
    };
    assert_eq!(
        (owner.instance, owner.command.as_str()),
        (one.instance(), "test")
    );
    let Lookup::Busy(owner) = one.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not busy")
    };
    assert_eq!(owner.instance, one.instance());
    let made = layer(&one, "a");
    claim
        .commit(&made, &[], &Provenance::default(), false)
        .unwrap();
    let Lookup::Hit(hit) = two.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("no hit")
    };
    assert_eq!(hit.layer, made);
    one.close().unwrap();
    two.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_waiter_learns_of_the_run_and_how_its_command_failed() {
    let root = Root::new();
    let (one, two) = (root.open(), root.open());
    let owner = |store: &Store| {
        let Lookup::Busy(owner) = store.lookup(key("a"), Trust::Host).unwrap() else {
            panic!("not busy")
        };
        owner
    };
    let claim = || {
        let Lookup::Claimed(claim) = one.lookup(key("a"), Trust::Host).unwrap() else {
            panic!("not free")
        };
        claim
    };
    let build = one.start_build(&BuildInfo::default()).unwrap();
    let run = crate::Run { build, step: 7 };
    let first = claim();
    assert_eq!(owner(&two).run, None);
    first.set_run(run).unwrap();
    let first_owner = owner(&two);
    assert_eq!(first_owner.run, Some(run));
    assert_eq!(two.failure(&first_owner, Trust::Host).unwrap(), None);
    first.fail(3).unwrap();
    let failure = Some(crate::Failure { run, status: 3 });
    assert_eq!(two.failure(&first_owner, Trust::Host).unwrap(), failure);
    // The next claim is another run, and a released claim has no failure.
    let second = claim();
    let second_owner = owner(&two);
    second.set_run(run).unwrap();
    second.release().unwrap();
    assert_eq!(two.failure(&second_owner, Trust::Host).unwrap(), None);
    // A failure without a run could not be shown.
    let third = claim();
    let third_owner = owner(&two);
    third.fail(4).unwrap();
    assert_eq!(two.failure(&third_owner, Trust::Host).unwrap(), None);
    // After a while nobody waits for it any more.
    root.database()
        .execute("UPDATE failure SET at = at - 3600", [])
        .unwrap();
    claim().fail(5).unwrap();
    assert_eq!(two.failure(&first_owner, Trust::Host).unwrap(), None);
    one.close().unwrap();
    two.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_step_that_changes_nothing_may_make_the_layer_below_it_again() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "a");
    let Lookup::Claimed(claim) = store.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    claim
        .commit(&made, &[made.diff_id], &Provenance::default(), false)
        .unwrap();
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_blob_is_opened_with_its_length_and_one_that_is_not_there_is_not() {
    let root = Root::new();
    let store = root.open();
    let digest = store.put_blob(b"bytes", "config").unwrap();
    let (mut file, len) = store.open_blob(digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    assert_eq!((&bytes[..], len), (&b"bytes"[..], 5));
    assert!(store.open_blob(Digest([7; 32])).unwrap().is_none());
    // An abandoned blob leaves nothing behind, even before the instance ends.
    let mut writer = store.blob_writer("config").unwrap();
    writer.write_all(b"half").unwrap();
    let blobs = root.path().join("blobs");
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 2);
    writer.abandon();
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_claim_that_is_released_or_dropped_is_free() {
    let root = Root::new();
    let (one, two) = (root.open(), root.open());
    let Lookup::Claimed(claim) = one.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    claim.release().unwrap();
    let Lookup::Claimed(claim) = two.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    drop(claim);
    let Lookup::Claimed(claim) = one.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    one.close().unwrap();
    // Too late, and does not affect the next claim.
    let Lookup::Claimed(_successor) = two.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    assert!(matches!(claim.release(), Err(StoreError::Closed)));
    assert!(matches!(
        two.lookup(key("a"), Trust::Host).unwrap(),
        Lookup::Busy(_)
    ));
}

#[test]
fn a_late_result_does_not_replace_the_first_unless_asked_to() {
    let root = Root::new();
    let store = root.open();
    let first = step(&store, "a", &[]);
    let other = layer(&store, "something else");
    let Lookup::Claimed(claim) = store.claim(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    assert_eq!(
        claim
            .commit(&other, &[], &Provenance::default(), false)
            .unwrap()
            .layer,
        first
    );
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), Some(first));
    let Lookup::Claimed(claim) = store.claim(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    assert_eq!(
        claim
            .commit(&other, &[], &Provenance::default(), true)
            .unwrap()
            .layer,
        other
    );
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), Some(other));
    let events = store.events().unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| &event.kind[..]).collect();
    assert_eq!(kinds, ["result differs"; 2]);
    assert!(events[0].text.contains(&key("a").to_string()), "{events:?}");
}

#[test]
fn layers_that_are_parents_of_each_other_can_still_be_pruned() {
    let root = Root::new();
    let store = root.open();
    let (a, b) = (step(&store, "a", &[]), layer(&store, "b"));
    let Lookup::Claimed(claim) = store.lookup(key("a then b"), Trust::Host).unwrap() else {
        panic!()
    };
    claim
        .commit(&b, &[a.diff_id], &Provenance::default(), false)
        .unwrap();
    let Lookup::Claimed(claim) = store.lookup(key("b then a"), Trust::Host).unwrap() else {
        panic!()
    };
    claim
        .commit(&a, &[b.diff_id], &Provenance::default(), false)
        .unwrap();
    store.close().unwrap();
    let store = root.open();
    assert_eq!(prune(&store, &PruneOptions::default()).removed, 2);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn the_same_layer_from_two_handles_is_one_object() {
    let root = Root::new();
    let (one, two) = (root.open(), root.open());
    let bytes = tar(&[("file", b"x")]);
    let mut writers = [
        one.layer_writer("one").unwrap(),
        two.layer_writer("two").unwrap(),
    ];
    for writer in &mut writers {
        writer.write_all(&bytes).unwrap();
    }
    let [first, second] = writers;
    assert_eq!(first.finish().unwrap(), second.finish().unwrap());
    assert_eq!(names(&root.path().join("blobs")).len(), 1);
    assert_eq!(names(&root.path().join("index")).len(), 1);
    one.close().unwrap();
    two.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_blob_that_was_given_up_is_not_there_and_can_come_again() {
    let root = Root::new();
    let store = root.open();
    let digest = store.put_blob(b"bytes", "download").unwrap();
    let path = root
        .path()
        .join("blobs")
        .join(&names(&root.path().join("blobs"))[0]);
    std::fs::write(path, b"bites").unwrap();
    store.evict_blob(digest).unwrap();
    assert!(store.open_blob(digest).unwrap().is_none());
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    store.evict_blob(digest).unwrap();
    assert_eq!(store.put_blob(b"bytes", "download").unwrap(), digest);
    assert_eq!(store.blob(digest).unwrap().as_deref(), Some(&b"bytes"[..]));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn blobs_and_layers_with_the_same_bytes_do_not_disturb_each_other() {
    let root = Root::new();
    let store = root.open();
    let bytes = tar(&[("file", b"x")]);
    let blob = store.put_blob(&bytes, "compressed").unwrap();
    let layer = ingest(&store, &bytes).unwrap();
    assert_eq!(layer.diff_id.digest(), blob);
    assert_eq!(store.blob(blob).unwrap(), Some(bytes.clone()));
    assert_eq!(store.put_blob(&bytes, "again").unwrap(), blob);
    assert_eq!(names(&root.path().join("blobs")).len(), 2);
    assert_eq!(store.blob(crate::sha256(b"nothing")).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_prune_with_an_age_takes_away_only_names_that_are_older() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "x");
    let config = store.put_blob(b"config", "config").unwrap();
    for name in ["old", "new"] {
        let manifest = store.put_blob(name.as_bytes(), "manifest").unwrap();
        store
            .set_image(name, manifest, config, &[made.diff_id])
            .unwrap();
    }
    store.close().unwrap();
    root.database()
        .execute_batch(
            "UPDATE image SET created = created - 7200 WHERE name = 'old';
             UPDATE object SET used = used - 7200;",
        )
        .unwrap();
    let store = root.open();
    let older = PruneOptions {
        images: true,
        unused_for: Some(std::time::Duration::from_secs(3600)),
        ..Default::default()
    };
    let names = || -> Vec<String> {
        let images = store.images().unwrap().into_iter();
        images.map(|image| image.name).collect()
    };
    let dry_run = true;
    prune(
        &store,
        &PruneOptions {
            dry_run,
            ..older.clone()
        },
    );
    assert_eq!(names(), ["new", "old"]);
    prune(&store, &older);
    assert_eq!(names(), ["new"]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_name_that_is_given_again_is_what_was_given_last() {
    let root = Root::new();
    let store = root.open();
    let [one, two] = ["one", "two"].map(|content| layer(&store, content).diff_id);
    let [a, b] = ["a", "b"].map(|bytes| store.put_blob(bytes.as_bytes(), "config").unwrap());
    let database = root.database();
    for (manifest, config, layers, is_new) in [
        (a, a, vec![one], true),
        (a, a, vec![one], false),
        (b, a, vec![one], true),
        (b, b, vec![one], true),
        (b, b, vec![one, two], true),
        (b, b, vec![two, one], true),
        (b, b, vec![two, one], false),
    ] {
        database
            .execute("UPDATE image SET created = 7", [])
            .unwrap();
        store.set_image("name", manifest, config, &layers).unwrap();
        let images = store.images().unwrap();
        assert_eq!(images.len(), 1);
        let image = &images[0];
        assert_eq!((image.manifest, image.config), (manifest, config));
        assert_eq!(image.layers, layers);
        assert_eq!(image.created > 7, is_new, "{image:?}");
    }
    drop(database);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_image_pins_its_parts_until_its_name_goes() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "x");
    let manifest = store.put_blob(b"manifest", "manifest").unwrap();
    let config = store.put_blob(b"config", "config").unwrap();
    let layers = [made.diff_id, made.diff_id];
    store.set_image("a", manifest, config, &layers).unwrap();
    store.set_image("b", manifest, config, &layers).unwrap();
    assert!(matches!(
        store.set_image("c", manifest, crate::sha256(b"?"), &layers),
        Err(StoreError::Unknown(_))
    ));
    store.close().unwrap();
    let store = root.open();
    assert_eq!(prune(&store, &PruneOptions::default()).removed, 0);
    assert!(store.remove_image("a").unwrap());
    assert!(!store.remove_image("a").unwrap());
    assert_eq!(store.image("b").unwrap().unwrap().layers, layers);
    assert_eq!(store.images().unwrap().len(), 1);
    store.close().unwrap();
    let store = root.open();
    assert_eq!(
        prune(
            &store,
            &PruneOptions {
                images: true,
                ..Default::default()
            }
        )
        .removed,
        3
    );
    assert_eq!(store.image("b").unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_image_that_lost_a_layer_is_not_there_any_more() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "x");
    let manifest = store.put_blob(b"manifest", "manifest").unwrap();
    let config = store.put_blob(b"config", "config").unwrap();
    store
        .set_image("a", manifest, config, &[made.diff_id])
        .unwrap();
    store.close().unwrap();
    for file in names(&root.path().join("index")) {
        std::fs::remove_file(root.path().join("blobs").join(file)).unwrap();
    }
    let store = root.open();
    assert_eq!(store.image("a").unwrap(), None);
    assert_eq!(store.images().unwrap(), []);
    // It can be made again at once.
    assert_eq!(layer(&store, "x").diff_id, made.diff_id);
    store
        .set_image("a", manifest, config, &[made.diff_id])
        .unwrap();
    assert!(store.image("a").unwrap().is_some());
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn facts_and_caches_are_kept_and_damage_is_a_miss() {
    let root = Root::new();
    let store = root.open();
    assert_eq!(store.fact("a", "b").unwrap(), None);
    store.set_fact("a", "b", "1").unwrap();
    store.set_fact("a", "b", "2").unwrap();
    assert_eq!(store.fact("a", "b").unwrap().as_deref(), Some("2"));
    assert_eq!(store.load_cache("x"), None);
    store.save_cache("x", b"one").unwrap();
    store.save_cache("x", b"two").unwrap();
    assert_eq!(store.load_cache("x").as_deref(), Some(&b"two"[..]));
    assert!(store.save_cache("../x", b"").is_err());
    let file = root.path().join("cache/x");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(store.load_cache("x"), None);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_transaction_is_as_durable_as_it_says() {
    let root = Root::new();
    let store = root.open();
    for (commit, level) in [
        (Commit::Durable, 2),
        (Commit::Relaxed, 1),
        (Commit::Relaxed, 1),
        (Commit::Durable, 2),
    ] {
        let found: Result<i64, StoreError> = store.write(commit, |tx| {
            Ok(tx.query_row("PRAGMA synchronous", [], |row| row.get(0))?)
        });
        assert_eq!(found.unwrap(), level, "{commit:?}");
    }
    store.close().unwrap();
}

#[test]
fn a_reader_leases_nothing_and_writes_nothing() {
    let root = Root::new();
    let options = OpenOptions {
        command: String::new(),
        read_only: true,
    };
    assert!(matches!(
        Store::open(root.path(), &options),
        Err(StoreError::Missing(_))
    ));
    std::fs::write(root.path().join("store.db"), "").unwrap();
    assert!(Store::open(root.path(), &options).is_err());
    assert_eq!(
        std::fs::metadata(root.path().join("store.db"))
            .unwrap()
            .len(),
        0
    );
    let store = root.open();
    let made = step(&store, "a", &[]);
    let reader = Store::open(root.path(), &options).unwrap();
    assert_eq!(
        reader.peek(key("a"), Trust::Host).unwrap(),
        Some(made.clone())
    );
    assert_eq!(reader.index(made.diff_id).unwrap().entries().len(), 1);
    assert!(matches!(
        reader.lookup(key("b"), Trust::Host),
        Err(StoreError::ReadOnly)
    ));
    assert!(matches!(
        reader.put_blob(b"x", "x"),
        Err(StoreError::ReadOnly)
    ));
    assert!(reader.check(true).unwrap().is_clean());
    assert_eq!(names(&root.path().join("instances")).len(), 1);
    reader.close().unwrap();
    store.close().unwrap();
    root.assert_clean();
}

/// Each as a killed process would leave it: its lock is free, and its end is not recorded.
#[test]
fn ten_thousand_killed_builds_are_told_interrupted_and_none_runs() {
    const INSTANCES: usize = 100;
    const BUILDS: usize = 100;
    // In memory if possible: the speed of the disk is not the subject.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let dir = dir.unwrap();
    for _ in 0..INSTANCES {
        let store = open(dir.path());
        for _ in 0..BUILDS {
            store.start_build(&BuildInfo::default()).unwrap();
        }
        drop(store);
    }
    let store = open(dir.path());
    let builds = store.builds(usize::MAX).unwrap();
    assert_eq!(builds.len(), INSTANCES * BUILDS);
    let interrupted = |build: &crate::Build| build.state == BuildState::Interrupted;
    assert!(builds.iter().all(interrupted));
    assert!(store.check(false).unwrap().is_clean());
    // No more builds are deleted than exceed the limit.
    for _ in 0..TRIM_INTERVAL {
        ended(&store);
    }
    let left = store.builds(usize::MAX).unwrap();
    assert!(left.len() >= INSTANCES * BUILDS, "{}", left.len());
}

#[test]
fn history_tells_running_ended_and_interrupted_apart() {
    let root = Root::new();
    let (store, other) = (root.open(), root.open());
    let info = BuildInfo {
        context: ".".to_owned(),
        ..BuildInfo::default()
    };
    let [ended, running] = [(); 2].map(|()| store.start_build(&info).unwrap());
    let lost = other.start_build(&info).unwrap();
    let mut log = other.step_log(lost, 1, "RUN x").unwrap();
    log.append(1, b"hello");
    drop(other);
    let outcome = BuildOutcome {
        class: Class::User,
        status: 1,
        message: "no".to_owned(),
        image: Some(crate::sha256(b"x")),
    };
    store.end_build(ended, &outcome).unwrap();
    assert!(store.end_build(ended, &outcome).is_err());
    let builds = store.builds(10).unwrap();
    let of = |id| &builds.iter().find(|build| build.id == id).unwrap().state;
    assert!(matches!(of(ended), BuildState::Ended(_, found) if *found == outcome));
    assert_eq!(*of(running), BuildState::Running);
    assert_eq!(*of(lost), BuildState::Interrupted);
    assert_eq!(store.builds(1).unwrap().len(), 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn nothing_of_an_instance_is_removed_before_its_vm_is_seen_to_be_gone() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let dir = outside.path().join("dir");
    std::fs::create_dir(&dir).unwrap();
    let store = root.open();
    let lock = store.scratch().join("lock");
    let alive = crate::lock::Lock::try_exclusive(&lock).unwrap().unwrap();
    let vm = ResourceKind::Vm {
        pid: 1,
        lock: lock.clone(),
    };
    store.add_resource(vm).unwrap();
    store
        .add_resource(ResourceKind::Directory(dir.clone()))
        .unwrap();
    drop(store);
    for _ in 0..2 {
        root.open().close().unwrap();
        assert!(lock.exists() && dir.exists());
    }
    drop(alive);
    root.open().close().unwrap();
    assert!(!lock.exists() && !dir.exists());
    root.assert_clean();
}

#[test]
fn resources_are_removed_with_their_instance() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let (file, dir) = (outside.path().join("file"), outside.path().join("dir"));
    let kept = outside.path().join("kept");
    let store = root.open();
    store
        .add_resource(ResourceKind::File(file.clone()))
        .unwrap();
    store
        .add_resource(ResourceKind::Directory(dir.clone()))
        .unwrap();
    let lock = outside.path().join("vm.lock");
    store
        .add_resource(ResourceKind::Vm {
            pid: 1,
            lock: lock.clone(),
        })
        .unwrap();
    let row = store
        .add_resource(ResourceKind::File(kept.clone()))
        .unwrap();
    assert!(
        store
            .add_resource(ResourceKind::File("relative".into()))
            .is_err()
    );
    for path in [&file, &kept, &lock] {
        std::fs::write(path, b"").unwrap();
    }
    std::fs::create_dir_all(dir.join("below")).unwrap();
    store.drop_resource(row).unwrap();
    drop(store);
    root.open().close().unwrap();
    assert_eq!(names(outside.path()), ["kept"]);
    root.assert_clean();
}
