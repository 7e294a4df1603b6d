//! History: what is kept, and what is deleted.

use nix::errno::Errno;

use super::*;
use crate::db::Commit;
use crate::failpoint::{IoOperation, with_hook};
use crate::history::{HistoryLimits, TRIM_INTERVAL, events};
use crate::lock::Lock;
use crate::{
    Build, BuildId, BuildInfo, BuildOutcome, BuildState, Class, Connection, Connections, LogReader,
    ResourceKind, Run, StepLog, StoreError,
};

fn ids(store: &Store) -> Vec<i64> {
    let builds = store.builds(usize::MAX).unwrap().into_iter();
    builds.map(|Build { id, .. }| id.0).collect()
}

fn log(store: &Store, build: BuildId, bytes: usize) {
    let mut log = store.step_log(build, 1, "RUN x").unwrap();
    log.append(1, &vec![b'x'; bytes]);
}

fn set_back(root: &Root, build: BuildId, seconds: i64) {
    let database = root.database();
    let sql = "UPDATE build SET started = started - ?2 WHERE id = ?1";
    database.execute(sql, [build.0, seconds]).unwrap();
}

#[test]
fn logs_are_found_in_the_order_of_steps_and_read_by_others() {
    let root = Root::new();
    let store = root.open();
    let build = store.start_build(&BuildInfo::default()).unwrap();
    assert_eq!(store.step_logs(build).unwrap(), []);
    for step in [10, 9, 1] {
        let mut log = store.step_log(build, step, "RUN x").unwrap();
        log.append(1, step.to_string().as_bytes());
    }
    let logs = store.step_logs(build).unwrap();
    let steps: Vec<u32> = logs.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 9, 10]);
    let text = |mut log: LogReader| {
        let name = log.next_frame().unwrap().unwrap();
        assert_eq!(
            (name.stream, &name.data[..]),
            (StepLog::NAME, &b"RUN x"[..])
        );
        log.next_frame().unwrap().unwrap().data
    };
    for (step, path) in logs {
        let run = Run { build, step };
        let other = store.open_step_log(run).unwrap().unwrap();
        for log in [LogReader::open(&path).unwrap(), other] {
            assert_eq!(text(log), step.to_string().as_bytes());
        }
    }
    let missing = Run { build, step: 2 };
    assert!(store.open_step_log(missing).unwrap().is_none());
    // A directory that cannot be listed does not count as empty.
    let other = ended(&store);
    let logs = root.path().join("logs").join(other.to_string());
    std::fs::write(&logs, "").unwrap();
    assert!(store.step_logs(other).is_err());
    std::fs::remove_file(logs).unwrap();
    store.close().unwrap();
}

