//! IPv4 addresses within IPv6 addresses: what a translator, a tunnel or the kernel itself would
//! connect to.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The IPv4 addresses within an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inner {
    /// There is none.
    None,
    /// Packets go to the first one, and to or through the others.
    Addresses(Vec<Ipv4Addr>),
    /// One of these; which one is a setting of the network.
    AnyOf([Ipv4Addr; 4]),
}

/// Finds the IPv4 addresses within an address.
pub(crate) fn inner(address: Ipv6Addr) -> Inner {
    let bytes = address.octets();
    let last = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    match address.segments() {
        // The unspecified and the loopback address.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Inner::None,
        // IPv4-compatible (RFC 4291, 2.5.5.1), -mapped (2.5.5.2) and -translated (RFC 2765).
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => {
            Inner::Addresses(vec![last])
        }
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Inner::Addresses(vec![last]),
        // NAT64 with a prefix that the network chose within this one (RFC 8215): of 48, 56, 64 or
        // 96 bits (RFC 6052, 2.2; byte 8 is always skipped).
        [0x64, 0xff9b, 1, ..] => Inner::AnyOf([
            Ipv4Addr::new(bytes[6], bytes[7], bytes[9], bytes[10]),
            Ipv4Addr::new(bytes[7], bytes[9], bytes[10], bytes[11]),
            Ipv4Addr::new(bytes[9], bytes[10], bytes[11], bytes[12]),
            last,
        ]),
        // 6to4 (RFC 3056).
        [0x2002, ..] => {
            Inner::Addresses(vec![Ipv4Addr::new(bytes[2], bytes[3], bytes[4], bytes[5])])
        }
        // Teredo (RFC 4380): the client, inverted, and its server.
        [0x2001, 0, ..] => Inner::Addresses(vec![
            Ipv4Addr::from(!u32::from(last)),
            Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]),
        ]),
        _ => Inner::None,
    }
}
