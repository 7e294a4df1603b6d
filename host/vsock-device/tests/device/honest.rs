//! With a correct guest everything arrives in order, whichever side is slow.

use std::io::{ErrorKind, Read};
use std::thread;
use std::time::{Duration, Instant};

use vsock_device::{Bytes, Stream};

use crate::TestDevice;
use crate::driver::*;

/// Receives for `peer` until the host has shut down sending.
fn drain(guest: &mut Guest, peer: &mut Peer) {
    while !peer.ended {
        let (packet, payload) = guest.receive();
        assert_eq!(packet.dst_port, peer.guest_port);
        if peer.on_packet(&packet, &payload) {
            let update = peer.packet(CREDIT_UPDATE);
            guest.send(update, &[]);
        }
    }
}

/// Sends `total` bytes of the pattern in packets of at most `piece`, and the end of the stream.
fn send_all(guest: &mut Guest, peer: &mut Peer, total: u64, piece: u32) {
    while peer.sent < total {
        while let Some((packet, payload)) = guest.try_receive() {
            peer.on_packet(&packet, &payload);
        }
        let left = u32::try_from(total - peer.sent).unwrap_or(u32::MAX);
        let n = left.min(piece).min(peer.credit());
        if n == 0 {
            let (packet, payload) = guest.receive();
            peer.on_packet(&packet, &payload);
            continue;
        }
        let payload = bytes(peer.sent, n as usize);
        peer.sent += u64::from(n);
        let packet = Packet {
            len: n,
            ..peer.packet(RW)
        };
        guest.send(packet, &payload);
    }
    let end = Packet {
        flags: 2,
        ..peer.packet(SHUTDOWN)
    };
    guest.send(end, &[]);
}

fn send_pattern(stream: &Stream, total: u64, piece: usize) {
    stream.set_write_timeout(Some(TIMEOUT));
    let mut sent = 0;
    while sent < total {
        let n = usize::try_from(total - sent).unwrap().min(piece);
        stream.send(bytes(sent, n)).unwrap();
        sent += n as u64;
    }
    stream.shutdown_write().unwrap();
}

fn read_pattern(stream: &Stream, piece: usize) -> u64 {
    stream.set_read_timeout(Some(TIMEOUT));
    let mut buf = vec![0; piece];
    let mut got = 0;
    loop {
        let n = stream.read(&mut buf).unwrap();
        assert_eq!(buf[..n], bytes(got, n));
        got += n as u64;
        if n == 0 {
            return got;
        }
    }
}

#[test]
fn rings_may_become_ready_one_at_a_time_with_kicks_in_between() {
    for order in [[RX, TX], [TX, RX]] {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::connect(&test.socket, 4096);
        for ring in order {
            guest.start_ring(ring);
            guest.kick(ring);
            thread::sleep(Duration::from_millis(20));
        }
        guest.send(Packet::new(1, 7, REQUEST), &[]);
        listener.accept(Some(TIMEOUT)).unwrap();
        guest.post_all();
        guest.expect(1, RESPONSE);
        assert_eq!(test.device.failure(), None);
    }
}

#[test]
fn every_byte_and_the_end_reach_the_guest_whatever_the_sizes() {
    for (rx_buffer, buf_alloc, piece) in [
        (4096, 1 << 18, 100_000),
        (1 << 18, 1 << 20, 1 << 20),
        (100, 1000, 33),
        (1 << 20, 1, 50),
    ] {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, rx_buffer);
        let total = u64::from(buf_alloc) * 50 + 17;
        let host = thread::spawn(move || {
            let stream = listener.accept(Some(TIMEOUT)).unwrap();
            send_pattern(&stream, total, piece);
            stream.flush(Some(TIMEOUT)).unwrap();
        });
        let mut peer = guest.open(1, 7, buf_alloc);
        drain(&mut guest, &mut peer);
        assert_eq!(peer.received, total);
        host.join().unwrap();
        assert!(test.device.counters().violations.is_empty());
    }
}

