//! What happens to a transport in practice: slow or stalled consumers, unbounded producers, mismatched
//! buffers, connections that are cut.
//!
//! Every wait is bounded: [`TIMEOUT`] is the timeout of each stream.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use vsock_testbed::{TIMEOUT, Testbed};

use crate::memory;
use crate::pattern::{Checker, PieceChecker, Pieces, piece};

/// The end of a stream: a mark that is not in the pattern, and the length.
fn end_mark(total: u64) -> Vec<u8> {
    [*b"the end!", total.to_le_bytes()].concat()
}

/// How long a consumer stalls: a second, or `COFFERDAM_STALL` seconds.
fn stall() -> Duration {
    let seconds = std::env::var("COFFERDAM_STALL").map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// Reads a host's stream to its end.
fn read_all(host: &vsock_device::Stream) -> Vec<u8> {
    let mut received = Vec::new();
    let mut host = host;
    host.read_to_end(&mut received).unwrap();
    received
}

/// The fault that this project began with: builds hung or lost the end of a transfer when a bounded
/// queue followed an unbounded producer. Here the producer waits, nothing is dropped, not even the end
/// mark, and memory use is the window and not the transfer.
#[test]
fn a_bounded_consumer_under_an_unbounded_producer() {
    const TOTAL: u64 = 768;
    if !memory::is_alone("faults::a_bounded_consumer_under_an_unbounded_producer") {
        return;
    }
    let config = vsock_driver::Config::default();
    let testbed = Testbed::with(config);
    let (guest, host) = testbed.pair(7);
    let pieces = Pieces::new();
    let mut checker = PieceChecker::new();
    let before = memory::peak();
    let produced = &AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..TOTAL {
                // A copy, so that queued bytes use memory, as when a file is read.
                host.send(pieces.get(n).to_vec()).unwrap();
                produced.fetch_add(1, Ordering::Relaxed);
            }
            host.send(end_mark(TOTAL)).unwrap();
            host.shutdown_write().unwrap();
        });
        let (queue, consumer) = sync_channel::<vsock_driver::Chunk>(2);
        let consumer = scope.spawn(move || {
            let mut last = Vec::new();
            for (n, chunk) in consumer.iter().enumerate() {
                if n == 0 {
                    thread::sleep(stall());
                    // What the producer could send: two windows and what is in hand.
                    assert!(produced.load(Ordering::Relaxed) < 16);
                }
                // A hundred times slower than the producer, for a while.
                if n < 100 {
                    thread::sleep(Duration::from_millis(5));
                }
                let left = (TOTAL << 20) - checker.offset;
                let data = chunk.len().min(usize::try_from(left).unwrap());
                checker.take(&chunk[..data]);
                last.extend_from_slice(&chunk[data..]);
            }
            last
        });
        while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
            queue.send(chunk).unwrap();
        }
        drop(queue);
        assert_eq!(consumer.join().unwrap(), end_mark(TOTAL));
    });
    memory::check_grown(before, &config);
}

/// The same from the guest to the host.
#[test]
fn a_bounded_host_under_an_unbounded_guest() {
    const TOTAL: u64 = 512;
    if !memory::is_alone("faults::a_bounded_host_under_an_unbounded_guest") {
        return;
    }
    let config = vsock_driver::Config::default();
    let testbed = Testbed::with(config);
    let (guest, host) = testbed.pair(7);
    let pieces = Pieces::new();
    let mut checker = PieceChecker::new();
    let before = memory::peak();
    let produced = &AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..TOTAL {
                guest.write_all(&pieces.get(n)).unwrap();
                produced.fetch_add(1, Ordering::Relaxed);
            }
            guest.write_all(&end_mark(TOTAL)).unwrap();
            guest.shutdown_write().unwrap();
        });
        thread::sleep(stall());
        assert!(produced.load(Ordering::Relaxed) < 16);
        let mut buffer = vec![0; 100_000];
        for n in 0.. {
            let left = (TOTAL << 20) - checker.offset;
            let space = buffer.len().min(usize::try_from(left).unwrap());
            if space == 0 {
                break;
            }
            if n < 100 {
                thread::sleep(Duration::from_millis(5));
            }
            let got = host.read(&mut buffer[..space]).unwrap();
            assert_ne!(got, 0, "at {}", checker.offset);
            checker.take(&buffer[..got]);
        }
        assert_eq!(read_all(&host), end_mark(TOTAL));
    });
    memory::check_grown(before, &config);
}

