//! Reading the packets of a step, and making those that no TCP connection makes.
//!
//! **Law:** any bytes are read or ignored. A step may have `CAP_NET_RAW`, so a packet can be anything.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Message, Icmpv6Message, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr, checksum,
};

/// Where packets for the step go. They need no checksum of their transport protocol: nothing happens
/// to them on the way.
pub(in crate::network) trait PacketSink {
    /// Sends a packet of `len` bytes, which `fill` writes.
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// The hop limit of packets to the step.
const HOPS: u8 = 64;

/// What a packet of a step is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Tcp(Segment<'a>),
    Udp(Datagram<'a>),
    /// An echo request, which nobody answers.
    Ping(Route),
}

/// From where to where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Route {
    /// The step's end.
    pub(super) source: SocketAddr,
    /// The other end.
    pub(super) target: SocketAddr,
}

/// A segment of a TCP connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) route: Route,
    /// It begins a connection.
    pub(super) begins: bool,
    pub(super) reset: bool,
    /// The whole packet.
    pub(super) packet: &'a [u8],
}

/// A datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) route: Route,
    pub(super) payload: &'a [u8],
}

/// Reads a packet; `None` if nothing is to be done about it.
pub(super) fn read(packet: &[u8]) -> Option<Packet<'_>> {
    let (source, target, protocol, body) = read_ip(packet)?;
    // A connection with a group of hosts cannot be, and the addresses of a connection are our own.
    if !IpAddress::from(source).is_unicast() {
        return None;
    }
    let route = |from, to| Route {
        source: SocketAddr::new(source, from),
        target: SocketAddr::new(target, to),
    };
    if protocol == IpProtocol::Tcp {
        let tcp = TcpPacket::new_checked(body).ok()?;
        let possible = IpAddress::from(target).is_unicast() && tcp.src_port() != 0;
        possible.then_some(Packet::Tcp(Segment {
            route: route(tcp.src_port(), tcp.dst_port()),
            begins: tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin(),
            reset: tcp.rst(),
            packet,
        }))
    } else if protocol == IpProtocol::Udp {
        let udp = UdpPacket::new_checked(body).ok()?;
        let (route, payload) = (route(udp.src_port(), udp.dst_port()), udp.payload());
        (udp.src_port() != 0).then_some(Packet::Udp(Datagram { route, payload }))
    } else {
        let echo = match target {
            IpAddr::V4(_) => (IpProtocol::Icmp, u8::from(Icmpv4Message::EchoRequest)),
            IpAddr::V6(_) => (IpProtocol::Icmpv6, u8::from(Icmpv6Message::EchoRequest)),
        };
        let ping = protocol == echo.0 && body.first() == Some(&echo.1);
        ping.then_some(Packet::Ping(route(0, 0)))
    }
}

/// Addresses, protocol and body of a whole IP packet without extension headers.
fn read_ip(packet: &[u8]) -> Option<(IpAddr, IpAddr, IpProtocol, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            // The device carries the longest packet there is, so an honest kernel makes no fragments.
            let whole = !ip.more_frags() && ip.frag_offset() == 0;
            let addresses = (ip.src_addr().into(), ip.dst_addr().into());
            whole.then_some((addresses.0, addresses.1, ip.next_header(), ip.payload()))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let (source, target) = (ip.src_addr().into(), ip.dst_addr().into());
            Some((source, target, ip.next_header(), ip.payload()))
        }
        _ => None,
    }
}