#[test]
fn every_byte_and_the_end_reach_the_host_whatever_the_sizes() {
    for (window, buf_alloc, piece) in [
        (1 << 20, 1 << 18, 65_536),
        (1 << 16, 1 << 22, 65_536),
        (1000, 300, 70),
        (1, 1, 1),
    ] {
        let test = TestDevice::with(|config| config.buf_alloc = window);
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, 4096);
        let host = thread::spawn(move || {
            let stream = listener.accept(Some(TIMEOUT)).unwrap();
            read_pattern(&stream, 10_000)
        });
        let mut peer = guest.open(1, 7, buf_alloc);
        let total = u64::from(window) * 20 + 17;
        send_all(&mut guest, &mut peer, total, piece);
        assert_eq!(host.join().unwrap(), total);
        assert!(test.device.counters().violations.is_empty());
    }
}

/// Credit counters have 32 bits; a connection may carry more. Also prints the speed.
#[test]
#[expect(clippy::print_stderr, reason = "shown with --nocapture")]
fn more_than_four_gibibytes_go_through_one_connection() {
    const TOTAL: u64 = (9 << 30) / 2;
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 1 << 18);
    let started = Instant::now();
    let host = thread::spawn(move || {
        let stream = listener.accept(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT));
        // A multiple of the pattern's period, so that pieces continue each other.
        let piece = Bytes::from(bytes(0, 251 * 4000));
        let mut sent = 0;
        while sent < TOTAL {
            let n = usize::try_from(TOTAL - sent)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            stream.send(piece.slice(..n)).unwrap();
            sent += n as u64;
        }
        stream.shutdown_write().unwrap();
        stream
    });
    let mut peer = guest.open(1, 7, 8 << 20);
    while !peer.ended {
        let (packet, ends) = guest.receive_ends();
        if peer.on_ends(&packet, ends) {
            let update = peer.packet(CREDIT_UPDATE);
            guest.send(update, &[]);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(peer.received, TOTAL);
    eprintln!("to the guest: {:.1} GiB/s", 4.5 / seconds);

    let stream = host.join().unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            stream.set_read_timeout(Some(TIMEOUT));
            let mut buf = vec![0; 1 << 20];
            let mut got = 0;
            loop {
                let n = stream.read(&mut buf).unwrap();
                let ends = [buf[0], buf[n.max(1) - 1]];
                got += n as u64;
                if n == 0 {
                    return got;
                }
                assert_eq!(ends, [nth(got - n as u64), nth(got - 1)]);
            }
        });
        send_prepared(&mut guest, &mut peer, TOTAL);
        assert_eq!(reader.join().unwrap(), TOTAL);
    });
    eprintln!(
        "from the guest: {:.1} GiB/s",
        4.5 / started.elapsed().as_secs_f64()
    );
    assert!(test.device.counters().violations.is_empty());
}

/// Sends `total` bytes of the pattern from memory that is filled once.
fn send_prepared(guest: &mut Guest, peer: &mut Peer, total: u64) {
    // Packets of a multiple of the period, except the last.
    const PIECE: u32 = 251 * 260;
    guest.prepare(&bytes(0, PIECE as usize));
    while peer.sent < total {
        while let Some((packet, payload)) = guest.try_receive() {
            peer.on_packet(&packet, &payload);
        }
        let n = PIECE.min(u32::try_from(total - peer.sent).unwrap_or(u32::MAX));
        if peer.credit() < n {
            thread::yield_now();
            continue;
        }
        peer.sent += u64::from(n);
        let packet = Packet {
            len: n,
            ..peer.packet(RW)
        };
        guest.send_prepared(packet);
    }
    let end = Packet {
        flags: 2,
        ..peer.packet(SHUTDOWN)
    };
    guest.send(end, &[]);
}

