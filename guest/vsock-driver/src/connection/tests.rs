use proptest::prelude::*;
use virtio_vsock::CreditError;

use super::*;
use crate::slots::{COPYBREAK, Slots};

/// Slots of two copybreaks, so that some payloads are copied and some are held.
const SLOT: usize = 2 * COPYBREAK;

type Buffer = Vec<u8>;

/// One side of a connection, with its application.
struct Side {
    connection: Connection<Buffer>,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// Pieces that the application holds: bytes, and whether they are in a slot.
    held: Vec<(usize, bool)>,
}

fn grant(slots: usize) -> Grant {
    Slots::new(1000, u32::try_from(SLOT).unwrap(), slots).grant()
}

const HERE: Address = Address {
    own_port: 1,
    peer_port: 2,
};
const THERE: Address = Address {
    own_port: 2,
    peer_port: 1,
};

impl Side {
    fn new(connection: Connection<Buffer>) -> Self {
        Self {
            connection,
            sent: Vec::new(),
            received: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Two sides of an open connection.
    fn pair(slots: [usize; 2]) -> [Self; 2] {
        let [ours, theirs] = slots.map(grant);
        let mut here = Self::new(Connection::to_peer(HERE, 3, ours));
        let request = here.connection.poll_packet().unwrap().header;
        assert_eq!(Op::from_wire(request.op), Some(Op::Request));
        let there = Connection::from_peer(THERE, 2, theirs, &request);
        let mut pair = [here, Self::new(there)];
        settle(&mut pair);
        assert_eq!(pair[0].connection.is_requesting(), Ok(false));
        pair
    }

    /// Two sides that have sent this many bytes already.
    fn pair_after(slots: [usize; 2], count: u32) -> [Self; 2] {
        let mut pair = Self::pair(slots);
        let sizes = [0, 1].map(|n: usize| pair[n].connection.grant.bytes());
        for (side, [own, peer]) in pair.iter_mut().zip([sizes, [sizes[1], sizes[0]]]) {
            side.connection.tx = TxCredit::starting_at(count, peer);
            side.connection.rx = RxCredit::starting_at(count, own);
        }
        pair
    }

    /// Delivers one packet, if there is one.
    fn transmit(&mut self, to: &mut Self) -> bool {
        let expected = self.connection.has_packet();
        let packet = self.connection.poll_packet();
        assert_eq!(packet.is_some(), expected);
        let Some(Outgoing { header, payload }) = packet else {
            return false;
        };
        let op = Op::from_wire(header.op).unwrap();
        let buffer = payload.unwrap_or_default();
        let (back, heard) = to.connection.handle_packet(op, &header, buffer);
        assert_eq!(heard, Ok(()));
        assert!(back.is_some() || header.len as usize > COPYBREAK);
        true
    }

    fn send(&mut self, want: usize) -> usize {
        let want = u32::try_from(want.min(SLOT)).unwrap();
        let Ok(len) = self.connection.begin_send(want) else {
            return 0;
        };
        if len == 0 {
            return 0;
        }
        let from = self.sent.len();
        let bytes: Vec<u8> = (from..from + len as usize)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        self.sent.extend(&bytes);
        let mut buffer = bytes;
        buffer.resize(SLOT, 0);
        self.connection.send(buffer, len, 0).1.unwrap();
        len as usize
    }

    fn read(&mut self) -> bool {
        match self.connection.receive() {
            Ok(Received::Piece(piece)) => {
                self.received.extend(piece.bytes());
                let (len, buffer) = piece.into_parts();
                self.held.push((len, buffer.is_some()));
                true
            }
            Ok(Received::Nothing | Received::End) | Err(_) => false,
        }
    }

    fn drop_pieces(&mut self) {
        for (len, was_slot) in self.held.drain(..) {
            self.connection.consumed(len, was_slot);
        }
    }
}

/// Delivers packets until there are none.
fn settle(sides: &mut [Side; 2]) {
    for _ in 0..10_000 {
        let [here, there] = sides;
        if !(here.transmit(there) | there.transmit(here)) {
            return;
        }
    }
    panic!("packets never end");
}

fn header(op: Op, len: u32) -> Header {
    Header {
        op: op.to_wire(),
        len,
        buf_alloc: 1000,
        ..Header::default()
    }
}

#[test]
fn a_refused_connection_fails() {
    let mut connection = Connection::<Buffer>::to_peer(HERE, 3, grant(4));
    let request = connection.poll_packet().unwrap().header;
    assert_eq!((request.src_cid, request.dst_cid), (3, 2));
    assert_eq!((request.src_port, request.dst_port), (1, 2));
    assert_eq!(connection.is_requesting(), Ok(true));
    let reset = header(Op::Reset, 0);
    let (back, heard) = connection.handle_packet(Op::Reset, &reset, Vec::new());
    assert!(back.is_some() && heard.is_ok());
    assert_eq!(connection.is_requesting(), Err(Cause::Refused));
    assert!(connection.is_idle() && connection.poll_packet().is_none());
}

#[test]
fn each_direction_is_shut_down_on_its_own() {
    let mut sides = Side::pair([4, 4]);
    sides[0].send(100);
    sides[0].connection.finish_sending().unwrap();
    settle(&mut sides);
    assert_eq!(sides[0].connection.begin_send(1), Err(Cause::Finished));
    assert!(sides[1].read());
    assert!(matches!(sides[1].connection.receive(), Ok(Received::End)));
    sides[1].send(50);
    settle(&mut sides);
    assert!(sides[0].read());
    assert_eq!(sides[0].received, sides[1].sent);
    sides[0].connection.hang_up();
    sides[1].connection.hang_up();
    settle(&mut sides);
    assert!(sides.iter().all(|side| side.connection.is_over()));
}

#[test]
fn a_shutdown_waits_for_a_packet_that_is_being_filled() {
    let mut sides = Side::pair([4, 4]);
    let len = sides[0].connection.begin_send(10).unwrap();
    sides[0].connection.finish_sending().unwrap();
    assert!(!sides[0].connection.has_packet());
    let (back, sent) = sides[0].connection.send(vec![1; SLOT], len, 0);
    assert_eq!((back, sent), (None, Ok(())));
    settle(&mut sides);
    assert!(sides[1].read());
    assert_eq!(sides[1].received, [1; 10]);
}

#[test]
fn buffers_that_are_queued_when_the_peer_resets_are_returned() {
    let mut sides = Side::pair([4, 4]);
    sides[0].send(SLOT);
    sides[1].connection.reset();
    assert!(sides[0].connection.take_unsent().is_empty());
    let [here, there] = &mut sides;
    assert!(there.transmit(here));
    assert_eq!(here.connection.take_unsent().len(), 1);
    assert_eq!(here.connection.begin_send(1), Err(Cause::ResetByPeer));
    let (late, sent) = here.connection.send(vec![0; SLOT], 1, 0);
    assert_eq!((late.is_some(), sent), (true, Err(Cause::ResetByPeer)));
}

#[test]
fn more_slots_than_granted_are_never_held() {
    let mut sides = Side::pair([4, 2]);
    // Payloads above the copybreak, and many of them in the window.
    while sides[0].send(COPYBREAK + 1) > 0 {
        settle(&mut sides);
        assert!(sides[1].connection.grant().held() <= 2);
    }
    while sides[1].read() {}
    assert_eq!(sides[1].received, sides[0].sent);
}

#[test]
fn data_arrives_while_the_credit_counters_wrap() {
    let mut sides = Side::pair_after([4, 4], u32::MAX - 5 * 1000);
    for _ in 0..1000 {
        assert_eq!(sides[0].send(1000), 1000);
        settle(&mut sides);
        assert!(sides[1].read());
        sides[1].drop_pieces();
        settle(&mut sides);
    }
    assert_eq!(sides[1].received, sides[0].sent);
}

#[test]
fn a_reader_that_holds_everything_stops_the_peer_until_it_drops_something() {
    let mut sides = Side::pair([4, 2]);
    while sides[0].send(SLOT) > 0 {
        settle(&mut sides);
        while sides[1].read() {}
    }
    assert_eq!(sides[0].sent.len(), 2 * SLOT);
    sides[1].drop_pieces();
    settle(&mut sides);
    assert_eq!(sides[0].send(SLOT), SLOT);
}

#[test]
fn violations_close_the_connection() {
    for (packet, violation) in [
        (header(Op::Request, 0), Violation::UnexpectedOperation),
        (header(Op::Response, 0), Violation::UnexpectedOperation),
        (header(Op::Data, u32::MAX), CreditError::Overrun.into()),
        (
            Header {
                fwd_cnt: 1,
                ..header(Op::CreditUpdate, 0)
            },
            CreditError::ForwardedUnsent.into(),
        ),
    ] {
        let [mut side, _] = Side::pair([4, 4]);
        let op = Op::from_wire(packet.op).unwrap();
        let (back, heard) = side.connection.handle_packet(op, &packet, vec![0; 10]);
        assert_eq!((back.is_some(), heard), (true, Err(violation)));
        let cause = Cause::Violation(violation);
        assert_eq!(side.connection.may_send(), Err(cause));
        let reset = side.connection.poll_packet().unwrap();
        assert_eq!(Op::from_wire(reset.header.op), Some(Op::Reset));
        assert!(side.connection.is_over());
    }
}

#[test]
fn data_after_the_end_is_a_violation() {
    let mut sides = Side::pair([4, 4]);
    sides[1].connection.finish_sending().unwrap();
    settle(&mut sides);
    let (_, heard) = sides[0]
        .connection
        .handle_packet(Op::Data, &header(Op::Data, 1), vec![0; 10]);
    assert_eq!(heard, Err(Violation::DataAfterShutdown));
}

#[test]
fn a_credit_request_is_answered() {
    let [mut side, _] = Side::pair([4, 4]);
    let request = header(Op::CreditRequest, 0);
    let (_, heard) = side
        .connection
        .handle_packet(Op::CreditRequest, &request, Vec::new());
    assert_eq!(heard, Ok(()));
    let answer = side.connection.poll_packet().unwrap().header;
    assert_eq!(Op::from_wire(answer.op), Some(Op::CreditUpdate));
    assert_eq!(answer.buf_alloc as usize, 4 * SLOT);
}

#[test]
fn a_credit_request_is_answered_before_data() {
    let [mut side, _] = Side::pair([4, 4]);
    assert_eq!(side.connection.begin_send(10), Ok(10));
    let (_, sent) = side.connection.send(vec![0; 10], 10, 0);
    assert_eq!(sent, Ok(()));
    let request = Header {
        buf_alloc: 100,
        ..header(Op::CreditRequest, 0)
    };
    let (_, heard) = side
        .connection
        .handle_packet(Op::CreditRequest, &request, Vec::new());
    assert_eq!(heard, Ok(()));
    let ops = [(); 2].map(|()| side.connection.poll_packet().unwrap().header.op);
    let ops = ops.map(Op::from_wire);
    assert_eq!(ops, [Some(Op::CreditUpdate), Some(Op::Data)]);
}

proptest! {
    /// Two sides that do anything in any order: what arrives is what was sent, no buffer is lost,
    /// and in the end everything arrives. The counters may wrap meanwhile.
    #[test]
    fn streams_arrive_whole_and_in_order(
        slots in [1usize..5, 1usize..5],
        count in prop_oneof![Just(0), u32::MAX - 200_000..=u32::MAX],
        steps in prop::collection::vec((0usize..2, 0u8..5, 1usize..SLOT + 1), 1..200),
    ) {
        let mut sides = Side::pair_after(slots, count);
        for (side, step, n) in steps {
            let [a, b] = &mut sides;
            let (me, you) = if side == 0 { (a, b) } else { (b, a) };
            match step {
                0 | 1 => { me.send(n); }
                2 => { me.transmit(you); }
                3 => { me.read(); }
                _ => me.drop_pieces(),
            }
        }
        for side in &mut sides {
            side.connection.finish_sending().unwrap();
        }
        for _ in 0..50 {
            settle(&mut sides);
            for side in &mut sides {
                while side.read() {}
                side.drop_pieces();
            }
        }
        let [here, there] = &mut sides;
        prop_assert_eq!(&here.sent, &there.received);
        prop_assert_eq!(&there.sent, &here.received);
        prop_assert!(matches!(here.connection.receive(), Ok(Received::End)));
        prop_assert_eq!(here.connection.grant().held() + there.connection.grant().held(), 0);
    }

    /// Whatever the peer says, nothing panics, and every buffer is kept or returned.
    #[test]
    fn any_packet_is_handled(
        packets in prop::collection::vec(
            (1u16..8, prop_oneof![Just(0u32), 1u32..20_000, any::<u32>()], any::<u32>(), 0u32..3, 0u32..4),
            0..60,
        ),
    ) {
        let mut connection = Connection::<Buffer>::to_peer(HERE, 3, grant(2));
        for (op, len, buf_alloc, fwd_cnt, flags) in packets {
            let header = Header { op, len, buf_alloc, fwd_cnt, flags, ..Header::default() };
            let buffer = vec![0; SLOT];
            let kept = connection.grant().held();
            let (back, _heard) = connection.handle_packet(Op::from_wire(op).unwrap(), &header, buffer);
            prop_assert_eq!(connection.grant().held() - kept, usize::from(back.is_none()));
            if flags == 1 {
                let _packet = connection.poll_packet();
            }
        }
        while connection.poll_packet().is_some() {}
    }
}
