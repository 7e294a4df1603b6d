//! Several producers of equal content, whose name is known before (fixed outputs) or afterwards
//! (floating outputs): the variants of the deadlock in NixOS/nix#15846. There, the name of an output had
//! a lock, which one producer held while it waited for the other. Here content has no lock: the first
//! producer makes the object, and the other finds it when it commits.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::Barrier;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::processes::{spawn, wait_ready};
use super::*;
use crate::{Claim, LayerWriter};

/// A deadlock would last for ever.
const BOUND: Duration = Duration::from_secs(60);

/// Runs something that must not wait for anybody.
#[track_caller]
fn in_bound<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (done, finished) = sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(move || done.send(work()).ok());
        match finished.recv_timeout(BOUND) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => panic!("see above"),
            // The scope would wait for the thread, so this ends the process, and names the test.
            Err(RecvTimeoutError::Timeout) => {
                writeln!(std::io::stderr(), "nobody may wait here").unwrap();
                std::process::abort();
            }
        }
    })
}

fn claim(store: &Store, name: &str) -> Claim {
    match store.lookup(key(name), Trust::Host).unwrap() {
        Lookup::Claimed(claim) => claim,
        Lookup::Hit(_) | Lookup::Busy(_) => panic!("{name} is not free"),
    }
}

/// A layer whose bytes are all written, but which is not finished.
fn begun(store: &Store, content: &str) -> LayerWriter {
    let mut writer = store.layer_writer("begun").unwrap();
    let bytes = tar(&[("file", content.as_bytes())]);
    writer.write_all(&bytes).unwrap();
    writer
}

fn objects(root: &Root) -> usize {
    names(&root.path().join("blobs")).len()
}

#[test]
fn nix_15846_fixed_output_that_a_sibling_in_the_process_is_making() {
    let root = Root::new();
    let store = root.open();
    let (mine, siblings) = (claim(&store, "mine"), claim(&store, "sibling"));
    let writer = begun(&store, "fixed");
    let fixed = crate::sha256(&tar(&[("file", b"fixed")]));
    let made = in_bound(|| {
        let made = layer(&store, "fixed");
        mine.commit(&made, &[], &Provenance::default(), false)
            .unwrap()
            .layer
    });
    assert_eq!(made.diff_id, DiffId(fixed));
    let late = in_bound(|| {
        let late = writer.finish().unwrap();
        siblings
            .commit(&late, &[], &Provenance::default(), false)
            .unwrap()
            .layer
    });
    assert_eq!(late.diff_id, made.diff_id);
    assert_eq!(objects(&root), 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn nix_15846_floating_outputs_that_turn_out_equal_at_the_same_moment() {
    let root = Root::new();
    let store = root.open();
    let together = Barrier::new(4);
    let ids = in_bound(|| {
        thread::scope(|scope| {
            let sides: Vec<_> = ["a", "b", "c", "d"]
                .into_iter()
                .map(|name| {
                    let (store, together) = (&store, &together);
                    scope.spawn(move || {
                        let claim = claim(store, name);
                        let writer = begun(store, "floating");
                        together.wait();
                        let made = writer.finish().unwrap();
                        claim
                            .commit(&made, &[], &Provenance::default(), false)
                            .unwrap()
                            .layer
                            .diff_id
                    })
                })
                .collect();
            let ids = sides.into_iter().map(|side| side.join().unwrap());
            ids.collect::<Vec<_>>()
        })
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(objects(&root), 1);
    store.close().unwrap();
    root.assert_clean();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Stops a process that has a store open, but not in the middle of a transaction: then others would
/// report that the database is busy, which is the subject of another test.
fn stop_outside_of_a_transaction(pid: Pid, root: &Root) {
    in_bound(|| {
        let database = root.database();
        database.busy_timeout(Duration::ZERO).unwrap();
        loop {
            kill(pid, Signal::SIGSTOP).unwrap();
            let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
            if database.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok() {
                break;
            }
            kill(pid, Signal::SIGCONT).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn nix_15846_output_that_a_stopped_process_is_making() {
    let root = Root::new();
    let mut child = spawn(root.path(), "make equal");
    wait_ready(&mut child);
    // A stopped process would outlive a test that fails.
    let mut child = Killed(child);
    let child = &mut child.0;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    stop_outside_of_a_transaction(pid, &root);
    let store = root.open();
    let made = in_bound(|| step(&store, "equal", &[]));
    kill(pid, Signal::SIGCONT).unwrap();
    // Waiting closes its standard input. Its status means nothing, since nobody reads the final output of
    // its test harness.
    in_bound(|| child.wait().unwrap());
    for name in ["equal", "made by equal"] {
        assert_eq!(
            store.peek(key(name), Trust::Host).unwrap().as_ref(),
            Some(&made),
            "{name}"
        );
    }
    assert_eq!(objects(&root), 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn nix_15846_crossed_outputs_of_two_processes() {
    let root = Root::new();
    let mut children = ["make one, other", "make other, one"].map(|role| spawn(root.path(), role));
    // Each waits only for the other.
    for child in &mut children {
        drop(child.stdin.take());
    }
    for mut child in children {
        let out = BufReader::new(child.stdout.take().unwrap());
        in_bound(|| out.lines().for_each(drop));
        assert!(in_bound(|| child.wait().unwrap()).success());
    }
    assert_eq!(objects(&root), 2);
    root.assert_clean();
}

/// The code of the child processes: `make A` begins the layer A, reports it, and finishes it when its
/// standard input is closed; `make A, B` begins both, and finishes one after the other.
pub(super) fn make(store: &Store, contents: &str) {
    let claim = claim(store, &format!("made by {contents}"));
    let begun: Vec<_> = contents.split(", ").map(|it| begun(store, it)).collect();
    processes::ready();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    let made: Vec<_> = begun.into_iter().map(|it| it.finish().unwrap()).collect();
    claim
        .commit(&made[0], &[], &Provenance::default(), false)
        .unwrap();
    store.clone().close().unwrap();
}