#[test]
fn a_slow_reader_makes_the_guest_wait_and_loses_nothing() {
    let test = TestDevice::with(|config| config.buf_alloc = 50_000);
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let host = thread::spawn(move || {
        let stream = listener.accept(Some(TIMEOUT)).unwrap();
        let mut got = 0;
        loop {
            thread::sleep(Duration::from_millis(2));
            let mut buf = [0; 5000];
            match stream.read(&mut buf).unwrap() {
                0 => return got,
                n => {
                    assert_eq!(buf[..n], bytes(got, n));
                    got += n as u64;
                }
            }
        }
    });
    let mut peer = guest.open(1, 7, 1 << 20);
    send_all(&mut guest, &mut peer, 500_000, 65_536);
    assert_eq!(host.join().unwrap(), 500_000);
}

#[test]
fn a_slow_guest_makes_the_writer_wait() {
    let test = TestDevice::with(|config| config.send_window = 100_000);
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let mut peer = guest.open(1, 7, 1000);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(50)));
    stream.send(bytes(0, 100_000)).unwrap();
    let full = stream.send(bytes(100_000, 2000)).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::TimedOut);
    assert_eq!(
        stream.flush(Some(Duration::ZERO)).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    stream.shutdown_write().unwrap();
    drain(&mut guest, &mut peer);
    assert_eq!(peer.received, 100_000, "what timed out was not queued");
    stream.flush(Some(TIMEOUT)).unwrap();
}

#[test]
fn many_connections_at_once_do_not_affect_each_other() {
    const EACH: u64 = 300_000;
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    thread::scope(|scope| {
        let mut peers: Vec<Peer> = (0..40).map(|port| guest.open(port, 7, 20_000)).collect();
        for peer in &peers {
            let stream = listener.accept(Some(TIMEOUT)).unwrap();
            assert_eq!(stream.guest_port(), peer.guest_port);
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| send_pattern(&stream, EACH, 7000));
                    assert_eq!(read_pattern(&stream, 9000), 1000);
                });
            });
        }
        for peer in &mut peers {
            let packet = Packet {
                len: 1000,
                ..peer.packet(RW)
            };
            guest.send(packet, &bytes(0, 1000));
            let end = Packet {
                flags: 2,
                ..peer.packet(SHUTDOWN)
            };
            guest.send(end, &[]);
        }
        while peers.iter().any(|peer| !peer.ended) {
            let (packet, payload) = guest.receive();
            let peer = peers
                .iter_mut()
                .find(|peer| peer.guest_port == packet.dst_port)
                .unwrap();
            if !peer.ended && peer.on_packet(&packet, &payload) {
                let update = peer.packet(CREDIT_UPDATE);
                guest.send(update, &[]);
            }
        }
        assert!(peers.iter().all(|peer| peer.received == EACH));
    });
}

#[test]
fn a_busy_writer_does_not_delay_others() {
    let test = TestDevice::with(|config| config.send_window = 64 << 20);
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 64 << 20);
    let loud = listener.accept(Some(TIMEOUT)).unwrap();
    guest.open(2, 7, 1000);
    let quiet = listener.accept(Some(TIMEOUT)).unwrap();
    loud.send(vec![1; 32 << 20]).unwrap();
    quiet.send(&b"here I am"[..]).unwrap();
    let mut before = 0;
    while guest.receive().0.dst_port == 1 {
        before += 1;
    }
    // All buffers may have been full when the quiet one sent, and the busy one's turn just begun.
    assert!(
        before <= 2 * (64 + (256 << 10) / 4000),
        "{before} packets came first"
    );
}

#[test]
fn control_packets_pass_data() {
    let test = TestDevice::with(|config| config.send_window = 64 << 20);
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 64 << 20);
    let loud = listener.accept(Some(TIMEOUT)).unwrap();
    loud.send(vec![1; 32 << 20]).unwrap();
    guest.send(Packet::new(2, 7, REQUEST), &[]);
    guest.wait_idle();
    let mut before = 0;
    while guest.receive().0.op == RW {
        before += 1;
    }
    assert!(
        before <= 2 * usize::from(SIZE),
        "{before} packets came first"
    );
}