/// Refuses a segment as a kernel does that has no such connection (RFC 9293, 3.10.7.1).
pub(super) fn send_reset(to: &mut impl PacketSink, segment: &Segment<'_>) {
    let Some((.., body)) = read_ip(segment.packet) else {
        return;
    };
    let Ok(tcp) = TcpPacket::new_checked(body) else {
        return;
    };
    let (seq_number, ack_number) = if tcp.ack() {
        (tcp.ack_number(), None)
    } else {
        let after = tcp.seq_number() + tcp.segment_len();
        (TcpSeqNumber(0), Some(after))
    };
    let repr = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let Route { source, target } = segment.route;
    let len = repr.buffer_len();
    send_ip(to, target.ip(), source.ip(), IpProtocol::Tcp, len, |body| {
        let (from, to) = (target.ip().into(), source.ip().into());
        let none = ChecksumCapabilities::ignored();
        repr.emit(&mut TcpPacket::new_unchecked(body), &from, &to, &none);
    });
}

/// Sends a datagram to the step: the opposite way of `route`.
pub(super) fn send_datagram(to: &mut impl PacketSink, route: Route, payload: &[u8]) {
    let Route { source, target } = route;
    let repr = UdpRepr {
        src_port: target.port(),
        dst_port: source.port(),
    };
    let len = repr.header_len() + payload.len();
    send_ip(to, target.ip(), source.ip(), IpProtocol::Udp, len, |body| {
        let (from, to) = (target.ip().into(), source.ip().into());
        let (none, copy) = (ChecksumCapabilities::ignored(), payload.len());
        let mut udp = UdpPacket::new_unchecked(body);
        repr.emit(
            &mut udp,
            &from,
            &to,
            copy,
            |body| body.copy_from_slice(payload),
            &none,
        );
    });
}

/// Why a packet does not arrive, in the words of ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// Type and code of the message (RFC 792 and 1812; RFC 4443, 3.1).
    const fn code(self, address: IpAddr) -> [u8; 2] {
        match (address, self) {
            (IpAddr::V4(_), Self::Host) => [3, 1],
            (IpAddr::V4(_), Self::Port) => [3, 3],
            (IpAddr::V4(_), Self::Prohibited) => [3, 13],
            (IpAddr::V6(_), Self::Host) => [1, 3],
            (IpAddr::V6(_), Self::Port) => [1, 4],
            (IpAddr::V6(_), Self::Prohibited) => [1, 1],
        }
    }
}

/// The beginning of a packet, as ICMP repeats it: the header of IP, and what has the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quote(Vec<u8>);

impl Quote {
    /// Longest quote in bytes: the longest header of IPv4, or that of IPv6, and eight bytes.
    const MAX: usize = 68;

    /// The beginning of a packet.
    pub(super) fn of(packet: &[u8]) -> Self {
        Self(packet.iter().take(Self::MAX).copied().collect())
    }
}

/// Tells the step that a packet did not arrive where it was to go.
pub(super) fn send_unreachable(
    to: &mut impl PacketSink,
    Route { source, target }: Route,
    why: Unreachable,
    Quote(quote): &Quote,
) {
    let (from, dest) = (target.ip(), source.ip());
    let protocol = match from {
        IpAddr::V4(_) => IpProtocol::Icmp,
        IpAddr::V6(_) => IpProtocol::Icmpv6,
    };
    let len = 8 + quote.len();
    send_ip(to, from, dest, protocol, len, |body| {
        body.fill(0);
        let (head, rest) = body.split_at_mut(8);
        rest.copy_from_slice(quote);
        let code = why.code(from);
        head.iter_mut().zip(code).for_each(|(to, byte)| *to = byte);
        let pseudo = match from {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => {
                let length = u32::try_from(len).unwrap_or(u32::MAX);
                checksum::pseudo_header(&from.into(), &dest.into(), protocol, length)
            }
        };
        let sum = !checksum::combine(&[pseudo, checksum::data(body)]);
        let field = body.iter_mut().skip(2);
        field
            .zip(network_order(sum))
            .for_each(|(to, byte)| *to = byte);
    });
}

/// A number as it is in a packet, most significant byte first.
pub(in crate::network) const fn network_order(number: u16) -> [u8; 2] {
    number.swap_bytes().to_le_bytes()
}

