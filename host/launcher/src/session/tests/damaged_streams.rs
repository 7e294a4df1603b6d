//! Connections that are cut, frames that are lost, doubled, swapped or changed: none of them gives a
//! result, and all of them end within a bound.

use std::io::{Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exec::Cancel;
use wire::frame::{self, Kind};
use wire::{Attach, Failure, FailureKind, Reply, Request, message, transfer};

use super::{STAT, check_lost, with};
use crate::session::testing::scripted_guest::{Guest, NONCE, pair, short_limits};
use crate::session::{Heartbeat, Lost, Session, SessionError};

/// Longer than any of these may take: the sum of all limits that can apply one after the other.
const BOUND: Duration = Duration::from_secs(20);

/// Does `work` for every number below `n`, on many threads: each of them mostly waits.
fn for_each_below(n: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        break;
                    }
                    let began = Instant::now();
                    work(at);
                    assert!(began.elapsed() < BOUND, "{at} took {:?}", began.elapsed());
                }
            });
        }
    });
}

/// The frames of a transfer that carries these pieces, its first and its last ones included.
fn frames_of(transfer: u64, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let nonce = NONCE;
    let mut frames = vec![message::encode(transfer, &Attach { nonce, transfer }).unwrap()];
    let mut sender = transfer::Sender::new(transfer);
    for piece in pieces {
        let header = sender.data(0, piece).unwrap();
        frames.push([&header, *piece].concat());
    }
    frames.push(sender.end().unwrap());
    frames
}

/// Receives a layer from a guest that sends these bytes on the transfer's connection, ends it, and
/// claims that it sent `size` bytes.
fn export_diff(bytes: &[u8], size: u64) -> Result<Vec<u8>, SessionError> {
    let (host, mut guest) = pair();
    let bytes = bytes.to_vec();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        let (id, request) = guest.request().unwrap();
        assert!(matches!(request, Request::ExportDiff { transfer: 1, .. }));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        guest.connections.send(Arc::new(ours)).unwrap();
        theirs.write_all(&bytes).ok();
        drop(theirs);
        // The host may have given up already.
        let reply = message::encode(id, &Reply::Exported { size }).unwrap();
        guest.control.write_all(&reply).ok();
        guest.request()
    });
    let session = host.open().unwrap();
    let mut exported = Vec::new();
    let result = session.export_diff(1, u64::MAX, &mut exported, &Cancel::new());
    session.close();
    script.join().unwrap();
    result.map(|_| exported)
}

#[test]
fn a_transfer_that_is_cut_after_any_byte_is_no_layer() {
    let stream = frames_of(1, &[b"one", b"two", b"three"]).concat();
    assert_eq!(export_diff(&stream, 11).unwrap(), b"onetwothree");
    for_each_below(stream.len(), |cut| {
        check_lost(export_diff(&stream[..cut], 11), "");
    });
}

#[test]
fn frames_in_another_order_or_number_are_no_layer() {
    let frames = frames_of(1, &[b"one", b"two", b"three"]);
    let stream = |order: &[usize]| {
        let frames: Vec<&[u8]> = order.iter().map(|at| frames[*at].as_slice()).collect();
        frames.concat()
    };
    assert!(export_diff(&stream(&[0, 1, 2, 3, 4]), 11).is_ok());
    for (order, text) in [
        (&[0, 1, 2, 3][..], "without its end mark"), // the end mark is lost
        (&[0, 1, 2, 3, 4, 4], "after the end"),      // twice
        (&[0, 4, 1, 2, 3], ""),                      // first
        (&[0, 1, 2, 3, 4, 1], "after the end"),
        (&[0, 1, 3, 4], "offset"),
        (&[0, 2, 1, 3, 4], "offset"),
        (&[0, 1, 1, 2, 3, 4], "offset"),
        (&[0, 0, 1, 2, 3, 4], ""), // it names its transfer twice
    ] {
        check_lost(export_diff(&stream(order), 11), text);
    }
}