#[test]
fn a_receiver_that_holds_all_its_slots_delays_the_end_mark_and_loses_nothing() {
    let testbed = Testbed::with_both(
        vsock_driver::Config {
            slot_size: 64 * 1024,
            slots: 16,
            window: 4,
            ..vsock_driver::Config::default()
        },
        |host| host.send_window = 64,
    );
    let (guest, host) = testbed.pair(7);
    const BULK: usize = 1 << 20;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            host.write_all(&piece(0, BULK)).unwrap();
            for n in 0..64 {
                host.send(piece(BULK as u64 + n * 8, 8)).unwrap();
            }
            host.send(end_mark(64)).unwrap();
            host.shutdown_write().unwrap();
            host.flush(Some(TIMEOUT)).unwrap();
            done.store(true, Ordering::Release);
        });
        // Until there is no credit left.
        let mut held = Vec::new();
        let stopped = loop {
            match guest.recv(Some(Duration::from_millis(500))) {
                Ok(chunk) => held.push(chunk.expect("not the end")),
                Err(err) => break err,
            }
        };
        assert_eq!(stopped.kind(), ErrorKind::TimedOut);
        assert!(!done.load(Ordering::Acquire), "the sender waits");
        assert!((3..=4).contains(&held.len()), "{}", held.len());
        let mut checker = Checker::default();
        held.drain(..).for_each(|chunk| checker.take(&chunk));
        let mut rest = Vec::new();
        while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
            rest.extend_from_slice(&chunk);
        }
        let end = rest.split_off(rest.len() - 16);
        checker.take(&rest);
        assert_eq!(checker.offset, BULK as u64 + 64 * 8);
        assert_eq!(end, end_mark(64));
    });
    assert!(done.load(Ordering::Acquire));
}

/// Windows larger than what the other side sends at a time, and smaller ones, while nothing flows the
/// other way that could carry credit.
#[test]
fn mismatched_buffers_stop_nothing() {
    const TOTAL: usize = 3 << 20;
    for (slot_size, window) in [(4 * 1024, 1), (4 * 1024, 8), (256 * 1024, 1), (1 << 20, 8)] {
        for (send_window, buf_alloc) in [(1000, 1000), (64 << 20, 5000), (1000, 16 << 20)] {
            let testbed = Testbed::with_both(
                vsock_driver::Config {
                    slot_size,
                    slots: 12,
                    window,
                    ..vsock_driver::Config::default()
                },
                |host| (host.send_window, host.buf_alloc) = (send_window, buf_alloc),
            );
            let (guest, host) = testbed.pair(7);
            thread::scope(|scope| {
                scope.spawn(|| {
                    host.write_all(&piece(0, TOTAL)).unwrap();
                    host.shutdown_write().unwrap();
                });
                let mut checker = Checker::default();
                while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
                    checker.take(&chunk);
                }
                assert_eq!(checker.offset, TOTAL as u64);
            });
            thread::scope(|scope| {
                scope.spawn(|| {
                    guest.write_all(&piece(0, TOTAL)).unwrap();
                    guest.shutdown_write().unwrap();
                });
                let mut checker = Checker::default();
                checker.take(&read_all(&host));
                assert_eq!(checker.offset, TOTAL as u64);
            });
        }
    }
}

