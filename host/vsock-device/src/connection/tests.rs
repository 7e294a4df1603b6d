//! Two connections, over two queues of packets.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const ADDRESS: Address = Address {
    guest_cid: 3,
    guest_port: 1000,
    host_port: 2000,
};

/// One side, with what its application has sent and received so far.
struct Side {
    connection: Connection,
    /// Packets on their way to this side.
    incoming: VecDeque<(Header, Vec<u8>)>,
    sent: usize,
    received: usize,
    reached_end: bool,
    most_buffered: usize,
}

/// Byte `i` of a stream.
fn nth(i: usize) -> u8 {
    u8::try_from(i % 251).unwrap()
}

impl Side {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            incoming: VecDeque::new(),
            sent: 0,
            received: 0,
            reached_end: false,
            most_buffered: 0,
        }
    }

    fn send(&mut self, n: usize) {
        if self.connection.may_send().is_ok() {
            let data: Vec<u8> = (self.sent..self.sent + n).map(nth).collect();
            self.connection.send(data.into());
            self.sent += n;
        }
    }

    fn read(&mut self, n: usize) -> Result<(), Cause> {
        let mut data = vec![0; n];
        match self.connection.receive(&mut data)? {
            Some(0) if n > 0 => self.reached_end = true,
            Some(got) => {
                assert!(
                    data[..got]
                        .iter()
                        .zip(self.received..)
                        .all(|(&b, i)| b == nth(i))
                );
                self.received += got;
            }
            None => {}
        }
        Ok(())
    }

    /// Sends one packet. Returns whether there was one.
    fn transmit(&mut self, capacity: u32, to: &mut Self) -> bool {
        let mut payload = Vec::new();
        let Some(header) = self.connection.poll_packet(capacity, &mut payload) else {
            return false;
        };
        let payload = payload.concat();
        assert_eq!(payload.len(), header.len as usize);
        assert!(payload.len() <= capacity as usize);
        to.incoming.push_back((header, payload));
        true
    }

    /// Handles one packet. Returns whether there was one.
    fn receive_packet(&mut self) -> bool {
        let Some((header, payload)) = self.incoming.pop_front() else {
            return false;
        };
        let op = Op::from_wire(header.op).unwrap();
        let handled = self
            .connection
            .handle_packet(op, &header, &mut payload.as_slice());
        assert_eq!(handled, Ok(()), "two correct sides");
        self.most_buffered = self.most_buffered.max(self.connection.inbox.len());
        true
    }
}

/// An open connection, seen from both sides. Counters start at `count`.
fn pair(windows: [u32; 2], count: u32) -> [Side; 2] {
    let mut host = Side::new(Connection::to_guest(ADDRESS, windows[0]));
    let request = host.connection.poll_packet(1, &mut Vec::new()).unwrap();
    assert_eq!(request.op, Op::Request.to_wire());
    let mut guest = Side::new(Connection::from_guest(ADDRESS, windows[1], &request));
    assert!(guest.transmit(1, &mut host) && host.receive_packet());
    assert_eq!(host.connection.is_requesting(), Ok(false));
    for (side, own, other) in [(&mut host, 0, 1), (&mut guest, 1, 0)] {
        side.connection.tx = TxCredit::starting_at(count, windows[other]);
        side.connection.rx = RxCredit::starting_at(count, windows[own]);
    }
    [host, guest]
}

/// Delivers packets until there are none. Panics if that never ends.
fn settle(sides: &mut [Side; 2], capacity: u32) {
    let [a, b] = sides;
    for _ in 0..1_000_000 {
        if !(a.transmit(capacity, b)
            | b.transmit(capacity, a)
            | a.receive_packet()
            | b.receive_packet())
        {
            return;
        }
    }
    panic!("the packets never end");
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize, usize),
    Read(usize, usize),
    Transmit(usize, u32),
    Receive(usize),
    Finish(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let side = 0..2_usize;
    prop_oneof![
        4 => (side.clone(), 1..5000_usize).prop_map(|(side, n)| Step::Send(side, n)),
        4 => (side.clone(), 1..5000_usize).prop_map(|(side, n)| Step::Read(side, n)),
        6 => (side.clone(), 1..5000_u32).prop_map(|(side, n)| Step::Transmit(side, n)),
        6 => side.clone().prop_map(Step::Receive),
        1 => side.prop_map(Step::Finish),
    ]
}

