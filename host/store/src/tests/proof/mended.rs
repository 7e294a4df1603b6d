//! One test for each fault of the store that the others of this module have found.

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::errno::Errno;

use super::super::{ENDED, Root, key, layer, names, open, prune, step};
use crate::effect::{Effect, booted, watching};
use crate::history::LogReader;
use crate::lock::Lock;
use crate::{
    BuildInfo, BuildState, Finding, Lookup, OpenOptions, PruneOptions, ResourceKind, StepLog,
    Store, StoreError,
};

/// Fails all effects that `which` names.
fn without<T>(which: fn(&Effect<'_>) -> bool, work: impl FnOnce() -> T) -> T {
    let watcher = move |effect: Effect<'_>| {
        if which(&effect) {
            return Err(io::Error::from(Errno::EIO));
        }
        Ok(())
    };
    watching(watcher, work)
}

/// A frame was half written and the half could not be cut off: what came behind it was lost to
/// every reader.
#[test]
fn a_log_goes_on_where_the_last_whole_frame_ends() {
    let root = Root::new();
    let store = root.open();
    let build = store.start_build(&BuildInfo::default()).unwrap();
    let mut log = store.step_log(build, 1, "RUN x").unwrap();
    let broken = |effect: Effect<'_>| match effect {
        Effect::Write(file, bytes, Some(at)) => {
            use std::os::unix::fs::FileExt;
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            Err(Errno::ENOSPC.into())
        }
        Effect::Cut(..) => Err(Errno::EIO.into()),
        _ => Ok(()),
    };
    watching(broken, || log.append(1, &[b'x'; 1000]));
    log.append(1, b"later");
    let mut reader = LogReader::open(log.path()).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push((frame.stream, frame.data));
    }
    let lost = (StepLog::DROPPED, b"1000".to_vec());
    assert_eq!(frames[1..], [lost, (1, b"later".to_vec())]);
    assert!(!reader.is_torn());
    store.close().unwrap();
    root.assert_clean();
}

/// One log that could not be removed kept all builds before it, and prune told of nothing that it had
/// removed: a build that was out of room gave up although there was some.
#[test]
fn logs_that_cannot_be_removed_keep_nothing_else() {
    let root = Root::new();
    let store = root.open();
    layer(&store, "unused");
    for _ in 0..3 {
        let build = store.start_build(&BuildInfo::default()).unwrap();
        store.step_log(build, 1, "RUN x").unwrap();
        store.end_build(build, &ENDED).unwrap();
    }
    store.close().unwrap();
    let store = root.open();
    let stuck = |effect: &Effect<'_>| match effect {
        Effect::RemoveTree(path) => path.ends_with("logs/2"),
        Effect::Look(path) => path.ends_with("blobs"),
        _ => false,
    };
    let all = PruneOptions {
        images: true,
        ..PruneOptions::default()
    };
    let report = without(stuck, || prune(&store, &all));
    assert_eq!((report.removed, report.failed.len()), (1, 2), "{report:?}");
    let left: Vec<_> = store.builds(9).unwrap().iter().map(|b| b.id.0).collect();
    assert_eq!(left, [2]);
    assert_eq!(prune(&store, &all).failed.len(), 0);
    assert_eq!(store.builds(9).unwrap(), []);
    store.close().unwrap();
    root.assert_clean();
}

/// Between the look at its row and the look at its owner's lock a build ended and its owner left: it
/// was told to be interrupted.
#[test]
fn a_build_that_ends_while_it_is_looked_at_is_not_interrupted() {
    let root = Root::new();
    let (owner, looker) = (root.open(), root.open());
    let build = owner.start_build(&BuildInfo::default()).unwrap();
    let (ask, asked) = mpsc::sync_channel(1);
    let (tell, told) = mpsc::sync_channel(1);
    let ender = thread::spawn(move || {
        asked.recv().unwrap();
        owner.end_build(build, &ENDED).unwrap();
        owner.close().unwrap();
        tell.send(()).unwrap();
    });
    let mut looks = 0;
    let ends = move |effect: Effect<'_>| {
        if let Effect::Look(path) | Effect::Lock(path) = effect
            && path.parent().is_some_and(|dir| dir.ends_with("instances"))
        {
            looks += 1;
            if looks == 1 {
                ask.send(()).unwrap();
                told.recv().unwrap();
            }
        }
        Ok(())
    };
    let builds = watching(ends, || looker.builds(9)).unwrap();
    assert!(
        matches!(&builds[0].state, BuildState::Ended(_, outcome) if *outcome == ENDED),
        "{builds:?}"
    );
    ender.join().unwrap();
    looker.close().unwrap();
    root.assert_clean();
}

