//! Connections that hold slots, and that no other connection is affected.

use std::io::Read;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use vsock_testbed::{TIMEOUT, Testbed};

use crate::pattern::{Checker, piece};

/// Slots of 64 KiB, of which a connection may hold four.
fn small() -> vsock_driver::Config {
    vsock_driver::Config {
        slot_size: 64 * 1024,
        slots: 32,
        window: 4,
        ..vsock_driver::Config::default()
    }
}

#[test]
fn a_reader_that_holds_all_its_slots_stops_only_itself() {
    let testbed = Testbed::with(small());
    let (stalled, stalled_host) = testbed.pair(7);
    let (other, other_host) = testbed.pair(8);
    let total = 8 << 20;
    let sender = thread::spawn(move || stalled_host.write_all(&piece(0, total)));
    let mut held = Vec::new();
    while held
        .iter()
        .map(|chunk: &vsock_driver::Chunk| chunk.len())
        .sum::<usize>()
        < 256 * 1024
    {
        held.push(stalled.recv(Some(TIMEOUT)).unwrap().unwrap());
    }
    let nothing = stalled.recv(Some(Duration::from_millis(50))).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::TimedOut);

    let sent = thread::spawn(move || other_host.write_all(&piece(0, total)));
    let mut checker = Checker::default();
    while checker.offset < total as u64 {
        checker.take(&other.recv(Some(TIMEOUT)).unwrap().unwrap());
    }
    sent.join().unwrap().unwrap();

    let mut checker = Checker::default();
    held.drain(..).for_each(|chunk| checker.take(&chunk));
    while checker.offset < total as u64 {
        checker.take(&stalled.recv(Some(TIMEOUT)).unwrap().unwrap());
    }
    sender.join().unwrap().unwrap();
}

#[test]
fn thousands_of_tiny_packets_pass_while_slots_are_held() {
    let testbed = Testbed::with(small());
    let (holder, holder_host) = testbed.pair(7);
    holder_host.write_all(&piece(0, 256 * 1024)).unwrap();
    let mut held = 0;
    let mut chunks = Vec::new();
    while held < 256 * 1024 {
        let chunk = holder.recv(Some(TIMEOUT)).unwrap().unwrap();
        held += chunk.len();
        chunks.push(chunk);
    }
    let (tiny, tiny_host) = testbed.pair(8);
    let (silent, silent_host) = testbed.pair(9);
    // These are not read, and they stay below the window.
    for _ in 0..5000 {
        silent_host.write_all(b"0123456789").unwrap();
        silent_host.flush(Some(TIMEOUT)).unwrap();
    }
    for n in 0..5000_u32 {
        tiny_host.write_all(&n.to_le_bytes()).unwrap();
        tiny_host.flush(Some(TIMEOUT)).unwrap();
    }
    for n in 0..5000_u32 {
        let mut bytes = [0; 4];
        (&tiny).read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, n.to_le_bytes());
    }
    let mut all = vec![0; 50_000];
    (&silent).read_exact(&mut all).unwrap();
    assert!(all.chunks(10).all(|chunk| chunk == b"0123456789"));
    assert!(testbed.guest.counters().copies >= 10_000 / 64);
    drop(chunks);
}

#[test]
fn chunks_outlive_their_stream_and_their_endpoint() {
    let testbed = Testbed::with(small());
    let (guest, host) = testbed.pair(7);
    host.write_all(&piece(0, 64 * 1024)).unwrap();
    let chunk = guest.recv(Some(TIMEOUT)).unwrap().unwrap();
    drop(guest);
    let (other, other_host) = testbed.pair(8);
    other_host.write_all(&piece(0, 1 << 20)).unwrap();
    let mut checker = Checker::default();
    while checker.offset < 1 << 20 {
        checker.take(&other.recv(Some(TIMEOUT)).unwrap().unwrap());
    }
    drop(testbed);
    Checker::default().take(&chunk);
}

#[test]
fn chunks_may_be_dropped_by_another_thread() {
    let testbed = Testbed::with(small());
    let (guest, host) = testbed.pair(7);
    let total = 16_usize << 20;
    let sender = thread::spawn(move || host.write_all(&piece(0, total)));
    let (chunks, consumer) = sync_channel::<vsock_driver::Chunk>(2);
    let consumer = thread::spawn(move || {
        let mut checker = Checker::default();
        consumer.iter().for_each(|chunk| checker.take(&chunk));
        checker.offset
    });
    let mut received = 0;
    while received < total {
        let chunk = guest.recv(Some(TIMEOUT)).unwrap().unwrap();
        received += chunk.len();
        chunks.send(chunk).unwrap();
    }
    drop(chunks);
    assert_eq!(consumer.join().unwrap(), total as u64);
    sender.join().unwrap().unwrap();
}

#[test]
fn thirty_two_connections_work_at_once_in_both_directions() {
    let testbed = Testbed::with(small());
    let total = 1_usize << 20;
    let pairs: Vec<_> = (0..32).map(|port| testbed.pair(100 + port)).collect();
    thread::scope(|scope| {
        for (guest, host) in &pairs {
            scope.spawn(move || host.write_all(&piece(0, total)).unwrap());
            scope.spawn(move || {
                let mut checker = Checker::default();
                let mut buffer = vec![0; 100_000];
                while checker.offset < total as u64 {
                    let n = host.read(&mut buffer).unwrap();
                    assert_ne!(n, 0);
                    checker.take(&buffer[..n]);
                }
            });
            scope.spawn(move || guest.write_all(&piece(0, total)).unwrap());
            scope.spawn(move || {
                let mut checker = Checker::default();
                while checker.offset < total as u64 {
                    checker.take(&guest.recv(Some(TIMEOUT)).unwrap().unwrap());
                }
            });
        }
    });
}

#[test]
fn closed_connections_return_their_slots() {
    let testbed = Testbed::with(small());
    let listener = testbed.device.listen(7).unwrap();
    for round in 0..300 {
        let guest = testbed.guest.connect(7, TIMEOUT).unwrap();
        let host = listener.accept(Some(TIMEOUT)).unwrap();
        host.write_all(&piece(0, 128 * 1024)).unwrap();
        // Sometimes read, sometimes not, and sometimes held for longer than the connection.
        let chunk = (round % 3 > 0).then(|| guest.recv(Some(TIMEOUT)).unwrap().unwrap());
        drop(guest);
        drop(chunk);
        drop(host);
    }
    let guest = testbed.guest.connect(7, TIMEOUT).unwrap();
    let host = listener.accept(Some(TIMEOUT)).unwrap();
    host.write_all(&piece(0, 4 << 20)).unwrap_or_default();
    drop(guest);
}