#[test]
fn four_mebibytes_lost_from_the_middle_are_detected() {
    let data: Vec<u8> = (0..8_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let pieces: Vec<&[u8]> = data.chunks(1 << 20).collect();
    let frames = frames_of(1, &pieces);
    let stream = frames.concat();
    assert!(export_diff(&stream, 8 << 20).unwrap() == data);
    // Whole frames of them.
    check_lost(
        export_diff(&[&frames[..3], &frames[7..]].concat().concat(), 8 << 20),
        "offset",
    );
    // And wherever a block begins.
    for from in [512, 1 << 20, (1 << 20) + 512, 3 << 20] {
        let rest = [&stream[..from], &stream[from + (4 << 20)..]].concat();
        check_lost(export_diff(&rest, 8 << 20), "");
    }
}

#[test]
fn a_byte_that_is_wrong_anywhere_is_no_layer() {
    let stream = frames_of(1, &[b"one", b"two"]).concat();
    for_each_below(stream.len(), |at| {
        let mut wrong = stream.clone();
        wrong[at] ^= 0x10;
        check_lost(export_diff(&wrong, 6), "");
    });
}

#[test]
fn frames_that_do_not_belong_to_a_transfer_lose_the_guest() {
    let [attach, data, end] = &frames_of(1, &[b"abc"])[..] else {
        panic!("three frames")
    };
    let mut unknown = data.clone();
    unknown[2] = 99;
    let mut long = data.clone();
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let other = frame::encode(Kind::Data, 0, 2, 0, b"abc").unwrap();
    let ping = frame::encode(Kind::Ping, 0, 1, 0, &[]).unwrap();
    let empty = frame::encode(Kind::Data, 0, 1, 0, &[]).unwrap();
    for (bytes, text) in [
        (unknown, "unknown kind of frame: 99"),
        (long, "too long"),
        (other, "transfer"),
        (ping, "Ping"),
        (empty, "empty data frame"),
    ] {
        check_lost(export_diff(&[attach, &bytes[..], end].concat(), 3), text);
    }
}

#[test]
fn a_control_connection_that_is_cut_after_any_byte_ends_the_session() {
    let reply = message::encode(1, &Reply::Stat(STAT)).unwrap();
    for_each_below(reply.len(), |cut| {
        let (host, mut guest) = pair();
        let bytes = reply[..cut].to_vec();
        let script = thread::spawn(move || {
            guest.hello(wire::PROTOCOL, NONCE);
            guest.request().unwrap();
            guest.control.write_all(&bytes).unwrap();
        });
        let session = host.open().unwrap();
        check_lost(session.stat(), "");
        script.join().unwrap();
    });
}

#[test]
fn a_hello_that_is_cut_after_any_byte_opens_no_session() {
    let hello = wire::Hello {
        protocol: wire::PROTOCOL,
        software: "cut".into(),
        features: 0,
        max_body: 1,
        nonce: NONCE,
    };
    let hello = message::encode(0, &hello).unwrap();
    for_each_below(hello.len(), |cut| {
        let (host, mut guest) = pair();
        guest.control.write_all(&hello[..cut]).unwrap();
        guest.control.shutdown(std::net::Shutdown::Write).unwrap();
        let refused = host.open();
        assert!(
            matches!(refused, Err(Lost::Closed | Lost::Violation(_))),
            "{cut}: {refused:?}"
        );
    });
}

/// Sends a layer to a guest that reads so many bytes of the transfer and ends the connection.
fn import_cut(read: usize, layer: &[u8]) -> (Result<(), SessionError>, Session) {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        let (id, request) = guest.request().unwrap();
        let Request::Import { transfer, .. } = request else {
            panic!("{request:?}")
        };
        let mut connection = guest.attach(transfer, NONCE);
        connection.read_exact(&mut vec![0; read]).unwrap();
        drop(connection);
        let failure = Failure::new(FailureKind::Violation, "the transfer has no end");
        guest.reply(id, &Reply::Failed(failure));
        while let Some((id, _)) = guest.request() {
            guest.reply(id, &Reply::Stat(STAT));
        }
    });
    let session = host.open().unwrap();
    let size = layer.len() as u64;
    let import = session.import([1; 32], size, &mut Cursor::new(layer), &Cancel::new());
    // The guest's script ends with the session.
    drop(script);
    (import, session)
}

#[test]
fn a_layer_whose_connection_is_cut_anywhere_is_refused_and_the_guest_is_not_lost() {
    for (size, cuts) in [
        (10, (0..74).collect::<Vec<usize>>()),
        (
            20 << 20,
            vec![0, 31, 32, 33, 4096, (4 << 20) + 31, (4 << 20) + 40],
        ),
    ] {
        let layer = vec![3; size];
        for_each_below(cuts.len(), |at| {
            let (import, session) = import_cut(cuts[at], &layer);
            assert!(
                matches!(&import, Err(SessionError::Refused(failure)) if failure.text.contains("no end")),
                "{import:?}"
            );
            session.stat().unwrap();
        });
    }
}