/// What is older than is kept goes with any prune, and nothing else does.
#[test]
fn old_builds_are_forgotten() {
    let root = Root::new();
    let store = root.open();
    for _ in 0..3 {
        store.start_build(&BuildInfo::default()).unwrap();
    }
    store.close().unwrap();
    root.database()
        .execute(
            "UPDATE build SET started = started - 91 * 86400 WHERE id <> 3",
            [],
        )
        .unwrap();
    let store = root.open();
    prune(&store, &PruneOptions::default());
    let left: Vec<_> = store.builds(9).unwrap().iter().map(|b| b.id.0).collect();
    assert_eq!(left, [3]);
    store.close().unwrap();
    root.assert_clean();
}

/// The log of the old database was removed, and then the process died: the old database without its
/// log was taken for the store, in silence.
#[test]
fn a_rebuild_that_was_stopped_in_the_middle_is_finished_by_the_next_process() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    store.close().unwrap();
    let stopped = without(
        |effect| matches!(effect, Effect::Rename(_, to) if to.ends_with("store.db")),
        || Store::rebuild(root.path()),
    );
    assert!(stopped.is_err());
    assert!(root.path().join("store.db.next").exists());
    let looking = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    assert!(Store::open(root.path(), &looking).is_err());
    let store = root.open();
    assert_eq!(store.layer(made.diff_id).unwrap().unwrap(), made);
    assert_eq!(store.peek(key("a")).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

/// A database was opened, then replaced by a rebuild, and then used: all went into a file without a
/// name.
#[test]
fn who_opens_a_store_beside_a_rebuild_gets_the_new_database() {
    let root = Root::new();
    root.open().close().unwrap();
    let path = root.path().to_owned();
    let mut once = Some(());
    let between = move |effect: Effect<'_>| {
        if matches!(effect, Effect::Lock(lock) if lock.ends_with("version.lock"))
            && once.take().is_some()
        {
            let path = path.clone();
            let rebuilt = thread::spawn(move || Store::rebuild(&path));
            rebuilt.join().unwrap().unwrap();
        }
        Ok(())
    };
    let store = watching(between, || open(root.path()));
    let blob = store.put_blob(b"x", "test").unwrap();
    store.close().unwrap();
    let store = root.open();
    assert!(store.blob(blob).unwrap().is_some());
    store.close().unwrap();
    root.assert_clean();
}

/// A store whose database was lost began anew as an empty one, and the next prune would have taken
/// all objects away.
#[test]
fn a_store_that_has_lost_its_database_is_not_begun_anew() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "a");
    store.close().unwrap();
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        std::fs::remove_file(root.path().join(file)).unwrap();
    }
    let refused = Store::open(root.path(), &OpenOptions::default());
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })));
    Store::rebuild(root.path()).unwrap();
    let store = root.open();
    assert!(store.layer(made.diff_id).unwrap().is_some());
    store.close().unwrap();
    root.assert_clean();
}

/// After loss of power, files came back whose rows were gone, and stayed until a prune.
#[test]
fn what_comes_back_with_power_is_swept_once_in_a_boot() {
    let root = Root::new();
    root.open().close().unwrap();
    let stray = root.path().join("blobs/77");
    std::fs::write(&stray, b"x").unwrap();
    root.open().close().unwrap();
    assert!(stray.exists(), "swept in the same boot");
    booted("the next boot", || root.open().close().unwrap());
    assert!(!stray.exists());
    booted("the next boot", || root.assert_clean());
}