proptest! {
    #[test]
    fn whatever_two_sides_do_every_byte_arrives(
        windows: [u16; 2],
        count in prop_oneof![Just(0), (u32::MAX - 20_000)..=u32::MAX],
        steps in prop::collection::vec(step(), 0..300),
        capacity in 1..10_000_u32,
    ) {
        let windows = windows.map(|window| u32::from(window) + 1);
        let mut sides = pair(windows, count);
        for step in steps {
            let [a, b] = &mut sides;
            match step {
                Step::Send(0, n) => a.send(n),
                Step::Send(_, n) => b.send(n),
                Step::Read(0, n) => a.read(n).unwrap(),
                Step::Read(_, n) => b.read(n).unwrap(),
                Step::Transmit(0, n) => { a.transmit(n, b); }
                Step::Transmit(_, n) => { b.transmit(n, a); }
                Step::Receive(0) => { a.receive_packet(); }
                Step::Receive(_) => { b.receive_packet(); }
                Step::Finish(0) => a.connection.finish_sending(),
                Step::Finish(_) => b.connection.finish_sending(),
            }
        }
        sides.iter_mut().for_each(|side| side.connection.finish_sending());
        let mut before = usize::MAX;
        while !sides.iter().all(|side| side.reached_end) {
            settle(&mut sides, capacity);
            sides.iter_mut().for_each(|side| side.read(100_000).unwrap());
            let left = sides[0].sent + sides[1].sent - sides[0].received - sides[1].received;
            prop_assert!(left < before || left == 0, "there is no progress");
            before = left;
        }
        prop_assert_eq!(sides[0].sent, sides[1].received);
        prop_assert_eq!(sides[1].sent, sides[0].received);
        for (side, window) in sides.iter().zip(windows) {
            prop_assert!(side.most_buffered <= window as usize);
        }
    }
}

/// The bug that this project began with: a consumer that was slower than its producer for long enough
/// made a queue overflow, and bytes were lost silently. With credit the producer waits.
#[test]
fn a_bounded_consumer_under_an_unbounded_producer_gets_every_byte_and_the_end() {
    for (window, piece, capacity) in [(1, 1, 1), (4096, 100, 3732), (65_536, 1000, 3732)] {
        let total = 200 * window as usize + 12_345;
        let mut sides = pair([window; 2], u32::MAX - window);
        let mut rounds = 0;
        while !sides[1].reached_end {
            rounds += 1;
            assert!(rounds < 2 * total, "there is no progress");
            let producer = &mut sides[0];
            // The producer always has more to send than there is space for.
            if producer.sent < total {
                let more = (2 * window as usize).min(total - producer.sent);
                if producer.connection.queue.len() < window as usize {
                    producer.send(more);
                }
            } else {
                producer.connection.finish_sending();
            }
            settle(&mut sides, capacity);
            sides[1].read(piece).unwrap();
        }
        assert_eq!(sides[1].received, total);
        assert!(sides[1].most_buffered <= window as usize);
    }
}

#[test]
fn a_little_credit_is_not_used_while_more_is_to_come() {
    let mut sides = pair([1_000_000; 2], 0);
    sides[0].send(1_100_000);
    settle(&mut sides, 500_000);
    sides[1].read(600_000).unwrap();
    // The guest has space for 600 000 bytes and 100 000 are left: one packet.
    let [host, guest] = &mut sides;
    assert!(guest.transmit(1, host) && host.receive_packet());
    assert!(host.transmit(500_000, guest));
    assert_eq!(guest.incoming.back().unwrap().1.len(), 100_000);
    // Now nearly nothing is left of a window of a million.
    host.send(800_000);
    host.connection.tx = TxCredit::starting_at(0, 1_000_000);
    assert_eq!(host.connection.tx.take(999_000), 999_000);
    assert!(
        !host.transmit(500_000, guest),
        "1000 bytes of credit are not worth a packet"
    );
}