#[test]
fn a_build_is_forgotten_with_its_logs_but_not_while_it_runs() {
    let root = Root::new();
    let store = root.open();
    let (done, running) = (
        ended(&store),
        store.start_build(&BuildInfo::default()).unwrap(),
    );
    log(&store, done, 10);
    let error = store.remove_build(running).unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
    let error = store.remove_build(BuildId(77)).unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_)), "{error}");
    store.remove_build(done).unwrap();
    assert_eq!(ids(&store), [running.0]);
    assert_eq!(store.step_logs(done).unwrap(), []);
    assert!(!root.path().join("logs").join(done.to_string()).exists());
    store.end_build(running, &ENDED).unwrap();
    let error = store.end_build(running, &ENDED).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn so_many_builds_are_kept_and_none_that_runs_is_forgotten() {
    let root = Root::new();
    let store = root.open();
    let running = store.start_build(&BuildInfo::default()).unwrap();
    let done: Vec<i64> = (0..4).map(|_| ended(&store).0).collect();
    let keep = |builds| HistoryLimits {
        builds,
        ..HistoryLimits::DEFAULT
    };
    assert!(store.trim_history(keep(4)).unwrap().failed.is_empty());
    assert_eq!(ids(&store), [done[3], done[2], done[1], done[0], running.0]);
    assert!(store.trim_history(keep(2)).unwrap().failed.is_empty());
    assert_eq!(ids(&store), [done[3], done[2], running.0]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn builds_are_kept_for_so_long() {
    let root = Root::new();
    let store = root.open();
    let [old, young, now] = [7200, 3500, 0].map(|age| {
        let build = ended(&store);
        set_back(&root, build, age);
        build.0
    });
    let keep = |seconds| HistoryLimits {
        seconds,
        ..HistoryLimits::DEFAULT
    };
    assert!(store.trim_history(keep(7300)).unwrap().failed.is_empty());
    assert_eq!(ids(&store), [now, young, old]);
    assert!(store.trim_history(keep(3600)).unwrap().failed.is_empty());
    assert_eq!(ids(&store), [now, young]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn so_many_bytes_of_logs_are_kept_those_of_the_newest_builds() {
    let root = Root::new();
    let store = root.open();
    let builds: Vec<BuildId> = (0..3).map(|_| ended(&store)).collect();
    for build in &builds {
        log(&store, *build, 100_000);
    }
    let of_one = crate::disk::allocated_below(&root.path().join("logs").join("1")).unwrap();
    let keep = |bytes| HistoryLimits {
        bytes,
        ..HistoryLimits::DEFAULT
    };
    // The newest build does not count.
    assert_eq!(store.trim_history(keep(2 * of_one)).unwrap().freed, 0);
    let forgotten = store.trim_history(keep(2 * of_one - 1)).unwrap();
    assert_eq!((forgotten.freed, forgotten.failed.len()), (of_one, 0));
    assert_eq!(ids(&store), [builds[2].0, builds[1].0]);
    // A build that cannot be deleted does not keep the others.
    let stuck = root.path().join("logs").join(builds[1].to_string());
    std::fs::remove_dir_all(&stuck).unwrap();
    std::fs::write(&stuck, "").unwrap();
    let keep_none = HistoryLimits {
        seconds: -1,
        ..keep(0)
    };
    let forgotten = store.trim_history(keep_none).unwrap();
    assert_eq!((forgotten.freed, forgotten.failed.len()), (of_one, 1));
    assert_eq!(ids(&store), [builds[1].0]);
    store.close().unwrap();
}

#[test]
fn a_build_with_a_large_log_takes_no_other_build_with_it() {
    let root = Root::new();
    let store = root.open();
    let keep = HistoryLimits {
        bytes: 100_000,
        ..HistoryLimits::DEFAULT
    };
    let small = ended(&store);
    log(&store, small, 10);
    let large = store.start_build(&BuildInfo::default()).unwrap();
    log(&store, large, 300_000);
    // Not while it is running, and not when it has just ended, since its log is still wanted.
    assert_eq!(store.trim_history(keep).unwrap().freed, 0);
    store.end_build(large, &ENDED).unwrap();
    assert_eq!(store.trim_history(keep).unwrap().freed, 0);
    assert_eq!(ids(&store), [large.0, small.0]);
    let next = ended(&store);
    assert!(store.trim_history(keep).unwrap().freed >= 300_000);
    assert_eq!(ids(&store), [next.0, small.0]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_dead_build_is_not_running_while_another_process_cleans_up_after_it() {
    let root = Root::new();
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("vm.lock");
    let alive = Lock::try_exclusive(&path).unwrap().unwrap();
    let dead = root.open();
    let build = dead.start_build(&BuildInfo::default()).unwrap();
    dead.add_resource(ResourceKind::Vm { pid: 1, lock: path })
        .unwrap();
    let store = Store::open(
        root.path(),
        &OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    );
    let store = store.unwrap();
    let state = || store.builds(1).unwrap().remove(0).state;
    assert_eq!(state(), BuildState::Running);
    drop(dead);
    std::thread::scope(|scope| {
        // It waits for the VM, which does not end.
        let settling = scope.spawn(|| root.open());
        while !settling.is_finished() {
            assert_eq!(state(), BuildState::Interrupted);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop(alive);
        let settled = settling.join().unwrap();
        settled.remove_build(build).unwrap();
        settled.close().unwrap();
    });
    root.assert_clean();
}

#[test]
fn old_builds_are_deleted_at_intervals() {
    let root = Root::new();
    let store = root.open();
    let old = ended(&store);
    set_back(&root, old, HistoryLimits::DEFAULT.seconds + 60);
    for _ in 2..TRIM_INTERVAL {
        ended(&store);
    }
    assert!(ids(&store).contains(&old.0));
    ended(&store);
    assert!(!ids(&store).contains(&old.0));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn so_many_events_are_kept_the_newest() {
    let root = Root::new();
    let store = root.open();
    let noted: Result<(), StoreError> = store.write(Commit::Relaxed, |tx| {
        for n in 0..1003 {
            events::record(tx, "object lost", &n.to_string())?;
        }
        Ok(())
    });
    noted.unwrap();
    assert!(
        store
            .trim_history(HistoryLimits::DEFAULT)
            .unwrap()
            .failed
            .is_empty()
    );
    let events = store.events().unwrap();
    assert_eq!(events.len(), 1000);
    let rows = "SELECT count(*) FROM event";
    let rows: i64 = root
        .database()
        .query_row(rows, [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 1000);
    assert_eq!((&events[0].text[..], &events[999].text[..]), ("1002", "3"));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn output_lost_to_a_full_disk_is_reported_in_the_log_later() {
    let root = Root::new();
    let store = root.open();
    let build = ended(&store);
    let mut log = store.step_log(build, 1, "RUN x").unwrap();
    let full = |operation: IoOperation<'_>| {
        if let IoOperation::Write(..) = operation {
            return Err(Errno::ENOSPC.into());
        }
        Ok(())
    };
    with_hook(full, || {
        log.append(1, b"lost");
        log.append(1, b" as well");
        log.finish();
    });
    assert_eq!(log.dropped(), 12);
    log.finish();
    log.finish();
    let mut reader = LogReader::open(log.path()).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push((frame.stream, frame.data));
    }
    let marks = [
        (StepLog::NAME, b"RUN x".to_vec()),
        (StepLog::DROPPED, b"12".to_vec()),
    ];
    assert_eq!(frames, marks);
    store.close().unwrap();
    root.assert_clean();
}

/// A process that is killed after it was told to stop was not interrupted by surprise.
#[test]
fn a_build_that_was_told_to_stop_counts_as_cancelled_unless_its_end_is_recorded() {
    let root = Root::new();
    let (store, other) = (root.open(), root.open());
    let before = ended(&store);
    let [stopped, done] = [(); 2].map(|()| store.start_build(&BuildInfo::default()).unwrap());
    let of_another = other.start_build(&BuildInfo::default()).unwrap();
    store.cancel_builds().unwrap();
    let state = |id| {
        let builds = root.open().builds(usize::MAX).unwrap();
        builds
            .into_iter()
            .find(|build| build.id == id)
            .unwrap()
            .state
    };
    assert_eq!(state(stopped), BuildState::Running);
    store.end_build(done, &ENDED).unwrap();
    drop((store, other));
    assert_eq!(state(stopped), BuildState::Cancelled);
    assert_eq!(state(of_another), BuildState::Interrupted);
    for id in [before, done] {
        assert!(matches!(state(id), BuildState::Ended(_, outcome) if outcome == ENDED));
    }
}
fn connection(port: u16) -> Connection {
    Connection {
        at: 1_700_000_000_123,
        took: 7,
        protocol: "tcp".to_owned(),
        name: port.is_multiple_of(2).then(|| "a.org".to_owned()),
        address: Some("2001:db8::1".parse().unwrap()),
        port,
        verdict: "denied".to_owned(),
        reason: Some("--allow-net does not name it".to_owned()),
        sent: u64::MAX >> 1,
        received: 0,
    }
}

#[test]
fn connections_are_kept_with_their_build_and_go_with_it() {
    let root = Root::new();
    let store = root.open();
    let ended = |build| {
        let outcome = BuildOutcome {
            class: Class::Success,
            status: 0,
            message: String::new(),
            image: None,
        };
        store.end_build(build, &outcome).unwrap();
    };
    let [first, second] = [(); 2].map(|()| store.start_build(&BuildInfo::default()).unwrap());
    let of = |ports: &[u16], left_out| Connections {
        list: ports.iter().map(|port| connection(*port)).collect(),
        left_out,
    };
    // A step that ran in two VMs tells twice.
    store.record_connections(first, 5, &of(&[1, 2], 3)).unwrap();
    store.record_connections(first, 5, &of(&[3], 4)).unwrap();
    store.record_connections(first, 2, &of(&[9], 0)).unwrap();
    store.record_connections(second, 1, &of(&[], 1)).unwrap();
    assert_eq!(
        store.connections(first).unwrap(),
        [(2, of(&[9], 0)), (5, of(&[1, 2, 3], 7))]
    );
    assert_eq!(store.connections(second).unwrap(), [(1, of(&[], 1))]);
    let missing = BuildId(second.0 + 1);
    store
        .record_connections(missing, 1, &of(&[1], 0))
        .unwrap_err();
    ended(first);
    store.remove_build(first).unwrap();
    assert_eq!(store.connections(first).unwrap(), []);
    assert_eq!(store.connections(second).unwrap().len(), 1);
    assert!(store.check(false).unwrap().is_clean());
}
