//! No wake-up of the worker is lost, in every order of loads and stores: loom runs the notifier
//! itself, with a counter in place of the eventfd. Beside it are the same steps in a wrong order, and
//! loom has to find the order in which a wake-up is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::*;

/// As an eventfd: clearing takes the counter, and one that is not zero wakes the worker.
struct Counter(AtomicUsize);

impl Event for Counter {
    fn set(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn clear(&self) {
        self.0.swap(0, Ordering::AcqRel);
    }
}

impl Flag for AtomicBool {
    fn swap(&self, value: bool, order: Ordering) -> bool {
        Self::swap(self, value, order)
    }

    fn store(&self, value: bool, order: Ordering) {
        Self::store(self, value, order);
    }
}

type LoomNotifier = Notifier<Counter, AtomicBool>;

impl LoomNotifier {
    fn for_loom() -> Self {
        Self {
            event: Counter(AtomicUsize::new(0)),
            is_notified: AtomicBool::new(false),
        }
    }

    fn is_pending(&self) -> bool {
        self.event.0.load(Ordering::Acquire) > 0
    }

    /// [`Self::acknowledge`] in the wrong order: a notification in between sets an event that is then
    /// cleared.
    fn acknowledge_in_the_wrong_order(&self) {
        self.is_notified.store(false, Ordering::Release);
        self.event.clear();
    }
}

/// Whether some order of `run` fails.
fn some_order_fails(run: impl Fn() + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| loom::model(run))).is_err()
}

/// Two threads queue work and notify the worker, which acknowledges and then looks. Of work that it
/// has not seen it must still be notified.
fn the_worker_sees_everything(acknowledge: fn(&LoomNotifier), looks_last: bool) {
    let notifier = Arc::new(LoomNotifier::for_loom());
    let queue = Arc::new(Mutex::new(0));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (notifier, queue) = (Arc::clone(&notifier), Arc::clone(&queue));
            thread::spawn(move || {
                *queue.lock().unwrap() += 1;
                notifier.notify();
            })
        })
        .collect();
    let mut seen = 0;
    if looks_last {
        acknowledge(&notifier);
    }
    seen += std::mem::take(&mut *queue.lock().unwrap());
    if !looks_last {
        acknowledge(&notifier);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(
        seen == 2 || notifier.is_pending(),
        "{seen} seen, and asleep"
    );
}

#[test]
fn work_that_is_queued_before_a_notification_is_seen() {
    loom::model(|| the_worker_sees_everything(LoomNotifier::acknowledge, true));
}

#[test]
fn looking_before_acknowledging_loses_a_notification() {
    assert!(some_order_fails(|| the_worker_sees_everything(
        LoomNotifier::acknowledge,
        false
    )));
}

#[test]
fn acknowledging_in_the_wrong_order_loses_a_notification() {
    assert!(some_order_fails(|| the_worker_sees_everything(
        LoomNotifier::acknowledge_in_the_wrong_order,
        true
    )));
}