/// The directory of a new store was not durable, so all that it had promised to keep was not.
#[test]
fn the_names_above_a_new_store_are_durable_before_anything_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let seen = Arc::clone(&seen);
        move |effect: Effect<'_>| {
            match effect {
                Effect::SyncDir(path) => seen.lock().unwrap().push(path.to_owned()),
                Effect::Begin => return Err(Errno::EIO.into()),
                _ => {}
            }
            Ok(())
        }
    };
    let root = dir.path().canonicalize().unwrap().join("new/store");
    let opened = watching(watcher, || Store::open(&root, &OpenOptions::default()));
    assert!(opened.is_err());
    let seen = seen.lock().unwrap();
    for dir in root.ancestors().take(3) {
        assert!(seen.iter().any(|path| path == dir), "{}", dir.display());
    }
}

/// Something of a dead instance could not be removed just then, and the build that found its claim
/// failed, though the claim was free.
#[test]
fn a_waiter_takes_over_from_the_dead_whatever_else_they_left() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let (dead, store) = (root.open(), root.open());
    // A directory cannot be removed as a file.
    dead.add_resource(ResourceKind::File(outside.path().to_owned()))
        .unwrap();
    let Lookup::Claimed(claim) = dead.lookup(key("a")).unwrap() else {
        panic!("not free")
    };
    std::mem::forget(claim);
    dead.inner.die();
    let Lookup::Claimed(claim) = store.lookup(key("a")).unwrap() else {
        panic!("not free")
    };
    claim.release().unwrap();
    drop(outside);
    store.close().unwrap();
    root.assert_clean();
}

/// While one process settled a dead instance without a lock file, others that met its claim gave up.
#[test]
fn a_dead_owner_that_somebody_is_settling_is_waited_for() {
    let root = Root::new();
    let (dead, store) = (root.open(), root.open());
    let Lookup::Claimed(claim) = dead.lookup(key("a")).unwrap() else {
        panic!("not free")
    };
    std::mem::forget(claim);
    dead.inner.die();
    let lock = format!("instances/{}.lock", dead.instance());
    std::fs::remove_file(root.path().join(lock)).unwrap();
    let reaper = Lock::try_exclusive(&root.path().join("reap.lock")).unwrap();
    assert!(matches!(store.lookup(key("a")).unwrap(), Lookup::Busy(_)));
    drop(reaper);
    assert!(matches!(
        store.lookup(key("a")).unwrap(),
        Lookup::Claimed(_)
    ));
    store.close().unwrap();
    root.assert_clean();
}

/// A lock file of nobody that could not be removed kept every process from opening the store.
#[test]
fn a_lock_file_that_cannot_be_removed_is_no_reason_not_to_open() {
    let root = Root::new();
    root.open().close().unwrap();
    std::fs::write(root.path().join("instances/0123.lock"), b"").unwrap();
    let store = without(
        |effect| matches!(effect, Effect::RemoveFile(path) if path.ends_with("0123.lock")),
        || root.open(),
    );
    layer(&store, "a");
    store.close().unwrap();
    root.assert_clean();
}

/// A repair said that all was mended, and left what it had condemned and could not remove.
#[test]
fn a_repair_that_cannot_remove_what_is_damaged_says_so() {
    let root = Root::new();
    let store = root.open();
    layer(&store, "a");
    store.close().unwrap();
    std::fs::write(root.path().join("blobs/1"), b"damage").unwrap();
    let store = root.open();
    let report = without(
        |effect| matches!(effect, Effect::RemoveFile(path) if path.ends_with("blobs/1")),
        || store.check(true).unwrap(),
    );
    assert!(!report.is_repaired());
    let left = |(finding, repaired): &(Finding, bool)| {
        !repaired && matches!(finding, Finding::Leftover { why: Some(_), .. })
    };
    assert!(report.findings.iter().any(left), "{:?}", report.findings);
    assert!(store.check(true).unwrap().is_repaired());
    store.close().unwrap();
    root.assert_clean();
}

/// Asking for the logs of a build that had not come to a step was an error.
#[test]
fn a_build_without_a_step_has_no_logs() {
    let root = Root::new();
    let store = root.open();
    let build = store.start_build(&BuildInfo::default()).unwrap();
    assert_eq!(store.step_logs(build).unwrap(), []);
    assert!(names(&root.path().join("logs")).is_empty());
    store.close().unwrap();
    root.assert_clean();
}
