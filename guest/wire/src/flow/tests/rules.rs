//! A peer that breaks a rule is told which, and no bytes make a table panic.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::flow::{
    FlowEvent, FlowOpen, FlowOpened, FlowRefused, FlowTable, FlowViolation, MAX_FLOW_WINDOW,
    MAX_FLOWS, Protocol, Refusal, Target,
};
use crate::frame::{self, Frame, Kind};
use crate::message;

const BUDGET: u64 = 64 << 20;

const TARGET: Target = Target {
    protocol: Protocol::Tcp,
    address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    port: 443,
};

fn handle(table: &mut FlowTable, bytes: &[u8]) -> Result<(), FlowViolation> {
    let (frame, _) = frame::decode(bytes).unwrap().unwrap();
    table.handle(&frame).map(drop)
}

fn short(kind: Kind, flow: u64, offset: u64) -> Vec<u8> {
    frame::encode(kind, 0, flow, offset, &[]).unwrap()
}

fn data(flow: u64, offset: u64, body: &[u8]) -> Vec<u8> {
    frame::encode(Kind::FlowData, 0, flow, offset, body).unwrap()
}

fn open(flow: u64, window: u32) -> Vec<u8> {
    let target = TARGET;
    message::encode(flow, &FlowOpen { target, window }).unwrap()
}

/// A host with flow 1, which is open, and flow 2, which is not yet.
fn host() -> FlowTable {
    let mut host = FlowTable::host(BUDGET);
    handle(&mut host, &open(1, 100)).unwrap();
    host.accept(1).unwrap();
    handle(&mut host, &open(2, 100)).unwrap();
    host
}

#[track_caller]
fn check(bytes: &[u8], want: FlowViolation) {
    assert_eq!(handle(&mut host(), bytes), Err(want));
}

#[test]
fn each_broken_rule_has_a_name() {
    let (kind, flow) = (Kind::FlowData, 1);
    check(&data(3, 0, b"x"), FlowViolation::Unknown { kind, flow: 3 });
    check(
        &data(2, 0, b"x"),
        FlowViolation::OutOfOrder { kind, flow: 2 },
    );
    let (want, got) = (0, 1);
    check(&data(1, 1, b"x"), FlowViolation::Gap { flow, want, got });
    check(&short(kind, 1, 0), FlowViolation::Empty(1));
    check(&open(2, 1), FlowViolation::Reused { flow: 2, last: 2 });
    let kind = Kind::FlowEnd;
    check(&short(kind, 1, 1), FlowViolation::Gap { flow, want, got });
    check(
        &short(kind, 2, 0),
        FlowViolation::OutOfOrder { kind, flow: 2 },
    );
    check(&short(kind, 3, 0), FlowViolation::Unknown { kind, flow: 3 });
    for credit in [0, u64::MAX, (MAX_FLOW_WINDOW - 99).into()] {
        let want = FlowViolation::BadCredit { flow, credit };
        check(&short(Kind::FlowCredit, 1, credit), want);
    }
    let kind = Kind::FlowReset;
    check(&short(kind, 3, 0), FlowViolation::Unknown { kind, flow: 3 });
    check(&short(kind, 0, 0), FlowViolation::Unknown { kind, flow: 0 });
    let opened = message::encode(2, &FlowOpened { window: 1 }).unwrap();
    check(&opened, FlowViolation::Misplaced(Kind::FlowOpened));
    check(
        &short(Kind::Ping, 1, 0),
        FlowViolation::Misplaced(Kind::Ping),
    );
}

#[test]
fn one_byte_above_the_window_is_an_overrun() {
    let mut host = host();
    let piece = vec![0; 64 << 10];
    let mut offset = 0;
    while offset < u64::from(MAX_FLOW_WINDOW) {
        handle(&mut host, &data(1, offset, &piece)).unwrap();
        offset += piece.len() as u64;
    }
    let (flow, cost, window) = (1, 1, 0);
    let want = FlowViolation::Overrun { flow, cost, window };
    assert_eq!(handle(&mut host, &data(1, offset, b"x")), Err(want));
}

