//! How fast bytes go between host and guest without a VM. Not a test: it only prints.
//!
//! `cargo test -p vsock-testbed --release --test driver -- --ignored --nocapture by_hand_speed`

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use vsock_testbed::{TIMEOUT, Testbed};

use crate::pattern::{Checker, piece};

const TOTAL: usize = 2 << 30;
const BLOCK: usize = 4 << 20;

/// MiB per second, and counters of the driver.
struct Run {
    speed: f64,
    counters: vsock_driver::Counters,
}

fn speed(began: Instant) -> f64 {
    (TOTAL >> 20) as f64 / began.elapsed().as_secs_f64()
}

fn to_guest(config: vsock_driver::Config, mut look: impl FnMut(&[u8])) -> Run {
    let testbed = Testbed::with(config);
    let (guest, host) = testbed.pair(7);
    let data = vsock_device::Bytes::from(piece(0, BLOCK));
    let began = Instant::now();
    let sender = thread::spawn(move || {
        (0..TOTAL / BLOCK).for_each(|_| host.send(data.clone()).unwrap());
        host.shutdown_write().unwrap();
        host.flush(Some(TIMEOUT)).unwrap();
    });
    let mut received = 0;
    while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
        received += chunk.len();
        look(&chunk);
    }
    assert_eq!(received, TOTAL);
    sender.join().unwrap();
    Run {
        speed: speed(began),
        counters: testbed.guest.counters(),
    }
}

fn to_host(config: vsock_driver::Config) -> Run {
    let testbed = Testbed::with(config);
    let (guest, host) = testbed.pair(7);
    let data = piece(0, BLOCK);
    let began = Instant::now();
    let sender = thread::spawn(move || {
        (0..TOTAL / BLOCK).for_each(|_| guest.write_all(&data).unwrap());
    });
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    loop {
        match host.read(&mut buffer).unwrap() {
            0 => break,
            n => received += n,
        }
    }
    assert_eq!(received, TOTAL);
    sender.join().unwrap();
    Run {
        speed: speed(began),
        counters: testbed.guest.counters(),
    }
}

#[test]
#[ignore = "measures, and takes a minute"]
#[expect(clippy::print_stderr, reason = "that is what it is for")]
fn by_hand_speed_of_slots_and_depths() {
    eprintln!("   slot  slots  window | unread  verified  to host | packets  interrupts  kicks");
    for (kib, slots, window) in [
        (64, 8, 6),
        (64, 56, 16),
        (256, 8, 6),
        (256, 16, 8),
        (256, 56, 8),
        (256, 56, 16),
        (1024, 8, 4),
        (1024, 20, 3),
        (1024, 56, 8),
    ] {
        let config = vsock_driver::Config {
            slot_size: kib * 1024,
            slots,
            window,
            ..vsock_driver::Config::default()
        };
        let unread = to_guest(config, |bytes| {
            black_box(bytes.first());
        });
        let mut checker = Checker::default();
        let verified = to_guest(config, |bytes| {
            checker.take(bytes);
            checker.offset %= BLOCK as u64;
        });
        let back = to_host(config);
        let counted = unread.counters;
        eprintln!(
            "{kib:4} KiB  {slots:5}  {window:6} | {:6.0}  {:8.0}  {:7.0} | {:7}  {:10}  {:5}",
            unread.speed,
            verified.speed,
            back.speed,
            counted.packets_received,
            counted.interrupts,
            counted.kicks
        );
    }
}
