use proptest::prelude::*;

use super::*;
use crate::slots::COPYBREAK;

const CID: u64 = 3;
const SLOT: usize = 16 * 1024;
const SLOTS: usize = 16;

/// The length of a piece that was read, and its slot if it is not a copy.
type Read = (usize, Option<Vec<u8>>);

/// A multiplexer, and a device that has all slots which no connection holds.
struct Harness {
    mux: Mux<Vec<u8>>,
    posted: usize,
    out: Vec<Header>,
}

impl Harness {
    fn new(max_connections: usize) -> Self {
        let slots = Slots::new(SLOTS, u32::try_from(SLOT).unwrap(), 4);
        Self {
            mux: Mux::new(CID, slots, max_connections),
            posted: SLOTS,
            out: Vec::new(),
        }
    }

    fn settle(&mut self) {
        while self.mux.take_received().is_some() {
            self.posted += 1;
        }
        while let Some(packet) = self.mux.poll_packet() {
            self.out.push(packet.header);
        }
        while self.mux.take_event().is_some() {}
    }

    /// A packet from the host.
    fn receive(&mut self, op: Op, own_port: u32, peer_port: u32, len: usize) {
        assert!(self.posted > 0, "the ring is empty");
        self.posted -= 1;
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: CID,
            src_port: peer_port,
            dst_port: own_port,
            len: u32::try_from(len).unwrap(),
            kind: TYPE_STREAM,
            op: op.to_wire(),
            buf_alloc: 1 << 20,
            ..Header::default()
        };
        self.mux.handle_packet(&header, vec![7; SLOT]);
        self.settle();
    }

    /// A connection that the host has made to port 1.
    fn accepted(&mut self, peer_port: u32) -> Id {
        self.receive(Op::Request, 1, peer_port, 0);
        self.mux.accept(1).unwrap().unwrap()
    }

    fn last(&self) -> (Op, u32, u32) {
        let header = self.out.last().unwrap();
        let op = Op::from_wire(header.op).unwrap();
        (op, header.src_port, header.dst_port)
    }

    /// Reads everything that has arrived, and keeps the slots.
    fn read(&mut self, id: Id) -> (usize, Vec<Read>) {
        let mut pieces = Vec::new();
        while let Ok(Received::Piece(piece)) = self.mux.receive(id) {
            pieces.push(piece.into_parts());
        }
        (pieces.iter().map(|(len, _)| len).sum(), pieces)
    }
}

#[test]
fn a_port_without_a_listener_refuses() {
    let mut harness = Harness::new(8);
    harness.receive(Op::Request, 1, 50, 0);
    assert_eq!(harness.last(), (Op::Reset, 1, 50));
    harness.receive(Op::Reset, 1, 50, 0);
    assert_eq!(harness.out.len(), 1, "a reset is not answered");
    assert_eq!(harness.posted, SLOTS);
}

#[test]
fn packets_for_others_are_not_answered() {
    let mut harness = Harness::new(8);
    let header = Header {
        src_cid: HOST_CID,
        dst_cid: CID + 1,
        kind: TYPE_STREAM,
        op: Op::Request.to_wire(),
        ..Header::default()
    };
    harness.posted -= 1;
    harness.mux.handle_packet(&header, Vec::new());
    harness.settle();
    assert!(harness.out.is_empty());
    assert_eq!(harness.mux.counters.packets_refused, 1);
}

#[test]
fn many_tiny_packets_never_exhaust_the_slots() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    let [held, tiny, middling] = [50, 51, 52].map(|port| harness.accepted(port));
    for _ in 0..3 {
        harness.receive(Op::Data, 1, 50, SLOT);
    }
    let (_, chunks) = harness.read(held);
    for _ in 0..16_000 {
        harness.receive(Op::Data, 1, 51, 1);
    }
    // Just above the copybreak: the share of slots is soon used up, the byte credit is not.
    let mut sent = 0;
    while sent + COPYBREAK < 2 * SLOT {
        harness.receive(Op::Data, 1, 52, COPYBREAK + 1);
        sent += COPYBREAK + 1;
        assert!(harness.posted >= 2);
    }
    assert_eq!(harness.read(tiny).0, 16_000);
    assert_eq!(harness.read(middling).0, sent);
    for (len, slot) in chunks {
        harness.mux.consumed(held, len, slot);
    }
    harness.settle();
    assert_eq!(harness.last().0, Op::CreditUpdate);
}

#[test]
fn a_host_that_ignores_credit_loses_its_connection_and_no_slot() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    let id = harness.accepted(50);
    for _ in 0..1000 {
        harness.receive(Op::Data, 1, 50, SLOT);
    }
    assert!(harness.mux.may_send(id).is_err());
    harness.mux.hang_up(id);
    harness.settle();
    assert_eq!(harness.posted, SLOTS);
}

