//! The multiplexer with a guest that posts receive buffers only when a test does.

use super::*;
use crate::config::GuestCid;
use crate::stream::Stream;

const CID: u32 = 3;

struct Harness {
    mux: Arc<Mux>,
}

impl Harness {
    fn new(max_connections: usize) -> Self {
        let mut config = Config::new(GuestCid::try_from(CID).unwrap());
        config.max_connections = max_connections;
        Self {
            mux: Arc::new(Mux::new(config).unwrap()),
        }
    }

    /// The guest sends `op` on a connection to host port 7.
    fn send(&self, guest_port: u32, op: Op) {
        self.send_header(&header(guest_port, op));
    }

    fn send_header(&self, header: &Header) {
        self.mux.handle_packet(header, &mut [].as_slice());
    }

    /// All packets for the guest, as ports and operations.
    fn receive(&self) -> Vec<(u32, Op)> {
        let mut received = Vec::new();
        while let Some(packet) = self.mux.next_packet(4000, &mut Vec::new()) {
            let op = Op::from_wire(packet.header.op).unwrap();
            received.push((packet.header.dst_port, op));
            self.mux.delivered(&packet);
        }
        received
    }

    fn violations(&self, kind: Violation) -> u64 {
        self.mux
            .counters()
            .violations
            .get(&kind)
            .copied()
            .unwrap_or(0)
    }
}

fn header(guest_port: u32, op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: 7,
        kind: TYPE_STREAM,
        op: op.to_wire(),
        buf_alloc: 1000,
        ..Header::default()
    }
}

#[test]
fn a_port_without_a_listener_is_refused() {
    let harness = Harness::new(10);
    harness.send(1, Op::Request);
    assert_eq!(harness.receive(), [(1, Op::Reset)]);
}

#[test]
fn a_full_backlog_refuses() {
    let harness = Harness::new(1000);
    let backlog = harness.mux.listen(7).unwrap();
    (0..129).for_each(|port| harness.send(port, Op::Request));
    let received = harness.receive();
    assert_eq!(
        received
            .iter()
            .filter(|(_, op)| *op == Op::Response)
            .count(),
        128
    );
    assert!(received.contains(&(128, Op::Reset)));
    backlog.recv().unwrap();
    harness.send(200, Op::Request);
    assert_eq!(harness.receive(), [(200, Op::Response)]);
}

#[test]
fn a_closing_connection_is_evicted_at_the_connection_limit() {
    let harness = Harness::new(2);
    let backlog = harness.mux.listen(7).unwrap();
    (0..3).for_each(|port| harness.send(port, Op::Request));
    assert!(harness.receive().contains(&(2, Op::Reset)));
    assert!(harness.mux.connect(5, Duration::ZERO).is_err());
    // The host closes a connection and the guest never answers the shutdown.
    drop(Stream::new(
        Arc::clone(&harness.mux),
        backlog.recv().unwrap(),
    ));
    assert_eq!(harness.receive(), [(0, Op::Shutdown)]);
    harness.send(3, Op::Request);
    assert_eq!(harness.receive(), [(3, Op::Response)]);
    harness.send(4, Op::Request);
    assert_eq!(harness.receive(), [(4, Op::Reset)]);
}

#[test]
fn ports_may_be_used_again_after_a_shutdown_that_was_not_answered() {
    let harness = Harness::new(10);
    let backlog = harness.mux.listen(7).unwrap();
    harness.send(1, Op::Request);
    drop(Stream::new(
        Arc::clone(&harness.mux),
        backlog.recv().unwrap(),
    ));
    assert_eq!(harness.receive(), [(1, Op::Response), (1, Op::Shutdown)]);
    harness.send(1, Op::Request);
    assert_eq!(harness.receive(), [(1, Op::Response)]);
    assert_eq!(backlog.len(), 1);
}

#[test]
fn a_second_request_for_an_open_connection_resets_it() {
    let harness = Harness::new(10);
    let _backlog = harness.mux.listen(7).unwrap();
    harness.send(1, Op::Request);
    harness.send(1, Op::Request);
    assert_eq!(harness.receive(), [(1, Op::Reset)]);
    assert_eq!(harness.violations(Violation::UnexpectedOperation), 1);
    harness.send(1, Op::Request);
    assert_eq!(harness.receive(), [(1, Op::Response)]);
}

#[test]
fn nothing_grows_for_a_guest_that_posts_no_buffers() {
    let harness = Harness::new(100);
    let backlog = harness.mux.listen(7).unwrap();
    for round in 0..20_000 {
        harness.send(round, Op::Request);
        harness.send(round, Op::Reset);
        harness.send(round, Op::Data);
        while backlog.try_recv().is_ok() {}
    }
    assert!(
        harness.mux.schedule.len() <= 256,
        "{}",
        harness.mux.schedule.len()
    );
    let counters = harness.mux.counters();
    assert_eq!((counters.connections, counters.refused), (20_000, 20_000));
    assert_eq!(counters.refusals_dropped, 20_000 - 256);
    assert_eq!(harness.mux.failure(), None);
}

#[test]
fn a_storm_of_resets_is_not_answered() {
    let harness = Harness::new(10);
    (0..10_000).for_each(|port| harness.send(port, Op::Reset));
    assert_eq!(harness.receive(), []);
}

#[test]
fn invalid_packets_are_counted_and_answered_unless_the_source_is_wrong() {
    let harness = Harness::new(10);
    let _backlog = harness.mux.listen(7).unwrap();
    let request = header(1, Op::Request);
    harness.send_header(&Header {
        src_cid: 4,
        ..request
    });
    assert_eq!(harness.receive(), []);
    assert_eq!(harness.violations(Violation::WrongSource), 1);
    harness.send_header(&Header { op: 99, ..request });
    harness.send_header(&Header { kind: 2, ..request });
    assert_eq!(harness.receive(), [(1, Op::Reset), (1, Op::Reset)]);
    assert_eq!(harness.violations(Violation::UnknownPacket), 2);
    // Only the host can be reached, but trying another context id is not a violation.
    harness.send_header(&Header {
        dst_cid: 1,
        ..request
    });
    harness.send_header(&Header {
        dst_cid: u64::from(u32::MAX) + 3,
        ..request
    });
    assert_eq!(harness.receive(), [(1, Op::Reset), (1, Op::Reset)]);
}

#[test]
fn a_guest_with_too_many_violations_loses_its_device() {
    let harness = Harness::new(10);
    let backlog = harness.mux.listen(7).unwrap();
    harness.send(1, Op::Request);
    let stream = Stream::new(Arc::clone(&harness.mux), backlog.recv().unwrap());
    for _ in 0..MAX_VIOLATIONS {
        assert_eq!(harness.mux.failure(), None);
        harness.send_header(&Header {
            src_cid: 4,
            ..header(1, Op::Data)
        });
    }
    assert!(
        harness
            .mux
            .failure()
            .unwrap()
            .contains("unexpected context id")
    );
    assert!(
        stream
            .read(&mut [0])
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );
    assert!(backlog.recv().is_err());
    assert!(harness.mux.listen(8).is_err());
}
