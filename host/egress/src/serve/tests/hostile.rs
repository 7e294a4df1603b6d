//! What an owned guest does in vain.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use wire::Kind;
use wire::flow::{FlowOpen, FlowViolation, MAX_FLOWS, Protocol, Target};
use wire::{frame, message};

use super::guest::{Guest, guest};
use super::honest::server;
use crate::serve::{ServeError, Violation};

#[track_caller]
fn is_at_fault(guest: Guest) -> Violation {
    match guest.ended().1 {
        Err(ServeError::Guest(violation)) => violation,
        other => panic!("{other:?}"),
    }
}

/// A server that never says or takes anything.
fn silent() -> SocketAddr {
    server(|stream| {
        thread::park_timeout(super::guest::BOUND);
        drop(stream);
    })
}

fn local(to: SocketAddr) -> SocketAddr {
    (wire::flow::GATEWAYS.0, to.port()).into()
}

#[test]
fn garbage_is_its_fault() {
    let guest = guest();
    guest.raw(&[0x55; 4096]);
    assert!(matches!(is_at_fault(guest), Violation::Frame(_)));
}

#[test]
fn frames_of_other_connections_are_its_fault() {
    for kind in [Kind::Data, Kind::Request, Kind::Ping, Kind::FlowOpened] {
        let guest = guest();
        guest.raw(&frame::encode(kind, 0, 1, 0, &[]).unwrap());
        let violation = is_at_fault(guest);
        assert!(
            matches!(violation, Violation::Flow(FlowViolation::Misplaced(found)) if found == kind),
            "{violation}"
        );
    }
}

#[test]
fn a_frame_that_is_cut_off_by_the_end_is_its_fault() {
    let guest = guest();
    let frame = frame::encode(Kind::FlowReset, 0, 1, 0, &[]).unwrap();
    guest.raw(&frame[..20]);
    guest.close();
    assert!(matches!(is_at_fault(guest), Violation::Cut));
}

#[test]
fn more_than_the_window_is_its_fault() {
    let mut guest = guest();
    let flow = guest.connect(Protocol::Tcp, local(silent()));
    let piece = vec![1; 64 << 10];
    let mut offset = 0;
    // Far more than any window and any buffer of the kernel.
    for _ in 0..1024 {
        guest.raw(&frame::encode(Kind::FlowData, 0, flow, offset, &piece).unwrap());
        offset += piece.len() as u64;
    }
    let violation = is_at_fault(guest);
    assert!(
        matches!(violation, Violation::Flow(FlowViolation::Overrun { .. })),
        "{violation}"
    );
}

#[test]
fn a_flood_of_flows_is_its_fault() {
    // Its queue is soon full, and then no connection to it is established.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target {
        protocol: Protocol::Tcp,
        address: wire::flow::GATEWAYS.0.into(),
        port: full.local_addr().unwrap().port(),
    };
    let guest = guest();
    for flow in 1..=MAX_FLOWS as u64 + 1 {
        guest.raw(&message::encode(flow, &FlowOpen { target, window: 0 }).unwrap());
    }
    let (records, ended) = guest.ended();
    assert!(
        matches!(
            ended,
            Err(ServeError::Guest(Violation::Flow(FlowViolation::TooMany)))
        ),
        "{ended:?}"
    );
    assert!(records.connections.len() <= MAX_FLOWS);
}

#[test]
fn a_guest_that_opens_and_gives_up_for_ever_keeps_the_host_within_bounds() {
    let to = local(silent());
    let mut guest = guest();
    for _ in 0..20_000 {
        let flow = guest.open(Protocol::Tcp, to);
        guest.reset(flow);
        while guest.table.len() > 1000 {
            guest.step();
        }
    }
    let records = guest.finish();
    let all = records.connections.len() as u64 + records.left_out;
    // Those that it gave up at once were never looked at.
    assert!(all <= 20_000, "{all}");
}

#[test]
fn a_guest_that_never_reads_is_at_fault_before_it_costs_much() {
    let guest = guest();
    let target = Target {
        protocol: Protocol::Tcp,
        address: wire::flow::NAMESERVERS.0.into(),
        port: 80,
    };
    // Each is refused at once, and the refusals pile up.
    let mut flow = 0;
    while !guest.is_over() {
        flow += 1;
        guest.raw(&message::encode(flow, &FlowOpen { target, window: 0 }).unwrap());
    }
    let violation = is_at_fault(guest);
    let too_much = Violation::Flow(FlowViolation::TooMany).to_string();
    assert!(
        matches!(violation, Violation::Deaf) || violation.to_string() == too_much,
        "{violation}"
    );
}