#[test]
fn a_connection_is_removed_when_its_last_slot_is_returned() {
    let mut harness = Harness::new(1);
    assert!(harness.mux.listen(1).unwrap());
    let id = harness.accepted(50);
    harness.receive(Op::Data, 1, 50, SLOT);
    let (_, chunks) = harness.read(id);
    harness.mux.hang_up(id);
    harness.settle();
    assert_eq!(harness.last(), (Op::Shutdown, 1, 50));
    harness.receive(Op::Reset, 1, 50, 0);
    assert_eq!(harness.mux.connect(9), Ok(None), "it still counts");
    for (len, slot) in chunks {
        harness.mux.consumed(id, len, slot);
    }
    harness.settle();
    assert!(harness.mux.connect(9).unwrap().is_some());
    assert_eq!(harness.posted, SLOTS);
}

#[test]
fn a_closing_connection_is_evicted_for_a_new_one() {
    let mut harness = Harness::new(1);
    assert!(harness.mux.listen(1).unwrap());
    let id = harness.accepted(50);
    harness.mux.hang_up(id);
    harness.settle();
    // The host has not answered the shutdown.
    let next = harness.accepted(51);
    assert_eq!(harness.last(), (Op::Response, 1, 51));
    harness.mux.hang_up(next);
    harness.settle();
    // It may also use the same ports again.
    harness.accepted(51);
    assert_eq!(harness.last(), (Op::Response, 1, 51));
}

#[test]
fn an_old_handle_does_not_reach_a_new_connection_with_its_address() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    let old = harness.accepted(50);
    harness.receive(Op::Reset, 1, 50, 0);
    let new = harness.accepted(50);
    assert_ne!(old, new);
    harness.mux.reset(old);
    harness.mux.hang_up(old);
    harness.settle();
    assert_eq!(harness.mux.may_send(new), Ok(()));
    assert_eq!(harness.mux.may_send(old), Err(Cause::Finished));
}

#[test]
fn connections_take_turns() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    let ids = [50, 51].map(|port| harness.accepted(port));
    harness.out.clear();
    for id in ids {
        for _ in 0..3 {
            let len = harness.mux.begin_send(id, 100).unwrap();
            harness.mux.send(id, vec![0; 100], len, 0).unwrap();
        }
    }
    harness.settle();
    let ports: Vec<u32> = harness.out.iter().map(|header| header.dst_port).collect();
    assert_eq!(ports, [50, 51, 50, 51, 50, 51]);
}

#[test]
fn a_full_backlog_refuses() {
    let mut harness = Harness::new(1000);
    assert!(harness.mux.listen(1).unwrap());
    (0..128).for_each(|port| harness.receive(Op::Request, 1, port, 0));
    assert_eq!(harness.last().0, Op::Response);
    harness.receive(Op::Request, 1, 128, 0);
    assert_eq!(harness.last(), (Op::Reset, 1, 128));
    harness.mux.unlisten(1);
    harness.settle();
    assert_eq!(harness.last().0, Op::Shutdown);
    assert_eq!(harness.mux.accept(1), Ok(None));
}

#[test]
fn everything_fails_when_the_device_is_gone() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    let id = harness.accepted(50);
    harness.mux.end();
    assert_eq!(harness.mux.may_send(id), Err(Cause::DeviceGone));
    assert!(matches!(harness.mux.receive(id), Err(Cause::DeviceGone)));
    assert_eq!(harness.mux.accept(1), Err(Cause::DeviceGone));
    assert_eq!(harness.mux.connect(1), Err(Cause::DeviceGone));
    assert_eq!(harness.mux.listen(2), Err(Cause::DeviceGone));
    assert!(harness.mux.poll_packet().is_none());
}