/// A slow source, as a disk or a network can be.
struct Slow<'a>(Cursor<&'a [u8]>, Duration);

impl Read for Slow<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        thread::sleep(self.1);
        let n = buf.len().min(1 << 20);
        self.0.read(&mut buf[..n])
    }
}

/// It takes many times longer than any limit of this session.
#[test]
fn a_layer_with_a_slow_source_loses_nothing() {
    const TAKES: usize = 20;
    let (host, mut guest) = pair();
    let (begun, has_begun) = crossbeam_channel::bounded(1);
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        let (put, request) = guest.request().unwrap();
        let Request::Import { transfer, .. } = request else {
            panic!("{request:?}")
        };
        begun.send(()).unwrap();
        let other = Guest {
            control: guest.control.try_clone().unwrap(),
            connections: guest.connections.clone(),
        };
        let receiving = thread::spawn(move || other.receive(transfer));
        let mut takes = 0;
        while takes < TAKES || !receiving.is_finished() {
            // One frame at a time, heartbeats included, to see the end of the transfer.
            if let Some((id, request)) = guest.request_within(1) {
                let Request::ExportDiff { transfer, .. } = request else {
                    panic!("{request:?}")
                };
                guest.send(transfer, &[(0, b"quick")]);
                guest.reply(id, &Reply::Exported { size: 5 });
                takes += 1;
            }
        }
        guest.reply(put, &Reply::Done);
        let none = guest.request();
        (receiving.join().unwrap(), none)
    });
    let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_secs(1));
    let session = host.open_with(short_limits(), heartbeat).unwrap();
    let layer = vec![9; 20 << 20];
    thread::scope(|scope| {
        let put = scope.spawn(|| {
            let mut source = Slow(Cursor::new(&layer), Duration::from_millis(150));
            session.import([1; 32], 20 << 20, &mut source, &Cancel::new())
        });
        has_begun.recv_timeout(BOUND).unwrap();
        for _ in 0..TAKES {
            let mut taken = Vec::new();
            assert_eq!(
                session
                    .export_diff(1, u64::MAX, &mut taken, &Cancel::new())
                    .unwrap(),
                5
            );
        }
        put.join().unwrap().unwrap();
    });
    session.close();
    let (received, none) = script.join().unwrap();
    assert!(received == layer && none.is_none());
}

#[test]
fn a_layer_that_is_neither_accepted_nor_refused_ends_within_a_limit() {
    // It answers heartbeats, opens the transfer, and reads nothing, or reads all but never replies.
    for (reads, text) in [
        (false, "continue the transfer of a layer"),
        (true, "commit a layer"),
    ] {
        let (session, script) = with(move |mut guest| {
            let mut connections = Vec::new();
            while let Some((_, request)) = guest.request() {
                let Request::Import { transfer, .. } = request else {
                    continue;
                };
                let mut connection = guest.attach(transfer, NONCE);
                if reads {
                    std::io::copy(&mut connection, &mut std::io::sink()).unwrap();
                }
                connections.push(connection);
            }
        });
        let tar = vec![0; 50 << 20];
        let size = tar.len() as u64;
        let import = session.import([1; 32], size, &mut Cursor::new(tar), &Cancel::new());
        check_lost(import, text);
        session.close();
        script.join().unwrap();
    }
}

#[test]
fn a_layer_that_stalls_on_its_way_to_the_host_ends_within_a_limit() {
    let (session, script) = with(|mut guest| {
        let (_, request) = guest.request().unwrap();
        let Request::ExportDiff { transfer, .. } = request else {
            panic!("{request:?}")
        };
        let mut connection = guest.attach(transfer, NONCE);
        let mut sender = transfer::Sender::new(transfer);
        let body = [0; 1000];
        connection
            .write_all(&sender.data(0, &body).unwrap())
            .unwrap();
        connection.write_all(&body).unwrap();
        assert_eq!(guest.request(), None);
    });
    let mut out = Vec::new();
    check_lost(
        session.export_diff(1, u64::MAX, &mut out, &Cancel::new()),
        "continue the transfer of a layer",
    );
    session.close();
    script.join().unwrap();
}
