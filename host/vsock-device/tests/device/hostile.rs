//! A hostile guest breaks its own connections, in the end its own device, and nothing else.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};
use vsock_device::Violation;

use crate::TestDevice;
use crate::driver::*;

const INDIRECT: u16 = 4;

fn violations(test: &TestDevice, kind: Violation) -> u64 {
    test.device
        .counters()
        .violations
        .get(&kind)
        .copied()
        .unwrap_or(0)
}

/// Waits until the device has given up, and returns why.
#[track_caller]
fn failure(test: &TestDevice) -> String {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(failure) = test.device.failure() {
            return failure;
        }
        assert!(Instant::now() < deadline, "the device did not give up");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn malformed_chains_to_the_host_are_returned_and_counted() {
    let test = TestDevice::new();
    let _listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let good = Guest::tx_at(0);
    let request = Packet::new(1, 7, REQUEST).to_bytes();
    guest
        .memory
        .write_slice(&request, GuestAddress(good))
        .unwrap();
    let end = BASE + MEMORY;
    let chains: [&[(u64, u32, u16, u16)]; 18] = [
        &[(good, 44, NEXT, 0)],
        &[(good, 44, NEXT, 1), (good, 44, NEXT, 0)],
        &[(good, 1, NEXT, 1), (good, 0, NEXT, 1)],
        &[(good, 44, NEXT, SIZE)],
        &[(good, 44, NEXT, u16::MAX)],
        &[(0, 44, 0, 0)],
        &[(BASE - 1, 44, 0, 0)],
        &[(end - 10, 44, 0, 0)],
        &[(u64::MAX - 10, 44, 0, 0)],
        &[(good, u32::MAX, 0, 0)],
        &[(good, 44, NEXT, 1), (good, u32::MAX - 43, 0, 0)],
        &[(good, 44, NEXT, 1), (good, u32::MAX - 44, 0, 0)],
        &[(good, 0, 0, 0)],
        &[(good, 43, 0, 0)],
        &[(good, 44, WRITE, 0)],
        &[(good, 44, NEXT, 1), (good, 4, WRITE, 0)],
        &[(good, 10, NEXT, 1), (end, 34, 0, 0)],
        &[(good, 44, INDIRECT, 0)],
    ];
    for (n, chain) in chains.iter().enumerate() {
        for (slot, &(at, len, flags, next)) in (0..).zip(*chain) {
            guest.describe(TX, slot, at, len, flags, next);
        }
        guest.send_chain(0);
        assert_eq!(
            violations(&test, Violation::MalformedChain),
            n as u64 + 1,
            "{chain:?}"
        );
    }
    guest.discard_all();
    guest.open(1, 7, 1000);
    assert_eq!(test.device.failure(), None);
}

#[test]
fn a_packet_that_claims_more_payload_than_its_chain_has_is_malformed() {
    let test = TestDevice::new();
    let _listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 1000);
    for len in [11, 1 << 20, u32::MAX] {
        guest.send(
            Packet {
                len,
                ..Packet::new(1, 7, RW)
            },
            &[0; 10],
        );
    }
    guest.wait_idle();
    assert_eq!(violations(&test, Violation::MalformedChain), 3);
    assert_eq!(test.device.counters().bytes_from_guest, 0);
}

#[test]
fn a_head_outside_the_table_is_ignored() {
    let test = TestDevice::new();
    let _listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    for head in [SIZE, u16::MAX] {
        guest.publish(TX, head);
    }
    guest.open(1, 7, 1000);
    assert_eq!(violations(&test, Violation::MalformedChain), 2);
}

#[test]
fn malformed_receive_buffers_are_returned_empty_and_nothing_is_lost() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::connect(&test.socket, 4096);
    guest.start_ring(RX);
    guest.start_ring(TX);
    let good = guest.rx_at(0);
    let bad = [
        (good, 4096, 0),
        (good, 44, WRITE),
        (good, 0, WRITE),
        (BASE + MEMORY - 100, 4096, WRITE),
        (u64::MAX, 4096, WRITE),
        (good, u32::MAX, WRITE),
        (good, 4096, WRITE | INDIRECT),
    ];
    for (slot, (at, len, flags)) in (0..).zip(bad) {
        guest.describe(RX, slot, at, len, flags, 0);
        guest.publish(RX, slot);
    }
    guest.send(Packet::new(1, 7, REQUEST), &[]);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.send(&b"whole"[..]).unwrap();
    for slot in 0..7 {
        assert_eq!(guest.wait_used(RX, TIMEOUT), Some((slot, 0)));
    }
    guest.post_all();
    guest.expect(1, RESPONSE);
    assert_eq!(guest.expect(1, RW).1, b"whole");
    assert_eq!(violations(&test, Violation::MalformedChain), 7);
}