/// Something that the host or the application does.
#[derive(Debug, Clone)]
enum Step {
    Packet(u16, u32, u32, usize, u32),
    Connect,
    Accept,
    Send(prop::sample::Index, u32),
    Receive(prop::sample::Index),
    GiveBack(prop::sample::Index),
    Reset(prop::sample::Index),
    Finish(prop::sample::Index),
    HangUp(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let which = || any::<prop::sample::Index>();
    let own_port = prop_oneof![Just(1u32), 0x4000_0000u32..0x4000_0004];
    prop_oneof![
        8 => (1u16..8, own_port, 9u32..12, 0..=SLOT, any::<u32>())
            .prop_map(|(op, own, peer, len, credit)| Step::Packet(op, own, peer, len, credit)),
        1 => Just(Step::Connect),
        2 => Just(Step::Accept),
        2 => (which(), 0..u32::try_from(SLOT).unwrap()).prop_map(|(at, len)| Step::Send(at, len)),
        4 => which().prop_map(Step::Receive),
        2 => which().prop_map(Step::GiveBack),
        1 => which().prop_map(Step::Reset),
        1 => which().prop_map(Step::Finish),
        1 => which().prop_map(Step::HangUp),
    ]
}

impl Harness {
    fn take(&mut self, step: Step, ids: &mut Vec<Id>, held: &mut Vec<(Id, Read)>) {
        match step {
            Step::Packet(op, own_port, peer_port, len, buf_alloc) => {
                assert!(self.posted >= 2, "the reserve is touched");
                self.posted -= 1;
                let header = Header {
                    src_cid: HOST_CID,
                    dst_cid: CID,
                    src_port: peer_port,
                    dst_port: own_port,
                    len: u32::try_from(len).unwrap(),
                    kind: TYPE_STREAM,
                    op,
                    flags: buf_alloc % 4,
                    buf_alloc,
                    fwd_cnt: 0,
                };
                self.mux.handle_packet(&header, vec![0; SLOT]);
            }
            Step::Connect => ids.extend(self.mux.connect(9).unwrap()),
            Step::Accept => ids.extend(self.mux.accept(1).unwrap()),
            Step::GiveBack(at) if !held.is_empty() => {
                let (id, (len, slot)) = held.swap_remove(at.index(held.len()));
                self.mux.consumed(id, len, slot);
            }
            Step::Send(at, want) if !ids.is_empty() => {
                let id = ids[at.index(ids.len())];
                if let Ok(len @ 1..) = self.mux.begin_send(id, want) {
                    let _late = self.mux.send(id, Vec::new(), len / 2, len - len / 2);
                }
            }
            Step::Receive(at) if !ids.is_empty() => {
                let id = ids[at.index(ids.len())];
                let (_, pieces) = self.read(id);
                held.extend(pieces.into_iter().map(|piece| (id, piece)));
            }
            Step::Reset(at) if !ids.is_empty() => self.mux.reset(ids[at.index(ids.len())]),
            Step::Finish(at) if !ids.is_empty() => {
                let _ended = self.mux.finish_sending(ids[at.index(ids.len())]);
            }
            Step::HangUp(at) if !ids.is_empty() => {
                self.mux.hang_up(ids.swap_remove(at.index(ids.len())));
            }
            Step::GiveBack(_)
            | Step::Send(..)
            | Step::Receive(_)
            | Step::Reset(_)
            | Step::Finish(_)
            | Step::HangUp(_) => {}
        }
        self.settle();
        while self.mux.take_unsent().is_some() {}
    }
}

proptest! {
    /// Whatever host and application do: nothing panics, the reserve stays with the device, and in
    /// the end every slot and every grant is back.
    #[test]
    fn no_slot_is_ever_lost(steps in prop::collection::vec(step(), 1..150)) {
        let mut harness = Harness::new(12);
        prop_assert!(harness.mux.listen(1).unwrap());
        let (mut ids, mut held) = (Vec::new(), Vec::new());
        for step in steps {
            harness.take(step, &mut ids, &mut held);
        }
        harness.mux.unlisten(1);
        ids.into_iter().for_each(|id| harness.mux.hang_up(id));
        for (id, (len, slot)) in held {
            harness.mux.consumed(id, len, slot);
        }
        harness.mux.end();
        harness.settle();
        prop_assert_eq!(harness.posted, SLOTS);
        prop_assert!(harness.mux.table.ids().is_empty());
        prop_assert_eq!(harness.mux.slots.grant().bytes(), 3 * u32::try_from(SLOT).unwrap());
    }
}

/// With a host that accepts no packets, only connections that exist are queued.
#[test]
fn connections_that_come_and_go_leave_nothing_queued() {
    let mut harness = Harness::new(8);
    assert!(harness.mux.listen(1).unwrap());
    for port in 0..1000 {
        for op in [Op::Request, Op::Reset] {
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: CID,
                src_port: port,
                dst_port: 1,
                kind: TYPE_STREAM,
                op: op.to_wire(),
                ..Header::default()
            };
            harness.mux.handle_packet(&header, Vec::new());
        }
        let id = harness.mux.accept(1).unwrap().unwrap();
        harness.mux.hang_up(id);
        while harness.mux.take_received().is_some() {}
    }
    assert!(harness.mux.ready.len() <= 8, "{}", harness.mux.ready.len());
}
