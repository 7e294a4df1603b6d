//! No wake-up is lost between driver and device, in every order of their loads and stores.
//!
//! [loom] runs the product's own barrier, [`read_after_writes`], which the driver's `kick` and
//! `tell_when_sent` and the device's `signal` call. The ring around it is a copy: its index and flag
//! are written by `virtio-drivers` and `virtio-queue`, in memory that is shared with a machine.
//! Beside each protocol stands the same with a barrier or a second look left out, and loom has to
//! find the order in which that hangs.

#![expect(
    clippy::unwrap_used,
    reason = "loom runs closures, which clippy does not take for tests"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread;
use virtio_vsock::suppression::{Barrier, read_after_writes};

/// Chains that are handed over.
const CHAINS: usize = 2;

/// The barriers of loom's memory model.
struct Loom;

impl Barrier for Loom {
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// A side that forgot its barrier.
struct Missing;

impl Barrier for Missing {
    fn fence(_: Ordering) {}
}

/// A ring, as far as notifications go: the index that one side advances, the wish of the other not
/// to be notified, and the event by which it is notified.
#[derive(Default)]
struct Ring {
    index: AtomicUsize,
    is_suppressed: AtomicBool,
    event: AtomicUsize,
}

impl Ring {
    /// The driver's `kick` after `add`, and the device's `signal` after `add_used`.
    fn publish<B: Barrier>(&self, n: usize) {
        self.index.store(n, Ordering::Release);
        let is_suppressed = || self.is_suppressed.load(Ordering::Relaxed);
        if !read_after_writes::<B, _>(is_suppressed) {
            self.event.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What the other side does when it has found nothing more: the driver's `tell_when_sent`, and
    /// `enable_notification` of `virtio-queue`. Whether there is something after all.
    fn enable_notification<B: Barrier>(&self, taken: usize) -> bool {
        self.is_suppressed.store(false, Ordering::Relaxed);
        read_after_writes::<B, _>(|| self.index.load(Ordering::Acquire) != taken)
    }

    fn disable_notification(&self) {
        self.is_suppressed.store(true, Ordering::Relaxed);
    }
}

/// Whether some order of `run` fails.
fn some_order_fails(run: impl Fn() + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| loom::model(run))).is_err()
}

/// A publisher `P`, and a receiver `R` that begins awake and goes to sleep. The receiver is notified
/// of whatever it has not taken by then.
fn nothing_is_missed<P: Barrier, R: Barrier>() {
    let ring = Arc::new(Ring::default());
    ring.disable_notification();
    let publisher = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || (1..=CHAINS).for_each(|n| ring.publish::<P>(n)))
    };
    let mut taken = 0;
    // Each round takes something, so there are no more rounds than chains.
    for _ in 0..=CHAINS {
        taken = ring.index.load(Ordering::Acquire);
        if !ring.enable_notification::<R>(taken) {
            break;
        }
        ring.disable_notification();
    }
    publisher.join().unwrap();
    let was_notified = ring.event.load(Ordering::Acquire) > 0;
    assert!(taken == CHAINS || was_notified, "{taken} taken, and asleep");
}

/// A driver that needs a send buffer asks for an interrupt only while it waits. A device that gives
/// a buffer back at that moment either interrupts, or the driver sees the buffer. Both directions of
/// the ring run at once: a sent packet wakes the device, a returned buffer wakes the driver.
fn a_writer_gets_its_buffer_back<P: Barrier, R: Barrier>() {
    let (sent, used) = (Arc::new(Ring::default()), Arc::new(Ring::default()));
    used.disable_notification();
    let device = {
        let (sent, used) = (Arc::clone(&sent), Arc::clone(&used));
        thread::spawn(move || {
            // The device never suppresses notifications of packets: it sleeps until the event.
            if sent.index.load(Ordering::Acquire) == 0 && sent.event.load(Ordering::Acquire) == 0 {
                return false;
            }
            used.publish::<P>(1);
            true
        })
    };
    sent.publish::<P>(1);
    let seen = used.enable_notification::<R>(0);
    let gave_back = device.join().unwrap();
    let was_notified = used.event.load(Ordering::Acquire) > 0;
    let will_be = sent.event.load(Ordering::Acquire) > 0;
    assert!(if gave_back {
        seen || was_notified
    } else {
        will_be
    });
}

#[test]
fn one_of_both_sides_sees_what_the_other_wrote() {
    loom::model(nothing_is_missed::<Loom, Loom>);
}

#[test]
fn a_writer_that_waits_for_a_buffer_is_woken() {
    loom::model(a_writer_gets_its_buffer_back::<Loom, Loom>);
}

#[test]
fn without_the_barrier_of_either_side_a_wake_up_is_lost() {
    assert!(some_order_fails(nothing_is_missed::<Missing, Loom>));
    assert!(some_order_fails(nothing_is_missed::<Loom, Missing>));
    let missing = a_writer_gets_its_buffer_back::<Missing, Loom>;
    assert!(some_order_fails(missing));
    let missing = a_writer_gets_its_buffer_back::<Loom, Missing>;
    assert!(some_order_fails(missing));
}

#[test]
fn enabling_notifications_without_a_second_look_loses_a_wake_up() {
    let run = || {
        let ring = Arc::new(Ring::default());
        ring.disable_notification();
        let publisher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.publish::<Loom>(1))
        };
        let taken = ring.index.load(Ordering::Acquire);
        let _ignored = ring.enable_notification::<Loom>(taken);
        publisher.join().unwrap();
        assert!(taken == 1 || ring.event.load(Ordering::Acquire) > 0);
    };
    assert!(some_order_fails(run));
}
