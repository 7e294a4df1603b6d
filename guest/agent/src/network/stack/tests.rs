//! The stack under a virtual clock, against a fake host and packets made by hand.

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use wire::frame;

use super::*;
use crate::network::tests::FakeHost;
use crate::network::tests::host::{ECHO, ENDS, LATER, REFUSED, SINK};

/// Packets to the step.
#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl PacketSink for Sent {
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.0.push(vec![0; len]);
        fill(self.0.last_mut().unwrap())
    }
}

/// A stack, what it sends, and a host.
struct World {
    stack: Stack,
    sent: Sent,
    host: FakeHost,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            stack: Stack::new(1),
            sent: Sent::default(),
            host: FakeHost::new(),
            now: Instant::from_secs(1),
        }
    }

    fn packet(&mut self, packet: &[u8]) {
        self.stack.packet(self.now, packet, &mut self.sent);
        self.settle();
    }

    /// Lets stack and host talk until neither has anything to say.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.stack.settle(self.now, &mut self.sent);
            let mut bytes = Vec::new();
            self.stack.frames().write(&mut bytes).unwrap();
            let mut rest = bytes.as_slice();
            while let Some((frame, after)) = frame::decode(rest).unwrap() {
                self.host.handle(&frame);
                rest = after;
            }
            let out = std::mem::take(&mut self.host.out);
            if bytes.is_empty() && out.is_empty() {
                return;
            }
            let mut rest = out.as_slice();
            while let Some((frame, after)) = frame::decode(rest).unwrap() {
                let taken = self.stack.frame(self.now, &frame, &mut self.sent);
                taken.expect("the host keeps the rules");
                rest = after;
            }
        }
        panic!("stack and host never come to rest");
    }

    /// The segments that the step was sent since the last call.
    fn segments(&mut self) -> Vec<TcpRepr<'static>> {
        let sent = std::mem::take(&mut self.sent.0);
        sent.iter()
            .map(|packet| TcpRepr {
                payload: &[],
                ..parse(packet)
            })
            .collect()
    }

    fn check_empty(&self) {
        let Stack {
            table,
            flows,
            routes,
            deadlines,
            waiting,
            held,
            ..
        } = &self.stack;
        assert!(table.is_empty(), "{table:?}");
        assert_eq!((flows.len(), routes.len(), deadlines.len()), (0, 0, 0));
        assert_eq!((waiting.len(), *held), (0, 0));
        assert_eq!(format!("{:?}", self.stack.buffers), "Buffers { used: 0 }");
    }
}

fn parse(packet: &[u8]) -> TcpRepr<'_> {
    let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let none = ChecksumCapabilities::ignored();
    let any = smoltcp::wire::IpAddress::v4(0, 0, 0, 0);
    TcpRepr::parse(&TcpPacket::new_unchecked(&packet[ip..]), &any, &any, &none).unwrap()
}

fn route(from: u16, to: u16) -> Route {
    Route {
        source: ([10, 0, 2, 15], from).into(),
        target: ([192, 0, 2, 1], to).into(),
    }
}

/// A segment of the step.
fn segment(route: Route, control: TcpControl, seq: i32, ack: Option<i32>, data: &[u8]) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: route.source.port(),
        dst_port: route.target.port(),
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 60_000,
        window_scale: None,
        max_seg_size: Some(1_460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: data,
    };
    let mut sent = Sent::default();
    let (from, to) = (route.source.ip(), route.target.ip());
    let len = repr.buffer_len();
    packet::send_ip(&mut sent, from, to, IpProtocol::Tcp, len, |body| {
        let none = ChecksumCapabilities::ignored();
        repr.emit(
            &mut TcpPacket::new_unchecked(body),
            &from.into(),
            &to.into(),
            &none,
        );
    });
    sent.0.remove(0)
}

fn syn(route: Route) -> Vec<u8> {
    segment(route, TcpControl::Syn, 100, None, b"")
}

fn datagram(route: Route, payload: &[u8]) -> Vec<u8> {
    let mut sent = Sent::default();
    let reversed = Route {
        source: route.target,
        target: route.source,
    };
    send_datagram(&mut sent, reversed, payload);
    sent.0.remove(0)
}

