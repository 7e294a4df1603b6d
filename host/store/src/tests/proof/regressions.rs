//! One test for each fault of the store that the other tests of this module have found.

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use nix::errno::Errno;

use super::super::{ENDED, Root, key, layer, names, open, prune, step};
use crate::failpoint::{IoOperation, with_boot_id, with_hook};
use crate::history::LogReader;
use crate::lock::Lock;
use crate::{
    BuildInfo, BuildState, Finding, Lookup, OpenOptions, PruneOptions, ResourceKind, StepLog,
    Store, StoreError, Trust,
};

/// Runs `work` while all I/O operations for which `which` is true fail.
fn without<T>(which: fn(&IoOperation<'_>) -> bool, work: impl FnOnce() -> T) -> T {
    let hook = move |operation: IoOperation<'_>| {
        if which(&operation) {
            return Err(io::Error::from(Errno::EIO));
        }
        Ok(())
    };
    with_hook(hook, work)
}

/// A frame was written in part and could not be truncated: readers lost everything after it.
#[test]
fn a_log_continues_after_the_last_complete_frame() {
    let root = Root::new();
    let store = root.open();
    let build = store.start_build(&BuildInfo::default()).unwrap();
    let mut log = store.step_log(build, 1, "RUN x").unwrap();
    let broken = |operation: IoOperation<'_>| match operation {
        IoOperation::Write(file, bytes, Some(at)) => {
            use std::os::unix::fs::FileExt;
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            Err(Errno::ENOSPC.into())
        }
        IoOperation::Truncate(..) => Err(Errno::EIO.into()),
        _ => Ok(()),
    };
    with_hook(broken, || log.append(1, &[b'x'; 1000]));
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

/// A log that could not be removed kept all older builds, and prune did not report what it had removed:
/// a build on a full disk gave up although there was free space.
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
    let stuck = |operation: &IoOperation<'_>| match operation {
        IoOperation::RemoveTree(path) => path.ends_with("logs/2"),
        IoOperation::Inspect(path) => path.ends_with("blobs"),
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

/// A build ended, and its instance too, after its row was read and before the lock was checked: it was
/// reported as interrupted.
#[test]
fn a_build_that_ends_while_its_state_is_read_is_not_interrupted() {
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
    let ends = move |operation: IoOperation<'_>| {
        if let IoOperation::Inspect(path) | IoOperation::Lock(path) = operation
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
    let builds = with_hook(ends, || looker.builds(9)).unwrap();
    assert!(
        matches!(&builds[0].state, BuildState::Ended(_, outcome) if *outcome == ENDED),
        "{builds:?}"
    );
    ender.join().unwrap();
    looker.close().unwrap();
    root.assert_clean();
}

