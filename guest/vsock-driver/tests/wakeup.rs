//! A writer that waits for a send buffer is woken, in every order of the threads.
//!
//! A copy of the steps of `wait_for_buffer` and `settle` in `src/shared.rs`, which need a device:
//! [loom] has no other way to run them. Beside it stands the same without the count of waiters.

#![expect(
    clippy::unwrap_used,
    reason = "loom runs closures, which clippy does not take for tests"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

struct State {
    buffers: usize,
    waiting: usize,
}

/// A writer that waits for a send buffer counts itself under the lock before it looks, and the thread
/// that returns a buffer reads the count under the lock.
fn a_waiter_is_woken(counts_itself: bool) {
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
    if counts_itself {
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
    let run = || loom::model(|| a_waiter_is_woken(false));
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
}