#[test]
fn overlapping_receive_buffers_affect_only_the_guest() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::connect(&test.socket, 4096);
    guest.start_ring(RX);
    guest.start_ring(TX);
    // Each overlaps the next, and the last one overlaps the rings.
    for slot in 0..SIZE {
        let at = if slot == SIZE - 1 {
            BASE
        } else {
            BASE + 0x10_0000 + u64::from(slot)
        };
        guest.describe(RX, slot, at, 0x1_0000, WRITE, 0);
        guest.publish(RX, slot);
    }
    guest.kick(RX);
    guest.send(
        Packet {
            buf_alloc: 1 << 30,
            ..Packet::new(1, 7, REQUEST)
        },
        &[],
    );
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.send(vec![0xff; 4 << 20]).unwrap();
    // The rings are overwritten now.
    let flushed = stream.flush(Some(Duration::from_secs(1)));
    assert!(flushed.is_err());
    test.device.shutdown();
    assert!(
        !test
            .device
            .failure()
            .is_some_and(|failure| failure.contains("unexpectedly"))
    );
}

#[test]
fn an_invalid_index_ends_the_device_and_its_streams() {
    for ring in [TX, RX] {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, 4096);
        guest.open(1, 7, 1 << 20);
        let stream = listener.accept(Some(TIMEOUT)).unwrap();
        guest.set_available(ring, 1000);
        stream.send(vec![0; 1000]).ok();
        guest.kick(ring);
        assert!(failure(&test).contains("virtqueue"), "{}", failure(&test));
        let ended = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
        assert!(ended.to_string().contains("disconnected"), "{ended}");
        assert_eq!(
            listener.accept(None).unwrap_err().kind(),
            ErrorKind::NotConnected
        );
        assert!(guest.frontend_is_gone());
    }
}

#[test]
fn rings_that_leave_memory_end_the_device() {
    // The used ring begins inside and ends outside.
    for ring in [RX, TX] {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::connect(&test.socket, 4096);
        guest.rings[ring].move_to(BASE + MEMORY - 0x4000 - 16);
        guest.start_ring(1 - ring);
        guest.start_ring(ring);
        guest.force_kick(ring);
        assert!(
            failure(&test).contains("not in memory"),
            "{}",
            failure(&test)
        );
        assert_eq!(
            listener.accept(None).unwrap_err().kind(),
            ErrorKind::NotConnected
        );
    }
}

#[test]
fn many_requests_without_receive_buffers_are_harmless() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::connect(&test.socket, 4096);
    guest.start_ring(RX);
    guest.start_ring(TX);
    for port in 0..20_000 {
        guest.send(Packet::new(port, 8, REQUEST), &[]);
        guest.send(Packet::new(port, 7, REQUEST), &[]);
        guest.send(Packet::new(port, 7, RST), &[]);
    }
    guest.wait_idle();
    let counters = test.device.counters();
    assert!(counters.refusals_dropped > 19_000, "{counters:?}");
    while listener.accept(Some(Duration::ZERO)).is_ok() {}
    guest.post_all();
    guest.discard_all();
    guest.open(1, 7, 1000);
    assert_eq!(test.device.failure(), None);
}

#[test]
fn a_violation_on_one_connection_does_not_affect_another() {
    let lies: [(u16, u32, u32, Violation); 5] = [
        (RW, 1001, 0, Violation::CreditOverrun),
        (CREDIT_UPDATE, 0, 1, Violation::ForwardedUnsent),
        (CREDIT_UPDATE, 0, u32::MAX / 2, Violation::ForwardedUnsent),
        (RESPONSE, 0, 0, Violation::UnexpectedOperation),
        (REQUEST, 0, 0, Violation::UnexpectedOperation),
    ];
    let test = TestDevice::with(|config| config.buf_alloc = 1000);
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let mut honest = guest.open(1, 7, 1000);
    let witness = listener.accept(Some(TIMEOUT)).unwrap();
    for (op, len, fwd_cnt, want) in lies {
        let before = violations(&test, want);
        let mut liar = guest.open(2, 7, 1000);
        let victim = listener.accept(Some(TIMEOUT)).unwrap();
        let lie = Packet {
            len,
            fwd_cnt,
            ..liar.packet(op)
        };
        guest.send(lie, &vec![0; len as usize]);
        guest.expect(2, RST);
        let ended = victim.read(&mut [0; 10]).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
        assert!(ended.to_string().contains(&want.to_string()), "{ended}");
        assert_eq!(violations(&test, want), before + 1);
    }
    let hello = Packet {
        len: 5,
        ..honest.packet(RW)
    };
    guest.send(hello, b"hello");
    assert_eq!(witness.read(&mut [0; 10]).unwrap(), 5);
}

