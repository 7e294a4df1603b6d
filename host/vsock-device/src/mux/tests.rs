//! The multiplexer with a guest that posts receive buffers when a test says so.

use super::*;
use crate::{GuestCid, Stream};

const CID: u32 = 3;

struct Bench {
    mux: Arc<Mux>,
}

impl Bench {
    fn new(max_connections: usize) -> Self {
        let mut config = Config::new(GuestCid::try_from(CID).unwrap());
        config.max_connections = max_connections;
        Self {
            mux: Arc::new(Mux::new(config).unwrap()),
        }
    }

    /// The guest says `op` on a connection to host port 7.
    fn say(&self, guest_port: u32, op: Op) {
        self.say_header(&header(guest_port, op));
    }

    fn say_header(&self, header: &Header) {
        self.mux.handle_packet(header, &mut [].as_slice());
    }

    /// All packets for the guest, as ports and operations.
    fn hear(&self) -> Vec<(u32, Op)> {
        let mut heard = Vec::new();
        while let Some(packet) = self.mux.next_packet(4000, &mut Vec::new()) {
            let op = Op::from_wire(packet.header.op).unwrap();
            heard.push((packet.header.dst_port, op));
            self.mux.handed_over(&packet);
        }
        heard
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
    let bench = Bench::new(10);
    bench.say(1, Op::Request);
    assert_eq!(bench.hear(), [(1, Op::Reset)]);
}

#[test]
fn a_full_backlog_refuses() {
    let bench = Bench::new(1000);
    let backlog = bench.mux.listen(7).unwrap();
    (0..129).for_each(|port| bench.say(port, Op::Request));
    let heard = bench.hear();
    assert_eq!(
        heard.iter().filter(|(_, op)| *op == Op::Response).count(),
        128
    );
    assert!(heard.contains(&(128, Op::Reset)));
    backlog.recv().unwrap();
    bench.say(200, Op::Request);
    assert_eq!(bench.hear(), [(200, Op::Response)]);
}

#[test]
fn the_connection_limit_holds_and_those_who_leave_make_room() {
    let bench = Bench::new(2);
    let backlog = bench.mux.listen(7).unwrap();
    (0..3).for_each(|port| bench.say(port, Op::Request));
    assert!(bench.hear().contains(&(2, Op::Reset)));
    assert!(bench.mux.connect(5, Duration::ZERO).is_err());
    // The host hangs up and the guest never returns the goodbye.
    drop(Stream::new(Arc::clone(&bench.mux), backlog.recv().unwrap()));
    assert_eq!(bench.hear(), [(0, Op::Shutdown)]);
    bench.say(3, Op::Request);
    assert_eq!(bench.hear(), [(3, Op::Response)]);
    bench.say(4, Op::Request);
    assert_eq!(bench.hear(), [(4, Op::Reset)]);
}

#[test]
fn ports_may_be_used_again_after_a_goodbye_that_was_not_returned() {
    let bench = Bench::new(10);
    let backlog = bench.mux.listen(7).unwrap();
    bench.say(1, Op::Request);
    drop(Stream::new(Arc::clone(&bench.mux), backlog.recv().unwrap()));
    assert_eq!(bench.hear(), [(1, Op::Response), (1, Op::Shutdown)]);
    bench.say(1, Op::Request);
    assert_eq!(bench.hear(), [(1, Op::Response)]);
    assert_eq!(backlog.len(), 1);
}

#[test]
fn a_second_request_for_an_open_connection_costs_the_connection() {
    let bench = Bench::new(10);
    let _backlog = bench.mux.listen(7).unwrap();
    bench.say(1, Op::Request);
    bench.say(1, Op::Request);
    assert_eq!(bench.hear(), [(1, Op::Reset)]);
    assert_eq!(bench.violations(Violation::UnexpectedOperation), 1);
    bench.say(1, Op::Request);
    assert_eq!(bench.hear(), [(1, Op::Response)]);
}

#[test]
fn a_guest_that_posts_no_buffers_makes_nothing_grow() {
    let bench = Bench::new(100);
    let backlog = bench.mux.listen(7).unwrap();
    for round in 0..20_000 {
        bench.say(round, Op::Request);
        bench.say(round, Op::Reset);
        bench.say(round, Op::Data);
        while backlog.try_recv().is_ok() {}
    }
    assert!(
        bench.mux.schedule.len() <= 256,
        "{}",
        bench.mux.schedule.len()
    );
    let counters = bench.mux.counters();
    assert_eq!((counters.connections, counters.refused), (20_000, 20_000));
    assert_eq!(counters.refusals_dropped, 20_000 - 256);
    assert_eq!(bench.mux.failure(), None);
}

#[test]
fn a_storm_of_resets_is_not_answered() {
    let bench = Bench::new(10);
    (0..10_000).for_each(|port| bench.say(port, Op::Reset));
    assert_eq!(bench.hear(), []);
}

#[test]
fn packets_that_make_no_sense_are_counted_and_answered_if_that_makes_sense() {
    let bench = Bench::new(10);
    let _backlog = bench.mux.listen(7).unwrap();
    let request = header(1, Op::Request);
    bench.say_header(&Header {
        src_cid: 4,
        ..request
    });
    assert_eq!(bench.hear(), []);
    assert_eq!(bench.violations(Violation::WrongSource), 1);
    bench.say_header(&Header { op: 99, ..request });
    bench.say_header(&Header { kind: 2, ..request });
    assert_eq!(bench.hear(), [(1, Op::Reset), (1, Op::Reset)]);
    assert_eq!(bench.violations(Violation::UnknownPacket), 2);
    // Nobody but the host is reachable, but asking is no violation.
    bench.say_header(&Header {
        dst_cid: 1,
        ..request
    });
    bench.say_header(&Header {
        dst_cid: u64::from(u32::MAX) + 3,
        ..request
    });
    assert_eq!(bench.hear(), [(1, Op::Reset), (1, Op::Reset)]);
}

#[test]
fn a_guest_that_goes_on_breaking_the_rules_loses_its_device() {
    let bench = Bench::new(10);
    let backlog = bench.mux.listen(7).unwrap();
    bench.say(1, Op::Request);
    let stream = Stream::new(Arc::clone(&bench.mux), backlog.recv().unwrap());
    for _ in 0..MAX_VIOLATIONS {
        assert_eq!(bench.mux.failure(), None);
        bench.say_header(&Header {
            src_cid: 4,
            ..header(1, Op::Data)
        });
    }
    assert!(bench.mux.failure().unwrap().contains("foreign context id"));
    assert!(
        stream
            .read(&mut [0])
            .unwrap_err()
            .to_string()
            .contains("gave up")
    );
    assert!(backlog.recv().is_err());
    assert!(bench.mux.listen(8).is_err());
}