#[test]
fn a_connection_stands_only_after_that_of_the_host_does() {
    let mut world = World::new();
    // The step's kernel repeats itself while the host dials.
    for _ in 0..3 {
        world.packet(&syn(route(1_000, LATER)));
        world.now += Duration::from_secs(1);
    }
    assert!(world.segments().is_empty(), "answered before the host did");
    assert_eq!(world.host.tcp, 1, "one flow for one connection");
    let flow = world.host.later.remove(0);
    world.host.accept(flow);
    world.settle();
    let answers = world.segments();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].control, TcpControl::Syn);
    assert_eq!(answers[0].ack_number, Some(TcpSeqNumber(101)));
}

#[test]
fn a_connection_goes_its_whole_way_and_leaves_nothing() {
    let mut world = World::new();
    let route = route(1_000, ECHO);
    world.packet(&syn(route));
    let ours = world.segments()[0].seq_number.0.wrapping_add(1);
    let to = |control, seq, ack, data: &[u8]| segment(route, control, seq, Some(ack), data);
    world.packet(&to(TcpControl::None, 101, ours, b""));
    world.packet(&to(TcpControl::Psh, 101, ours, b"hello"));
    let back = world.sent.0.iter().map(|packet| parse(packet).payload);
    assert_eq!(back.collect::<Vec<_>>().concat(), b"hello");
    world.segments();
    let ours = ours.wrapping_add(5);
    world.packet(&to(TcpControl::Fin, 106, ours, b""));
    let last = world.segments().pop().unwrap();
    assert_eq!(last.control, TcpControl::Fin);
    world.packet(&to(TcpControl::None, 107, ours.wrapping_add(1), b""));
    world.check_empty();
}

#[test]
fn a_host_that_ends_at_once_ends_after_the_step_has_connected() {
    let mut world = World::new();
    let route = route(1_000, ENDS);
    world.packet(&syn(route));
    let answers = world.segments();
    let kinds: Vec<TcpControl> = answers.iter().map(|answer| answer.control).collect();
    assert_eq!(kinds, [TcpControl::Syn]);
    let ours = answers[0].seq_number.0.wrapping_add(1);
    world.packet(&segment(route, TcpControl::None, 101, Some(ours), b""));
    let end = world.segments().pop().unwrap();
    assert_eq!((end.control, end.seq_number.0), (TcpControl::Fin, ours));
    let ours = ours.wrapping_add(1);
    world.packet(&segment(route, TcpControl::Fin, 101, Some(ours), b""));
    world.check_empty();
}

#[test]
fn packets_that_come_together_are_acknowledged_together() {
    let mut world = World::new();
    let route = route(1_000, SINK);
    world.packet(&syn(route));
    let ours = world.segments()[0].seq_number.0.wrapping_add(1);
    for at in 0..10 {
        let packet = segment(route, TcpControl::Psh, 101 + at, Some(ours), &byte(at));
        world.stack.packet(world.now, &packet, &mut world.sent);
    }
    world.settle();
    assert!(world.segments().is_empty(), "more may follow");
    world.now = world.stack.poll_at().unwrap();
    world.settle();
    let acks = world.segments();
    assert_eq!(acks.len(), 1, "{acks:?}");
    assert_eq!(acks[0].ack_number, Some(TcpSeqNumber(111)));
}

fn byte(at: i32) -> [u8; 1] {
    [crate::network::tests::host::byte(at.unsigned_abs().into())]
}

#[test]
fn what_is_refused_is_reset_and_what_is_unknown_too() {
    let mut world = World::new();
    world.packet(&syn(route(1_000, REFUSED)));
    let stray = segment(route(1_001, SINK), TcpControl::None, 5, Some(77), b"x");
    world.packet(&stray);
    let answers = world.segments();
    assert_eq!(
        (answers[0].control, answers[0].ack_number),
        (TcpControl::Rst, Some(TcpSeqNumber(101)))
    );
    assert_eq!(
        (answers[1].control, answers[1].seq_number),
        (TcpControl::Rst, TcpSeqNumber(77))
    );
    // A reset is never answered.
    world.packet(&segment(route(1_002, SINK), TcpControl::Rst, 5, None, b""));
    assert!(world.segments().is_empty());
    world.check_empty();
}

#[test]
fn a_step_that_gives_up_before_the_host_has_dialled_opens_nothing() {
    let mut world = World::new();
    world.packet(&syn(route(1_000, LATER)));
    world.packet(&segment(
        route(1_000, LATER),
        TcpControl::Rst,
        101,
        None,
        b"",
    ));
    assert_eq!(world.host.resets, 1);
    world.check_empty();
}