#[test]
fn small_writes_share_packets() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::connect(&test.socket, 4096);
    guest.start_ring(TX);
    guest.send(Packet::new(1, 7, REQUEST), &[]);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    for i in 0..3000 {
        stream.write_all(&[nth(i)]).unwrap();
    }
    guest.start_ring(RX);
    guest.post_all();
    guest.expect(1, RESPONSE);
    let (_, payload) = guest.expect(1, RW);
    assert_eq!(payload, bytes(0, 3000));
}

#[test]
fn the_host_can_connect_to_the_guest() {
    let test = TestDevice::new();
    let mut guest = Guest::boot(&test.socket, 4096);
    thread::scope(|scope| {
        let host = scope.spawn(|| test.device.connect(99, TIMEOUT));
        let (request, _) = guest.expect(99, REQUEST);
        guest.send(Packet::new(99, request.src_port, RESPONSE), &[]);
        let stream = host.join().unwrap().unwrap();
        stream.write_all(b"hello").unwrap();
        let (packet, payload) = guest.expect(99, RW);
        assert_eq!(
            (packet.src_port, payload.as_slice()),
            (request.src_port, &b"hello"[..])
        );
        guest.send(
            Packet {
                len: 2,
                ..Packet::new(99, request.src_port, RW)
            },
            b"ok",
        );
        let mut answer = [0; 2];
        (&stream).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ok");
        drop(stream);
        guest.expect(99, SHUTDOWN);

        let refused = scope.spawn(|| test.device.connect(98, TIMEOUT).unwrap_err());
        let (request, _) = guest.expect(98, REQUEST);
        guest.send(Packet::new(98, request.src_port, RST), &[]);
        assert_eq!(refused.join().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
    let late = test
        .device
        .connect(97, Duration::from_millis(50))
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    guest.expect(97, REQUEST);
    guest.expect(97, RST);
}

#[test]
fn each_side_can_shut_down_sending_and_still_receive() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let mut peer = guest.open(1, 7, 1000);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.send(bytes(0, 10)).unwrap();
    stream.shutdown_write().unwrap();
    assert_eq!(
        stream.write_all(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    drain(&mut guest, &mut peer);
    send_all(&mut guest, &mut peer, 20, 100);
    assert_eq!(read_pattern(&stream, 100), 20);
    // The guest closes, as Linux does: both flags, and then it waits for the reset.
    let close = Packet {
        flags: 3,
        ..peer.packet(SHUTDOWN)
    };
    guest.send(close, &[]);
    guest.expect(1, RST);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn dropping_a_stream_delivers_what_was_sent_and_shuts_down() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    let mut peer = guest.open(1, 7, 1000);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.send(bytes(0, 5000)).unwrap();
    drop(stream);
    drain(&mut guest, &mut peer);
    assert_eq!(peer.received, 5000);
    guest.discard_all();
    // Packets that cross the shutdown are not answered, nor is the reset with which Linux answers it.
    for op in [CREDIT_UPDATE, CREDIT_REQUEST, RST] {
        let late = peer.packet(op);
        guest.send(late, &[]);
    }
    assert_eq!(guest.discard_all(), 0);
    // The same ports are free again.
    guest.open(1, 7, 1000);
}

#[test]
fn a_dropped_listener_refuses_waiting_and_new_connections() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    assert!(test.device.listen(7).is_err());
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 1000);
    drop(listener);
    guest.expect(1, SHUTDOWN);
    guest.send(Packet::new(2, 7, REQUEST), &[]);
    guest.expect(2, RST);
    let again = test.device.listen(7).unwrap();
    guest.open(3, 7, 1000);
    again.accept(Some(TIMEOUT)).unwrap();
}