#[test]
fn a_peer_with_a_tiny_buffer_gets_everything() {
    let mut sides = pair([1_000_000, 3], 0);
    sides[0].send(100);
    for _ in 0..100 {
        if sides[1].received == 100 {
            return;
        }
        settle(&mut sides, 4096);
        let before = sides[1].received;
        sides[1].read(100).unwrap();
        assert!(sides[1].received > before);
    }
    panic!("{} bytes in a hundred rounds", sides[1].received);
}

#[test]
fn each_direction_is_shut_down_on_its_own() {
    let mut sides = pair([1000; 2], 0);
    sides[0].send(10);
    sides[0].connection.finish_sending();
    assert_eq!(sides[0].connection.may_send(), Err(Cause::Finished));
    settle(&mut sides, 100);
    sides[1].read(100).unwrap();
    sides[1].read(100).unwrap();
    assert!(sides[1].reached_end);
    sides[1].send(20);
    settle(&mut sides, 100);
    sides[0].read(100).unwrap();
    assert_eq!(sides[0].received, 20);
    assert!(!sides[0].reached_end);
}

#[test]
fn closing_delivers_what_was_sent_before() {
    let mut sides = pair([100; 2], 0);
    sides[0].send(1000);
    sides[0].connection.hang_up();
    // What the other side sends meanwhile is ignored, without a reset that would lose data.
    sides[1].send(500);
    for _ in 0..100 {
        settle(&mut sides, 100);
        sides[1].read(100).unwrap();
    }
    assert_eq!(sides[1].received, 1000);
    assert!(sides[1].reached_end);
    assert!(sides.iter().all(|side| side.connection.is_over()));
}

#[test]
fn a_closing_connection_sends_nothing_until_the_guest_resets_it() {
    let mut sides = pair([100; 2], 0);
    sides[0].connection.hang_up();
    let shutdown = sides[0].connection.poll_packet(1, &mut Vec::new()).unwrap();
    assert_eq!(
        (shutdown.op, shutdown.flags),
        (Op::Shutdown.to_wire(), Shutdown::BOTH.to_wire())
    );
    let late = Header {
        len: 10,
        buf_alloc: 100,
        ..Header::default()
    };
    for op in [Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        sides[0]
            .connection
            .handle_packet(op, &late, &mut [0; 10].as_slice())
            .unwrap();
        assert_eq!(sides[0].connection.intent(), None);
    }
    assert!(sides[0].connection.is_closing() && !sides[0].connection.is_over());
    sides[0]
        .connection
        .handle_packet(Op::Reset, &late, &mut [].as_slice())
        .unwrap();
    assert!(sides[0].connection.is_over());
}

#[test]
fn a_credit_request_is_answered_before_data_is_sent() {
    let mut sides = pair([100; 2], 0);
    sides[0].send(10);
    let request = Header {
        buf_alloc: 100,
        ..Header::default()
    };
    sides[0]
        .connection
        .handle_packet(Op::CreditRequest, &request, &mut [].as_slice())
        .unwrap();
    let ops = [(); 2].map(|()| {
        let packet = sides[0].connection.poll_packet(100, &mut Vec::new());
        packet.unwrap().op
    });
    assert_eq!(ops, [Op::CreditUpdate, Op::Data].map(Op::to_wire));
}

#[test]
fn after_a_reset_nothing_is_read() {
    let mut sides = pair([100; 2], 0);
    sides[1].send(50);
    settle(&mut sides, 100);
    sides[0].read(10).unwrap();
    sides[0].connection.reset();
    assert_eq!(sides[0].read(10), Err(Cause::ResetByHost));
    assert_eq!(sides[0].connection.buffered(), 0);
}

#[test]
fn a_reset_ends_both_sides_and_is_not_answered() {
    let mut sides = pair([100; 2], 0);
    sides[0].send(1000);
    settle(&mut sides, 100);
    sides[0].connection.reset();
    assert_eq!(sides[0].connection.unsent(), Err(Cause::ResetByHost));
    assert_eq!(sides[0].read(1), Err(Cause::ResetByHost));
    settle(&mut sides, 100);
    sides[1].read(100).unwrap();
    assert_eq!(sides[1].read(1), Err(Cause::ResetByGuest));
    assert_eq!(sides[1].received, 100, "what had arrived stays readable");
    assert!(sides.iter().all(|side| side.connection.is_over()));
}

