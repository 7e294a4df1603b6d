//! Notifications of the rings, which the receiver suppresses while it is awake anyway.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread;

use crate::some_order_fails;

/// Chains that are handed over.
const CHAINS: usize = 2;

/// A ring, as far as it is about being told: an index that one side advances, the wish of the other
/// not to be told, and the event by which it is told.
#[derive(Default)]
struct Ring {
    index: AtomicUsize,
    hush: AtomicBool,
    event: AtomicUsize,
}

/// Which fences there are.
#[derive(Clone, Copy)]
struct Fences {
    publisher: bool,
    receiver: bool,
}

const BOTH: Fences = Fences {
    publisher: true,
    receiver: true,
};

impl Ring {
    /// What `kick` of the driver's rings does after `add`, and `signal` of the device's worker
    /// after `add_used`.
    fn publish(&self, n: usize, fences: Fences) {
        self.index.store(n, Ordering::Release);
        if fences.publisher {
            fence(Ordering::SeqCst);
        }
        if !self.hush.load(Ordering::Relaxed) {
            self.event.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What the other side does when it has found nothing more: `ask_for_kicks` of the device's
    /// worker, and `tell_when_sent` of the driver's rings. Whether there is something after all.
    fn ask(&self, taken: usize, fences: Fences) -> bool {
        self.hush.store(false, Ordering::Relaxed);
        if fences.receiver {
            fence(Ordering::SeqCst);
        }
        self.index.load(Ordering::Acquire) != taken
    }

    fn suppress(&self) {
        self.hush.store(true, Ordering::Relaxed);
    }
}

/// A publisher, and a receiver that begins awake and goes to sleep. Whatever it has not taken by
/// then, it was told of.
fn nothing_is_missed(fences: Fences) {
    let ring = Arc::new(Ring::default());
    ring.suppress();
    let publisher = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || (1..=CHAINS).for_each(|n| ring.publish(n, fences)))
    };
    let mut taken = 0;
    // Each round takes something, so there are no more of them than chains.
    for _ in 0..=CHAINS {
        taken = ring.index.load(Ordering::Acquire);
        if !ring.ask(taken, fences) {
            break;
        }
        ring.suppress();
    }
    publisher.join().unwrap();
    let was_told = ring.event.load(Ordering::Acquire) > 0;
    assert!(taken == CHAINS || was_told, "{taken} taken, and asleep");
}

/// A driver that needs a send buffer asks for an interrupt only while it waits, and a device that
/// gives one back at that moment either interrupts or is seen to have done so. Both directions of
/// the ring at once: what is sent wakes the device, what is given back the driver.
fn a_writer_gets_its_buffer_back(fences: Fences) {
    let (sent, used) = (Arc::new(Ring::default()), Arc::new(Ring::default()));
    used.suppress();
    let device = {
        let (sent, used) = (Arc::clone(&sent), Arc::clone(&used));
        thread::spawn(move || {
            // The device is never told to be silent about packets: it sleeps until the event.
            if sent.index.load(Ordering::Acquire) == 0 && sent.event.load(Ordering::Acquire) == 0 {
                return false;
            }
            used.publish(1, fences);
            true
        })
    };
    sent.publish(1, fences);
    let seen = used.ask(0, fences);
    let gave_back = device.join().unwrap();
    let was_told = used.event.load(Ordering::Acquire) > 0;
    let will_be = sent.event.load(Ordering::Acquire) > 0;
    assert!(if gave_back { seen || was_told } else { will_be });
}

#[test]
fn one_of_both_sides_sees_what_the_other_wrote() {
    loom::model(|| nothing_is_missed(BOTH));
}

#[test]
fn a_writer_that_waits_for_a_buffer_is_woken() {
    loom::model(|| a_writer_gets_its_buffer_back(BOTH));
}

#[test]
fn without_the_fence_of_either_side_a_wake_up_is_lost() {
    let broken = [
        Fences {
            publisher: false,
            ..BOTH
        },
        Fences {
            receiver: false,
            ..BOTH
        },
    ];
    for fences in broken {
        assert!(some_order_fails(move || nothing_is_missed(fences)));
        assert!(some_order_fails(move || a_writer_gets_its_buffer_back(
            fences
        )));
    }
}

#[test]
fn asking_without_looking_again_loses_a_wake_up() {
    let run = || {
        let ring = Arc::new(Ring::default());
        ring.suppress();
        let publisher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.publish(1, BOTH))
        };
        let taken = ring.index.load(Ordering::Acquire);
        let _unlooked = ring.ask(taken, BOTH);
        publisher.join().unwrap();
        assert!(taken == 1 || ring.event.load(Ordering::Acquire) > 0);
    };
    assert!(some_order_fails(run));
}