pub(super) fn send_ip(
    sink: &mut impl PacketSink,
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let repr = IpRepr::new(from.into(), to.into(), protocol, len, HOPS);
    let header = repr.header_len();
    sink.send(header + len, |packet| {
        // Only the header of IPv4 has a checksum, and it is short.
        repr.emit(&mut *packet, &ChecksumCapabilities::default());
        if let Some(body) = packet.get_mut(header..) {
            fill(body);
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Sent(Vec<Vec<u8>>);

    impl PacketSink for Sent {
        fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
            self.0.push(vec![0xee; len]);
            fill(self.0.last_mut().unwrap())
        }
    }

    fn route(source: &str, target: &str) -> Route {
        let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
        Route { source, target }
    }

    fn routes() -> [Route; 2] {
        [
            route("10.0.2.15:1000", "192.0.2.1:53"),
            route("[fd00::15]:1000", "[2001:db8::1]:53"),
        ]
    }

    fn reversed(Route { source, target }: Route) -> Route {
        Route {
            source: target,
            target: source,
        }
    }

    #[test]
    fn a_datagram_is_read_as_it_was_sent() {
        for route in routes() {
            for payload in [&b""[..], b"abc", &[7; 60_000]] {
                let mut sent = Sent::default();
                send_datagram(&mut sent, route, payload);
                let route = reversed(route);
                let want = Packet::Udp(Datagram { route, payload });
                assert_eq!(read(&sent.0[0]), Some(want));
            }
        }
    }

    #[test]
    fn a_refused_segment_is_answered_by_a_reset() {
        for route in routes() {
            let mut sent = Sent::default();
            send_datagram(&mut sent, route, &[0; 40]);
            let mut packet = sent.0.remove(0);
            let ip = packet.len() - 48;
            let protocol_at = if ip == 20 { 9 } else { 6 };
            packet[protocol_at] = 6;
            packet[ip + 12] = 5 << 4;
            packet[ip + 13] = 2; // SYN
            let Some(Packet::Tcp(segment)) = read(&packet) else {
                panic!("not a segment");
            };
            assert!(segment.begins);
            send_reset(&mut sent, &segment);
            let Some(Packet::Tcp(answer)) = read(&sent.0[0]) else {
                panic!("not a segment");
            };
            assert!(answer.reset);
            assert_eq!(answer.route, reversed(segment.route));
        }
    }

    #[test]
    fn an_unreachable_packet_is_quoted_with_a_right_checksum() {
        for route in routes() {
            let mut sent = Sent::default();
            send_datagram(&mut sent, reversed(route), &[1; 100]);
            let quote = Quote::of(&sent.0[0]);
            send_unreachable(&mut sent, route, Unreachable::Port, &quote);
            let packet = &sent.0[1];
            let (.., body) = read_ip(packet).unwrap();
            assert_eq!(body[8..], sent.0[0][..68]);
            let length = u32::try_from(body.len()).unwrap();
            let (from, to) = (route.target.ip().into(), route.source.ip().into());
            let pseudo = match route.source {
                SocketAddr::V4(_) => 0,
                SocketAddr::V6(_) => {
                    checksum::pseudo_header(&from, &to, IpProtocol::Icmpv6, length)
                }
            };
            assert_eq!(checksum::combine(&[pseudo, checksum::data(body)]), !0);
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(
            mut packet in vec(any::<u8>(), 0..120),
            first in prop_oneof![Just(0x45), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(1), Just(6), Just(17), Just(58), any::<u8>()],
        ) {
            for (at, byte) in [(0, first), (9, protocol), (6, protocol)] {
                if let Some(to) = packet.get_mut(at) {
                    *to = byte;
                }
            }
            let len = packet.len();
            if first == 0x45 && len > 3 {
                packet[2] = 0;
                packet[3] = u8::try_from(len).unwrap();
            }
            if let Some(Packet::Tcp(segment)) = read(&packet) {
                send_reset(&mut Sent::default(), &segment);
            }
            let _quote = Quote::of(&packet);
        }
    }
}