#[test]
fn datagrams_wait_for_their_flow_and_it_ends_when_it_is_idle() {
    let mut world = World::new();
    let (v4, _) = wire::flow::NAMESERVERS;
    let names = Route {
        target: (v4, 53).into(),
        ..route(1_000, 0)
    };
    for (route, idle) in [(route(1_000, ECHO), 60), (names, 10)] {
        world.packet(&datagram(route, b"one"));
        world.packet(&datagram(route, b"two"));
        world.sent.0.clear();
        for (passes, ended) in [(idle - 1, false), (idle - 1, false), (idle, true)] {
            if !ended {
                world.packet(&datagram(route, b"again"));
            }
            world.now += Duration::from_secs(passes);
            assert!(!ended || world.stack.poll_at().is_some_and(|at| at <= world.now));
            world.settle();
            assert_eq!(world.stack.flows.is_empty(), ended, "after {passes} s");
        }
        world.check_empty();
    }
    assert_eq!(world.host.udp, 2);
}

#[test]
fn too_many_connections_are_refused_and_what_they_leave_is_nothing() {
    let mut world = World::new();
    let at = |number: usize| route(u16::try_from(number + 1).unwrap(), LATER);
    for number in 0..MAX_FLOWS + 100 {
        world.packet(&syn(at(number)));
    }
    assert_eq!(world.host.tcp, MAX_FLOWS);
    let refused = world.segments();
    assert_eq!(refused.len(), 100);
    assert!(
        refused
            .iter()
            .all(|answer| answer.control == TcpControl::Rst)
    );
    for number in 0..MAX_FLOWS {
        world.packet(&segment(at(number), TcpControl::Rst, 101, None, b""));
    }
    world.check_empty();
}

#[test]
fn datagrams_that_wait_take_a_bounded_amount_of_memory() {
    let mut world = World::new();
    for port in 1..1_000 {
        let packet = datagram(route(port, LATER), &[0; 60_000]);
        world.packet(&packet);
        world.packet(&packet);
    }
    assert!(world.stack.held <= 4 << 20, "{}", world.stack.held);
    assert_eq!(world.host.udp, 999);
    world.now += Duration::from_secs(61);
    world.settle();
    world.check_empty();
}

/// Packets that mean something now and then: two connections, and all kinds of segments.
fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let controls = [
        TcpControl::None,
        TcpControl::Psh,
        TcpControl::Fin,
        TcpControl::Syn,
        TcpControl::Rst,
    ];
    let tcp = (
        0..2_u16,
        prop::sample::select(vec![ECHO, SINK, REFUSED, LATER, 22]),
        prop::sample::select(controls.to_vec()),
        95..130_i32,
        any::<Option<i32>>(),
        vec(any::<u8>(), 0..20),
    )
        .prop_map(|(from, to, control, seq, ack, data)| {
            segment(route(1_000 + from, to), control, seq, ack, &data)
        });
    let udp = (0..3_u16, vec(any::<u8>(), 0..30))
        .prop_map(|(from, data)| datagram(route(1_000 + from, ECHO), &data));
    let any_bytes = vec(any::<u8>(), 0..90);
    vec(prop_oneof![6 => tcp, 2 => udp, 1 => any_bytes], 0..80)
}

proptest! {
    #[test]
    fn no_packets_of_a_step_make_it_panic_or_spin(packets in packets(), bit in any::<u16>()) {
        let mut world = World::new();
        for mut packet in packets {
            let at = usize::from(bit) % (packet.len() * 8).max(1);
            if let Some(byte) = packet.get_mut(at / 8).filter(|_| bit % 3 == 0) {
                *byte ^= 1 << (at % 8);
            }
            world.packet(&packet);
            world.now += Duration::from_millis(u64::from(bit % 700));
        }
        // Whatever timers are left, they do not fire all the time.
        let mut fired = 0;
        let end = world.now + Duration::from_secs(3_600);
        while let Some(at) = world.stack.poll_at().filter(|at| *at < end) {
            world.now = world.now.max(at);
            world.settle();
            fired += 1;
            prop_assert!(fired < 5_000, "a timer fires all the time");
        }
    }
}