#[test]
fn a_connection_that_is_never_read_stops_no_other() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 10);
    let stuck = listener.accept(Some(TIMEOUT)).unwrap();
    stuck.send(vec![0; 1 << 20]).unwrap();
    guest.expect(1, RW);
    guest.open(2, 7, 1000);
    let free = listener.accept(Some(TIMEOUT)).unwrap();
    free.send(&b"still here"[..]).unwrap();
    assert_eq!(guest.expect(2, RW).1, b"still here");
    free.flush(Some(TIMEOUT)).unwrap();
}

/// A random number generator with a fixed sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }
}

/// Invalid input that is nearly valid, so that it gets far.
#[test]
fn the_device_survives_whatever_a_guest_writes() {
    for seed in 1..60 {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ seed);
        let test = TestDevice::with(|config| config.max_connections = 20);
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, 4096);
        let host = thread::spawn(move || {
            while let Ok(stream) = listener.accept(None) {
                stream.set_read_timeout(Some(Duration::from_millis(1)));
                stream.set_write_timeout(Some(Duration::from_millis(1)));
                stream.send(vec![0; 100_000]).ok();
                stream.read(&mut [0; 1000]).ok();
            }
        });
        for _ in 0..300 {
            write_nearly_valid_input(&mut guest, &mut dice);
        }
        let ended = Instant::now();
        test.device.shutdown();
        host.join().unwrap();
        assert!(
            ended.elapsed() < Duration::from_secs(5),
            "seed {seed}: {:?}",
            ended.elapsed()
        );
        let failure = test.device.failure().unwrap_or_default();
        assert!(!failure.contains("unexpectedly"), "seed {seed}: {failure}");
    }
}

fn write_nearly_valid_input(guest: &mut Guest, dice: &mut Dice) {
    let port = u32::try_from(dice.roll(30)).unwrap();
    let numbers = [0, 1, 44, 1000, 1 << 20, u32::MAX / 2, u32::MAX];
    let packet = Packet {
        src_cid: dice.pick(&[CID, CID, CID, CID, 2, u64::MAX]),
        dst_cid: dice.pick(&[2, 2, 2, 2, 2, 1, CID]),
        len: dice.pick(&[0, 0, 10, 10, 100, u32::MAX]),
        kind: dice.pick(&[1, 1, 1, 1, 1, 2, 9]),
        flags: dice.pick(&numbers),
        buf_alloc: dice.pick(&numbers),
        fwd_cnt: dice.pick(&[0, 0, 0, 1, 1000, u32::MAX]),
        ..Packet::new(
            port,
            dice.pick(&[7, 7, 7, 8]),
            dice.pick(&[1, 1, 2, 3, 4, 5, 5, 6, 7, 8]),
        )
    };
    let slot = u16::try_from(dice.roll(u64::from(SIZE))).unwrap();
    let at = Guest::tx_at(slot % 32);
    guest
        .memory
        .write_slice(&packet.to_bytes(), GuestAddress(at))
        .unwrap();
    for descriptor in [slot, (slot + 1) % SIZE] {
        let at = dice.pick(&[at, at, at, at + 44, BASE + MEMORY - 44, BASE, 0, u64::MAX]);
        let len = dice.pick(&[44, 44, 54, 144, 4096, 0, u32::MAX]);
        let flags = dice.pick(&[0, 0, 0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, u16::MAX]);
        let next = dice.pick(&[(slot + 1) % SIZE, slot, SIZE, u16::MAX]);
        guest.describe(
            dice.pick(&[TX, TX, TX, RX]),
            descriptor,
            at,
            len,
            flags,
            next,
        );
    }
    let ring = dice.pick(&[TX, TX, TX, RX]);
    guest.publish(ring, slot);
    if dice.roll(100) == 0 {
        guest.set_available(ring, u16::try_from(dice.roll(1 << 16)).unwrap());
    }
    guest.force_kick(ring);
    while guest.pop_used(RX).is_some() {}
    if dice.roll(4) == 0 {
        thread::sleep(Duration::from_micros(100));
    }
}
