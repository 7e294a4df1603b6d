//! What each range of addresses is for: the registries of special-purpose addresses (RFC 6890, as
//! IANA keeps them), and the metadata services of clouds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Denied;

/// A range: first address, length of the prefix in bits, and what it is for. `None`: any server.
type V4 = ([u8; 4], u32, Option<Denied>);
type V6 = ([u16; 8], u32, Option<Denied>);

/// The first range that contains an address decides, so exceptions come before what they are in.
const IPV4: &[V4] = &[
    // Amazon, Google, Azure, OpenStack and others.
    ([169, 254, 169, 254], 32, Some(Denied::Metadata)),
    // Amazon: credentials of containers (ECS, EKS).
    ([169, 254, 170, 2], 32, Some(Denied::Metadata)),
    ([169, 254, 170, 23], 32, Some(Denied::Metadata)),
    // Scaleway.
    ([169, 254, 42, 42], 32, Some(Denied::Metadata)),
    // Alibaba.
    ([100, 100, 100, 200], 32, Some(Denied::Metadata)),
    // Azure's host agent, on a public address.
    ([168, 63, 129, 16], 32, Some(Denied::Metadata)),
    // Oracle, formerly.
    ([192, 0, 0, 192], 32, Some(Denied::Metadata)),
    ([0, 0, 0, 0], 32, Some(Denied::Unspecified)),
    ([0, 0, 0, 0], 8, Some(Denied::Reserved)),
    ([10, 0, 0, 0], 8, Some(Denied::Private)),
    ([100, 64, 0, 0], 10, Some(Denied::Private)),
    ([127, 0, 0, 0], 8, Some(Denied::Loopback)),
    ([169, 254, 0, 0], 16, Some(Denied::LinkLocal)),
    ([172, 16, 0, 0], 12, Some(Denied::Private)),
    // Anycast of PCP and TURN.
    ([192, 0, 0, 9], 32, None),
    ([192, 0, 0, 10], 32, None),
    ([192, 0, 0, 0], 24, Some(Denied::Reserved)),
    // Documentation; in use by gateways that stand for the servers of the internet.
    ([192, 0, 2, 0], 24, Some(Denied::Private)),
    ([198, 51, 100, 0], 24, Some(Denied::Private)),
    ([203, 0, 113, 0], 24, Some(Denied::Private)),
    // Relays of 6to4, given up.
    ([192, 88, 99, 0], 24, Some(Denied::Reserved)),
    ([192, 168, 0, 0], 16, Some(Denied::Private)),
    // For benchmarks; in use by proxies that answer every name with an address from here.
    ([198, 18, 0, 0], 15, Some(Denied::Private)),
    ([224, 0, 0, 0], 4, Some(Denied::Multicast)),
    ([255, 255, 255, 255], 32, Some(Denied::Broadcast)),
    ([240, 0, 0, 0], 4, Some(Denied::Reserved)),
    ([0, 0, 0, 0], 0, None),
];

/// As [`IPV4`]. Addresses with an IPv4 address within do not come here; see `inner`.
const IPV6: &[V6] = &[
    // Services of Amazon's instances; the metadata service is fd00:ec2::254.
    (
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0],
        32,
        Some(Denied::Metadata),
    ),
    // Google.
    (
        [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254],
        128,
        Some(Denied::Metadata),
    ),
    // Oracle.
    (
        [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe],
        128,
        Some(Denied::Metadata),
    ),
    // Scaleway.
    (
        [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42],
        128,
        Some(Denied::Metadata),
    ),
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, Some(Denied::Unspecified)),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Some(Denied::Loopback)),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Some(Denied::Private)),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Some(Denied::LinkLocal)),
    // Site-local, given up for fc00::/7.
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Some(Denied::Private)),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Some(Denied::Multicast)),
    // Benchmarks, as 198.18.0.0/15.
    ([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, Some(Denied::Private)),
    // ORCHID, twice: names of keys, not of places.
    ([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, Some(Denied::Reserved)),
    ([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, Some(Denied::Reserved)),
    // Documentation.
    (
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0],
        32,
        Some(Denied::Reserved),
    ),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Some(Denied::Reserved)),
    // What is assigned to servers so far.
    ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, None),
    ([0, 0, 0, 0, 0, 0, 0, 0], 0, Some(Denied::Reserved)),
];

/// What an address is for; `Ok` if any server may have it.
pub(crate) fn class(address: IpAddr) -> Result<(), Denied> {
    let denied = match address {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    };
    denied.map_or(Ok(()), Err)
}

fn class_v4(address: Ipv4Addr) -> Option<Denied> {
    let bits = u32::from(address);
    let mut ranges = IPV4.iter();
    let found = ranges.find(|(first, length, _)| {
        let differing = bits ^ u32::from(Ipv4Addr::from(*first));
        differing.leading_zeros() >= *length
    });
    found.map_or(Some(Denied::Reserved), |(_, _, denied)| *denied)
}

fn class_v6(address: Ipv6Addr) -> Option<Denied> {
    let bits = u128::from(address);
    let mut ranges = IPV6.iter();
    let found = ranges.find(|(first, length, _)| {
        let differing = bits ^ u128::from(Ipv6Addr::from(*first));
        differing.leading_zeros() >= *length
    });
    found.map_or(Some(Denied::Reserved), |(_, _, denied)| *denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_where_its_prefix_ends_and_none_is_hidden_by_an_earlier_one() {
        for (index, (first, length, _)) in IPV4.iter().enumerate() {
            let bits = u32::from(Ipv4Addr::from(*first));
            assert!(bits.trailing_zeros() >= 32 - length, "{first:?}/{length}");
            for (earlier, shorter, _) in &IPV4[..index] {
                let differing = bits ^ u32::from(Ipv4Addr::from(*earlier));
                let hidden = shorter <= length && differing.leading_zeros() >= *shorter;
                assert!(!hidden, "{earlier:?}/{shorter} hides {first:?}/{length}");
            }
        }
        for (index, (first, length, _)) in IPV6.iter().enumerate() {
            let bits = u128::from(Ipv6Addr::from(*first));
            assert!(bits.trailing_zeros() >= 128 - length, "{first:?}/{length}");
            for (earlier, shorter, _) in &IPV6[..index] {
                let differing = bits ^ u128::from(Ipv6Addr::from(*earlier));
                let hidden = shorter <= length && differing.leading_zeros() >= *shorter;
                assert!(!hidden, "{earlier:?}/{shorter} hides {first:?}/{length}");
            }
        }
    }
}