#[test]
fn a_million_writes_of_one_byte_arrive_in_order() {
    const WRITES: u64 = 1_000_000;
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let (holder, holder_host) = testbed.pair(8);
    // Another consumer holds its whole window.
    holder_host.send(piece(0, 4 << 20)).unwrap();
    let held = holder.recv(Some(TIMEOUT)).unwrap().unwrap();
    let all = piece(0, usize::try_from(WRITES).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in all.chunks(1) {
                host.write_all(byte).unwrap();
            }
            host.shutdown_write().unwrap();
        });
        let mut checker = Checker::default();
        while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
            checker.take(&chunk);
        }
        assert_eq!(checker.offset, WRITES);
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in all.chunks(1) {
                guest.write_all(byte).unwrap();
            }
            guest.shutdown_write().unwrap();
        });
        let mut checker = Checker::default();
        checker.take(&read_all(&host));
        assert_eq!(checker.offset, WRITES);
    });
    drop(held);
}

/// After various numbers of bytes, and while the other side sends.
#[test]
fn a_reset_at_any_time_fails_both_sides_and_no_other_connection() {
    let testbed = Testbed::new();
    let listener = testbed.device.listen(7).unwrap();
    let (other, other_host) = testbed.pair(8);
    for (n, len) in [0, 1, 43, 44, 45, 4095, 4096, 262_144, 262_145, 3 << 20]
        .into_iter()
        .enumerate()
    {
        for (by_host, sent_by_host) in [(true, true), (true, false), (false, true), (false, false)]
        {
            let guest = testbed.guest.connect(7, TIMEOUT).unwrap();
            let host = listener.accept(Some(TIMEOUT)).unwrap();
            guest.set_write_timeout(Some(TIMEOUT));
            host.set_write_timeout(Some(TIMEOUT));
            host.set_read_timeout(Some(TIMEOUT));
            let data = vec![7; len];
            thread::scope(|scope| {
                if sent_by_host {
                    scope.spawn(|| host.write_all(&data).ok());
                } else {
                    scope.spawn(|| guest.write_all(&data).ok());
                }
                if by_host {
                    host.reset();
                } else {
                    guest.reset();
                }
                // Whatever came before: both sides get an error, and in bounded time.
                loop {
                    match guest.recv(Some(TIMEOUT)) {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("a reset looks like the end of the stream"),
                        Err(err) => break assert_ne!(err.kind(), ErrorKind::TimedOut),
                    }
                }
                loop {
                    match host.read(&mut [0; 4096]) {
                        Ok(0) => panic!("a reset looks like the end of the stream"),
                        Ok(_) => {}
                        Err(err) => break assert_ne!(err.kind(), ErrorKind::TimedOut),
                    }
                }
            });
        }
        let offset = n as u64 * 8;
        other_host.write_all(&piece(offset, 8)).unwrap();
        assert_eq!(
            *other.recv(Some(TIMEOUT)).unwrap().unwrap(),
            *piece(offset, 8)
        );
    }
}

#[test]
fn sixty_four_connections_work_at_once_in_both_directions() {
    const TOTAL: usize = 1 << 20;
    let testbed = Testbed::new();
    let pairs: Vec<_> = (0..64).map(|port| testbed.pair(100 + port)).collect();
    thread::scope(|scope| {
        for (guest, host) in &pairs {
            scope.spawn(move || {
                host.write_all(&piece(0, TOTAL)).unwrap();
                host.shutdown_write().unwrap();
            });
            scope.spawn(move || {
                let mut checker = Checker::default();
                checker.take(&read_all(host));
                assert_eq!(checker.offset, TOTAL as u64);
            });
            scope.spawn(move || {
                guest.write_all(&piece(0, TOTAL)).unwrap();
                guest.shutdown_write().unwrap();
            });
            scope.spawn(move || {
                let mut checker = Checker::default();
                while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
                    checker.take(&chunk);
                }
                assert_eq!(checker.offset, TOTAL as u64);
            });
        }
    });
}
