//! The bell by which the application's threads wake the worker.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::some_order_fails;

/// As `bell` of the device, with a counter for the event: a read takes it, and one that is not zero
/// wakes the worker.
#[derive(Default)]
struct Bell {
    event: AtomicUsize,
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.event.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn answer(&self) {
        self.event.swap(0, Ordering::AcqRel);
        self.rung.store(false, Ordering::Release);
    }

    /// The same in the wrong order: a ring in between is taken for one that was answered.
    fn answer_hastily(&self) {
        self.rung.store(false, Ordering::Release);
        self.event.swap(0, Ordering::AcqRel);
    }
}

/// Two threads line something up and ring; a worker answers and then looks. What it has not seen
/// then, the bell still tells.
fn the_worker_sees_everything(answer: fn(&Bell), looks_last: bool) {
    let bell = Arc::new(Bell::default());
    let schedule = Arc::new(Mutex::new(0));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (bell, schedule) = (Arc::clone(&bell), Arc::clone(&schedule));
            thread::spawn(move || {
                *schedule.lock().unwrap() += 1;
                bell.ring();
            })
        })
        .collect();
    let mut seen = 0;
    if looks_last {
        answer(&bell);
    }
    seen += std::mem::take(&mut *schedule.lock().unwrap());
    if !looks_last {
        answer(&bell);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let still_rings = bell.event.load(Ordering::Acquire) > 0;
    assert!(seen == 2 || still_rings, "{seen} seen, and asleep");
}

#[test]
fn what_was_lined_up_before_a_ring_is_seen() {
    loom::model(|| the_worker_sees_everything(Bell::answer, true));
}

#[test]
fn looking_before_answering_loses_a_ring() {
    assert!(some_order_fails(|| the_worker_sees_everything(
        Bell::answer,
        false
    )));
}

#[test]
fn answering_in_the_wrong_order_loses_a_ring() {
    assert!(some_order_fails(|| the_worker_sees_everything(
        Bell::answer_hastily,
        true
    )));
}

/// A writer that waits for a send buffer counts itself under the lock before it looks, and whoever
/// gives one back looks at the count under the lock: as `wait_for_buffer` and `settle` do.
fn a_waiter_is_woken(counts_under_the_lock: bool) {
    struct State {
        buffers: usize,
        waiting: usize,
    }
    let state = State {
        buffers: 0,
        waiting: 0,
    };
    let shared = Arc::new((Mutex::new(state), Condvar::new()));
    let giver = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let mut state = shared.0.lock().unwrap();
            state.buffers += 1;
            if state.waiting > 0 {
                shared.1.notify_all();
            }
        })
    };
    let mut state = shared.0.lock().unwrap();
    if counts_under_the_lock {
        state.waiting += 1;
    }
    while state.buffers == 0 {
        state = shared.1.wait(state).unwrap();
    }
    state.buffers -= 1;
    drop(state);
    giver.join().unwrap();
}

#[test]
fn a_writer_that_counts_itself_is_woken() {
    loom::model(|| a_waiter_is_woken(true));
}

#[test]
fn a_writer_that_does_not_count_itself_sleeps_for_ever() {
    assert!(some_order_fails(|| a_waiter_is_woken(false)));
}