/// Any prune deletes builds that are older than the limit, and no others.
#[test]
fn old_builds_are_deleted() {
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

/// A process died after removing the log of the old database: the old database without its log was used
/// silently.
#[test]
fn an_interrupted_rebuild_is_finished_by_the_next_process() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    store.close().unwrap();
    let stopped = without(
        |operation| matches!(operation, IoOperation::Rename(_, to) if to.ends_with("store.db")),
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
    // Its time is that of the rebuild.
    let found = store.layer(made.diff_id).unwrap().unwrap();
    assert_eq!(found.content_id, made.content_id);
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

/// A database was opened, then replaced by a rebuild, then used: everything was written to an unlinked
/// file.
#[test]
fn a_store_that_is_opened_during_a_rebuild_has_the_new_database() {
    let root = Root::new();
    root.open().close().unwrap();
    let path = root.path().to_owned();
    let mut once = Some(());
    let between = move |operation: IoOperation<'_>| {
        if matches!(operation, IoOperation::Lock(lock) if lock.ends_with("version.lock"))
            && once.take().is_some()
        {
            let path = path.clone();
            let rebuilt = thread::spawn(move || Store::rebuild(&path));
            rebuilt.join().unwrap().unwrap();
        }
        Ok(())
    };
    let store = with_hook(between, || open(root.path()));
    let blob = store.put_blob(b"x", "test").unwrap();
    store.close().unwrap();
    let store = root.open();
    assert!(store.blob(blob).unwrap().is_some());
    store.close().unwrap();
    root.assert_clean();
}

/// A store that had lost its database became an empty one, and the next prune would have removed all
/// objects.
#[test]
fn a_store_that_has_lost_its_database_is_refused() {
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

/// After a power failure, files were back whose rows were gone, and stayed until a prune.
#[test]
fn files_that_are_back_after_a_power_failure_are_swept_once_per_boot() {
    let root = Root::new();
    root.open().close().unwrap();
    let leftover = root.path().join("blobs/77");
    std::fs::write(&leftover, b"x").unwrap();
    root.open().close().unwrap();
    assert!(leftover.exists(), "swept in the same boot");
    with_boot_id("the next boot", || root.open().close().unwrap());
    assert!(!leftover.exists());
    with_boot_id("the next boot", || root.assert_clean());
}

/// The directory of a new store was not durable, so nothing in it was.
#[test]
fn the_names_above_a_new_store_are_durable_before_anything_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&seen);
        move |operation: IoOperation<'_>| {
            match operation {
                IoOperation::SyncDir(path) => seen.lock().unwrap().push(path.to_owned()),
                IoOperation::BeginWrite => return Err(Errno::EIO.into()),
                _ => {}
            }
            Ok(())
        }
    };
    let root = dir.path().canonicalize().unwrap().join("new/store");
    let opened = with_hook(hook, || Store::open(&root, &OpenOptions::default()));
    assert!(opened.is_err());
    let seen = seen.lock().unwrap();
    for dir in root.ancestors().take(3) {
        assert!(seen.iter().any(|path| path == dir), "{}", dir.display());
    }
}

/// Something of a dead instance could not be removed, and the build that met its claim failed, although
/// the claim was free.
#[test]
fn a_claim_of_a_dead_instance_is_free_whatever_else_it_left() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let (dead, store) = (root.open(), root.open());
    // A directory cannot be removed as a file.
    dead.add_resource(ResourceKind::File(outside.path().to_owned()))
        .unwrap();
    let Lookup::Claimed(claim) = dead.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    std::mem::forget(claim);
    dead.inner.die();
    let Lookup::Claimed(claim) = store.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    claim.release().unwrap();
    drop(outside);
    store.close().unwrap();
    root.assert_clean();
}

/// While a process cleaned up after a dead instance without a lock file, others that met its claim gave
/// up.
#[test]
fn a_claim_whose_dead_owner_is_being_reaped_is_waited_for() {
    let root = Root::new();
    let (dead, store) = (root.open(), root.open());
    let Lookup::Claimed(claim) = dead.lookup(key("a"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    std::mem::forget(claim);
    dead.inner.die();
    let lock = format!("instances/{}.lock", dead.instance());
    std::fs::remove_file(root.path().join(lock)).unwrap();
    let reaper = Lock::try_exclusive(&root.path().join("reap.lock")).unwrap();
    assert!(matches!(
        store.lookup(key("a"), Trust::Host).unwrap(),
        Lookup::Busy(_)
    ));
    drop(reaper);
    assert!(matches!(
        store.lookup(key("a"), Trust::Host).unwrap(),
        Lookup::Claimed(_)
    ));
    store.close().unwrap();
    root.assert_clean();
}

/// An unused lock file that could not be removed kept all processes from opening the store.
#[test]
fn a_lock_file_that_cannot_be_removed_does_not_keep_the_store_from_opening() {
    let root = Root::new();
    root.open().close().unwrap();
    std::fs::write(root.path().join("instances/0123.lock"), b"").unwrap();
    let store = without(
        |operation| matches!(operation, IoOperation::RemoveFile(path) if path.ends_with("0123.lock")),
        || root.open(),
    );
    layer(&store, "a");
    store.close().unwrap();
    root.assert_clean();
}

/// A repair reported success, although it could not remove what it had tombstoned.
#[test]
fn a_repair_that_cannot_remove_what_is_damaged_says_so() {
    let root = Root::new();
    let store = root.open();
    layer(&store, "a");
    store.close().unwrap();
    std::fs::write(root.path().join("blobs/1"), b"damage").unwrap();
    let store = root.open();
    let report = without(
        |operation| matches!(operation, IoOperation::RemoveFile(path) if path.ends_with("blobs/1")),
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

/// Listing the logs of a build before its first step was an error.
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
