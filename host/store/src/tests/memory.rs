//! The memory of the host that VMs share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::processes::{spawn, wait_ready};
use super::*;
use crate::lock::{Lock, Probe};
use crate::{MemoryShare, MemoryWait};

#[track_caller]
fn ask(store: &Store, bytes: u64, total: u64) -> MemoryShare {
    store.ask_for_memory(bytes, total).unwrap()
}

#[track_caller]
fn assert_given(share: &MemoryShare) {
    assert_eq!(share.poll().unwrap(), None);
}

#[track_caller]
fn assert_waits(share: &MemoryShare, held: u64, ahead: usize) -> MemoryWait {
    let wait = share.poll().unwrap().expect("it has its share");
    assert_eq!((wait.held, wait.ahead), (held, ahead));
    wait
}

#[test]
fn shares_are_given_while_they_fit_and_nobody_overtakes() {
    let root = Root::new();
    let stores = [(); 4].map(|()| root.open());
    let [a, b, c, d] = stores.each_ref();
    let (first, second) = (ask(a, 4, 10), ask(b, 4, 10));
    assert_given(&first);
    assert_given(&second);
    let large = ask(c, 8, 10);
    let wait = assert_waits(&large, 8, 0);
    let holder = &wait.holders[0];
    assert_eq!((holder.bytes, holder.command.as_str()), (4, "test"));
    assert_eq!(holder.pid, std::process::id());
    // It would fit, but the large one came first.
    let small = ask(d, 2, 10);
    assert_waits(&small, 8, 1);
    first.release().unwrap();
    assert_waits(&small, 4, 1);
    assert_waits(&large, 4, 0);
    second.release().unwrap();
    assert_given(&large);
    assert_given(&small);
    large.release().unwrap();
    small.release().unwrap();
    for store in stores {
        store.close().unwrap();
    }
    root.assert_clean();
}

#[test]
fn what_never_fits_is_let_in_alone() {
    let root = Root::new();
    let (a, b) = (root.open(), root.open());
    let small = ask(&a, 1, 10);
    assert_given(&small);
    let huge = ask(&b, 11, 10);
    assert_waits(&huge, 1, 0);
    small.release().unwrap();
    assert_given(&huge);
    let small = ask(&a, 1, 10);
    assert_waits(&small, 11, 0);
    huge.release().unwrap();
    assert_given(&small);
    a.close().unwrap();
    b.close().unwrap();
    root.assert_clean();
}

/// A process that was stopped while it waits does not poll.
#[test]
fn who_does_not_look_gets_its_share_in_its_turn_and_is_in_nobodys_way() {
    let root = Root::new();
    let (a, b, c) = (root.open(), root.open(), root.open());
    let first = ask(&a, 10, 10);
    assert_given(&first);
    let (stopped, last) = (ask(&b, 4, 10), ask(&c, 4, 10));
    first.release().unwrap();
    assert_given(&last);
    let third = ask(&a, 4, 10);
    assert_waits(&third, 8, 0);
    assert_given(&stopped);
    for store in [a, b, c] {
        store.close().unwrap();
    }
    root.assert_clean();
}

#[test]
fn who_gives_up_is_in_nobodys_way() {
    let root = Root::new();
    let store = root.open();
    let first = ask(&store, 10, 10);
    assert_given(&first);
    let (large, small) = (ask(&store, 11, 10), ask(&store, 1, 11));
    assert_waits(&small, 10, 1);
    large.release().unwrap();
    assert_given(&small);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_killed_process_frees_its_share_at_once() {
    let root = Root::new();
    let mut child = spawn(root.path(), "memory");
    wait_ready(&mut child);
    let store = root.open();
    let share = ask(&store, 4, 6);
    let wait = assert_waits(&share, 4, 0);
    assert_eq!(wait.holders[0].pid, child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_given(&share);
    // Nothing of it is left for others to look at.
    let rows: i64 = root
        .database()
        .query_row("SELECT count(*) FROM memory", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn the_dead_wait_no_more() {
    let root = Root::new();
    let (a, b, c) = (root.open(), root.open(), root.open());
    let first = ask(&a, 4, 10);
    assert_given(&first);
    let _dead = ask(&b, 8, 10);
    let last = ask(&c, 6, 10);
    assert_waits(&last, 4, 1);
    b.inner.die();
    assert_given(&last);
    a.close().unwrap();
    c.close().unwrap();
    drop(b);
    root.assert_clean();
}

/// A process that cleans up after another one can be stopped, too.
#[test]
fn the_share_of_a_dead_one_counts_no_more_while_nobody_can_clean_up() {
    let root = Root::new();
    let (a, b) = (root.open(), root.open());
    let dead = ask(&a, 10, 10);
    assert_given(&dead);
    let share = ask(&b, 10, 10);
    assert_waits(&share, 10, 0);
    let lock = a.layout().instance_lock(&a.instance().to_string());
    a.inner.die();
    let Probe::Free(reaper) = Lock::probe(&lock).unwrap() else {
        panic!("it is alive")
    };
    let reaper = reaper.share().unwrap();
    assert_given(&share);
    drop(reaper);
    b.close().unwrap();
    drop(a);
    root.assert_clean();
}

#[test]
fn handles_that_compete_never_hold_more_than_the_total_and_all_get_their_share() {
    const TOTAL: u64 = 10;
    let root = Root::new();
    drop(root.open());
    let in_use = AtomicU64::new(0);
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for thread in 1..=6u64 {
            let (root, in_use) = (&root, &in_use);
            scope.spawn(move || {
                let store = root.open();
                for round in 0..5 {
                    let bytes = (thread * 3 + round) % TOTAL + 1;
                    let share = ask(&store, bytes, TOTAL);
                    while share.poll().unwrap().is_some() {
                        assert!(Instant::now() < deadline, "{bytes} wait for ever");
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    let sum = in_use.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    assert!(sum <= TOTAL, "{sum}");
                    std::thread::yield_now();
                    in_use.fetch_sub(bytes, Ordering::SeqCst);
                    share.release().unwrap();
                }
                store.close().unwrap();
            });
        }
    });
    root.assert_clean();
}