#[test]
fn an_end_is_final_and_late_words_are_not_a_violation() {
    let mut host = host();
    handle(&mut host, &short(Kind::FlowEnd, 1, 0)).unwrap();
    let after = FlowViolation::OutOfOrder {
        kind: Kind::FlowData,
        flow: 1,
    };
    assert_eq!(handle(&mut host, &data(1, 0, b"x")), Err(after));
    assert!(host.end(1).is_some());
    assert!(!host.contains(1));
    for kind in [Kind::FlowCredit, Kind::FlowReset] {
        assert_eq!(handle(&mut host, &short(kind, 1, 5)), Ok(()));
    }
}

#[test]
fn a_flow_that_was_reset_swallows_what_was_on_its_way() {
    let mut host = host();
    assert!(host.reset(1).is_some());
    assert_eq!(host.reset(1), None);
    let late = data(1, 0, b"x");
    let (frame, _) = frame::decode(&late).unwrap().unwrap();
    assert_eq!(host.handle(&frame), Ok(FlowEvent::Late));
    assert_eq!(host.len(), 2, "until the guest has answered");
    handle(&mut host, &short(Kind::FlowReset, 1, 0)).unwrap();
    assert_eq!(host.len(), 1);
    let again = FlowViolation::Unknown {
        kind: Kind::FlowData,
        flow: 1,
    };
    assert_eq!(handle(&mut host, &late), Err(again));
}

#[test]
fn neither_end_exceeds_the_number_of_flows() {
    let mut guest = FlowTable::guest(BUDGET);
    let mut host = FlowTable::host(BUDGET);
    for _ in 0..MAX_FLOWS {
        let (_, frame) = guest.open(TARGET).unwrap();
        handle(&mut host, &frame).unwrap();
    }
    assert!(guest.open(TARGET).is_err());
    let next = open(MAX_FLOWS as u64 + 1, 1);
    assert_eq!(handle(&mut host, &next), Err(FlowViolation::TooMany));
}

#[test]
fn the_bytes_of_flow_messages_are_pinned() {
    let golden: [(Vec<u8>, &[u8]); 3] = [
        (open(1, 300), &[0, 0, 192, 0, 2, 1, 0xbb, 3, 0xac, 2]),
        (
            message::encode(1, &FlowOpened { window: 300 }).unwrap(),
            &[0xac, 2],
        ),
        (
            message::encode(
                1,
                &FlowRefused {
                    refusal: Refusal::TimedOut,
                },
            )
            .unwrap(),
            &[3],
        ),
    ];
    for (bytes, golden) in golden {
        let (frame, _) = frame::decode(&bytes).unwrap().unwrap();
        assert_eq!(frame.body, golden, "the bytes changed: raise PROTOCOL");
    }
    let too_large = FlowOpened {
        window: MAX_FLOW_WINDOW + 1,
    };
    assert!(message::encode(1, &too_large).is_err());
}

/// Frames that mean something now and then.
fn frames() -> impl Strategy<Value = Vec<(u8, u64, u64, Vec<u8>)>> {
    let body = prop_oneof![
        Just(Vec::new()),
        Just(vec![0, 0, 192, 0, 2, 1, 80, 100]),
        Just(vec![1, 0, 192, 0, 2, 1, 80, 100]),
        vec(any::<u8>(), 0..40),
    ];
    let offset = prop_oneof![Just(0), 0..50_u64, any::<u64>()];
    vec((10..17_u8, 0..5_u64, offset, body), 0..40)
}

proptest! {
    #[test]
    fn no_frames_make_a_table_panic(frames in frames(), accept in any::<bool>()) {
        let (mut guest, mut host) = (FlowTable::guest(BUDGET), FlowTable::host(BUDGET));
        guest.open(TARGET).unwrap();
        guest.open(Target { protocol: Protocol::Udp, ..TARGET }).unwrap();
        for (kind, id, offset, body) in &frames {
            let kind = Kind::try_from(*kind).unwrap();
            let frame = Frame { kind, flags: 0, id: *id, offset: *offset, body, check: 0 };
            let _good_or_bad = guest.handle(&frame).is_ok();
            if let Ok(FlowEvent::Open { flow, .. }) = host.handle(&frame)
                && accept
            {
                host.accept(flow).unwrap();
            }
            let _credit = host.consumed(*id, body.len());
        }
        prop_assert!(host.len() <= 5);
    }
}