#[test]
fn received_bytes_stay_readable_unless_the_application_ended_the_device() {
    for (cause, readable) in [(Cause::MonitorGone, true), (Cause::DeviceStopped, false)] {
        let mut sides = pair([100; 2], 0);
        sides[1].send(10);
        sides[1].connection.finish_sending();
        settle(&mut sides, 100);
        sides[0].connection.terminate(cause);
        assert_eq!(sides[0].read(100).is_ok(), readable, "{cause:?}");
    }
}

#[test]
fn bytes_that_the_guest_refuses_to_read_are_reported_as_lost() {
    let mut sides = pair([100; 2], 0);
    sides[0].send(1000);
    let shutdown = Header {
        flags: Shutdown::RECEIVE.to_wire(),
        buf_alloc: 100,
        ..Header::default()
    };
    let host = &mut sides[0].connection;
    host.handle_packet(Op::Shutdown, &shutdown, &mut [].as_slice())
        .unwrap();
    assert_eq!(host.unsent(), Err(Cause::Finished));
    assert_eq!(host.may_send(), Err(Cause::Finished));
}

/// Gives an open connection one packet of a hostile guest.
#[track_caller]
fn check(op: Op, header: Header, want: Violation) {
    let [mut host, _] = pair([100; 2], 0);
    let header = Header {
        buf_alloc: 100,
        ..header
    };
    let handled = host
        .connection
        .handle_packet(op, &header, &mut [0; 200].as_slice());
    assert_eq!(handled, Err(Fault::Violation(want)));
    assert_eq!(host.read(1), Err(Cause::Violation(want)));
    let reset = host.connection.poll_packet(1, &mut Vec::new()).unwrap();
    assert_eq!(reset.op, Op::Reset.to_wire());
    assert!(host.connection.is_over());
}

#[test]
fn a_violation_resets_the_connection() {
    let header = Header::default();
    check(
        Op::Data,
        Header { len: 101, ..header },
        Violation::CreditOverrun,
    );
    check(
        Op::Data,
        Header {
            len: u32::MAX,
            ..header
        },
        Violation::CreditOverrun,
    );
    check(
        Op::CreditUpdate,
        Header {
            fwd_cnt: 1,
            ..header
        },
        Violation::ForwardedUnsent,
    );
    check(Op::Request, header, Violation::UnexpectedOperation);
    check(Op::Response, header, Violation::UnexpectedOperation);
}

#[test]
fn data_after_the_end_is_a_violation() {
    let [mut host, _] = pair([100; 2], 0);
    let end = Header {
        flags: Shutdown::SEND.to_wire(),
        buf_alloc: 100,
        ..Header::default()
    };
    host.connection
        .handle_packet(Op::Shutdown, &end, &mut [].as_slice())
        .unwrap();
    let data = Header { len: 1, ..end };
    let handled = host
        .connection
        .handle_packet(Op::Data, &data, &mut [0].as_slice());
    assert_eq!(handled, Err(Fault::Violation(Violation::DataAfterShutdown)));
}

proptest! {
    #[test]
    fn no_sequence_of_packets_makes_a_connection_panic_or_grow(
        packets in prop::collection::vec((0..9_u16, any::<[u32; 4]>(), any::<bool>()), 0..200),
    ) {
        let [mut host, _] = pair([1000; 2], 0);
        for (op, [len, flags, buf_alloc, fwd_cnt], near) in packets {
            let Some(op) = Op::from_wire(op) else { continue };
            // Random counters are nearly always invalid; make some of them valid.
            let fwd_cnt = if near { fwd_cnt % 2 } else { fwd_cnt };
            let header = Header { len: len % 3000, flags, buf_alloc, fwd_cnt, ..Header::default() };
            let mut payload = [0; 3000].as_slice();
            let _violation = host.connection.handle_packet(op, &header, &mut payload);
            prop_assert!(host.connection.inbox.len() <= 1000);
            host.send(100);
            let mut payload = Vec::new();
            let _packet = host.connection.poll_packet(50, &mut payload);
            prop_assert!(payload.iter().map(Bytes::len).sum::<usize>() <= 50);
        }
    }
}
