use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::FixedAddresses;

fn policy() -> AddressPolicy {
    AddressPolicy::new(Arc::new(FixedAddresses::default()))
}

#[track_caller]
fn check(address: &str, want: Result<(), Denied>) {
    assert_eq!(policy().check(address.parse().unwrap()), want, "{address}");
}

#[track_caller]
fn denied(addresses: &[&str], why: Denied) {
    for address in addresses {
        check(address, Err(why));
    }
}

#[test]
fn servers_of_the_internet_are_reached() {
    for address in [
        "1.1.1.1",
        "8.8.8.8",
        "93.184.216.34",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "192.0.0.9",
        "198.17.255.255",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00::1",
        "2001:200::1",
        "2001:4860:4860::8888",
    ] {
        check(address, Ok(()));
    }
}

#[test]
fn this_machine_is_not_reached_by_its_usual_addresses() {
    denied(
        &["127.0.0.1", "127.0.0.0", "127.255.255.255", "::1"],
        Denied::Loopback,
    );
    denied(&["0.0.0.0", "::"], Denied::Unspecified);
    denied(
        &["169.254.0.1", "169.254.255.255", "fe80::1", "febf::1"],
        Denied::LinkLocal,
    );
}

#[test]
fn metadata_services_are_not_reached() {
    let services = [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fd00:c1::a9fe:a9fe",
    ];
    denied(&services, Denied::Metadata);
}

#[test]
fn what_is_no_server_is_not_reached() {
    denied(
        &["224.0.0.1", "239.255.255.255", "ff02::1"],
        Denied::Multicast,
    );
    denied(&["255.255.255.255"], Denied::Broadcast);
    let reserved = [
        "0.0.0.1",
        "0.255.255.255",
        "192.0.0.1",
        "192.88.99.1",
        "240.0.0.1",
        "255.255.255.254",
        "100::1",
        "2001:db8::1",
        "2001:10::1",
        "2001:20::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "64:ff9b:2::1",
    ];
    denied(&reserved, Denied::Reserved);
}

const PRIVATE: [&str; 15] = [
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.127.255.255",
    "198.18.0.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.255",
    "fc00::1",
    "fdff::1",
    "fec0::1",
    "2001:2::1",
];

#[test]
fn private_networks_are_reached_unless_that_is_switched_off() {
    let mut policy = policy();
    for address in PRIVATE {
        check(address, Ok(()));
    }
    policy.allow_private = false;
    for address in PRIVATE {
        let verdict = policy.check(address.parse().unwrap());
        assert_eq!(verdict, Err(Denied::Private), "{address}");
    }
    for address in [
        "1.1.1.1",
        "172.32.0.1",
        "172.15.0.1",
        "100.128.0.1",
        "2a00::1",
    ] {
        assert_eq!(policy.check(address.parse().unwrap()), Ok(()), "{address}");
    }
}

#[test]
fn the_address_within_decides() {
    let loopback = [
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::127.0.0.1",
        "64:ff9b:1:7f00:0:100::",
        "64:ff9b:1:007f:0000:0001::",
        "64:ff9b:1:ffff:7f:0:100:0",
        "2002:7f00:1::1",
        // Teredo: the client is inverted, the server is not.
        "2001:0:101:101:0:0:80ff:fffe",
        "2001:0:7f00:1::fefe:fefe",
    ];
    denied(&loopback, Denied::Loopback);
    denied(
        &[
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
        ],
        Denied::Metadata,
    );
    for address in [
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
        "64:ff9b:1::1.1.1.1",
        "64:ff9b:1:fffe::8.8.8.8",
        "64:ff9b:1:0101:1:0100::",
        "2002:101:101::1",
        "2001:0:101:101:0:0:fefe:fefe",
        "::ffff:10.0.0.1",
    ] {
        check(address, Ok(()));
    }
    denied(&["64:ff9b:1::"], Denied::Unspecified);
    denied(&["::2"], Denied::Reserved);
}

#[test]
fn the_machines_own_addresses_are_not_reached_in_any_form() {
    let own: Vec<IpAddr> = ["93.184.216.34", "192.168.1.5", "2a00::5", "2002:808:808::1"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    let mut policy = AddressPolicy::new(Arc::new(FixedAddresses(own)));
    for allow_private in [true, false] {
        policy.allow_private = allow_private;
        for address in [
            "93.184.216.34",
            "192.168.1.5",
            "2a00::5",
            "::ffff:192.168.1.5",
            "64:ff9b::93.184.216.34",
            "2002:5db8:d822::1",
            "2002:808:808::1",
        ] {
            let verdict = policy.check(address.parse().unwrap());
            assert_eq!(verdict, Err(Denied::ThisHost), "{address}");
        }
    }
    assert_eq!(policy.check("93.184.216.35".parse().unwrap()), Ok(()));
}

#[test]
fn nothing_is_reached_if_this_machines_addresses_are_not_known() {
    struct Broken;
    impl OwnAddresses for Broken {
        fn contains(&self, _: IpAddr) -> std::io::Result<bool> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
    }
    let policy = AddressPolicy::new(Arc::new(Broken));
    for address in ["1.1.1.1", "10.0.0.1", "2a00::1", "64:ff9b::1.1.1.1"] {
        let verdict = policy.check(address.parse().unwrap());
        assert_eq!(verdict, Err(Denied::Unlisted), "{address}");
    }
}

#[test]
fn the_kernels_list_of_addresses_is_used_unless_told_otherwise() {
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let addresses = interfaces.filter_map(|found| {
        let address = found.address?;
        Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))
    });
    for address in addresses {
        AddressPolicy::default().check(address).unwrap_err();
    }
}

/// Every way to write an IPv4 address as an IPv6 address.
fn forms(inside: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [.., high, low] = inside.to_ipv6_mapped().segments();
    vec![
        inside.to_ipv6_mapped(),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
    ]
}

/// All forms of NAT64 with a prefix of the network's own; the bits after the address are zero.
fn local_nat64(inside: Ipv4Addr) -> [Ipv6Addr; 4] {
    let [a, b, c, d] = inside.octets();
    let start = [0, 0x64, 0xff, 0x9b, 0, 1];
    [
        [a, b, 0, c, d, 0, 0, 0, 0, 0],
        [0, a, 0, b, c, d, 0, 0, 0, 0],
        [0, 0, 0, a, b, c, d, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, a, b, c, d],
    ]
    .map(|end| {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&start);
        bytes[6..].copy_from_slice(&end);
        Ipv6Addr::from(bytes)
    })
}

proptest! {
    #[test]
    fn an_ipv4_address_is_judged_alike_in_every_form(bits: u32, private: bool) {
        let mut policy = policy();
        policy.allow_private = private;
        let inside = Ipv4Addr::from(bits);
        let want = policy.check(inside.into());
        for form in forms(inside) {
            prop_assert_eq!(policy.check(form.into()), want, "{} in {}", inside, form);
        }
    }

    #[test]
    fn what_reaches_this_machine_is_denied_in_every_form(last: [u8; 3]) {
        let [b, c, d] = last;
        for inside in [Ipv4Addr::new(127, b, c, d), Ipv4Addr::new(169, 254, c, d)] {
            for form in forms(inside).into_iter().chain(local_nat64(inside)) {
                policy().check(form.into()).unwrap_err();
            }
        }
    }

    #[test]
    fn no_private_address_is_reached_when_that_is_off(bits: u128) {
        let mut policy = policy();
        policy.allow_private = false;
        let unique_local = (bits >> 7) | (0xfc << 120);
        prop_assert!(policy.check(Ipv6Addr::from(unique_local).into()).is_err());
    }

    #[test]
    fn only_global_unicast_and_translated_addresses_are_reached(bits: u128) {
        let address = Ipv6Addr::from(bits);
        let mut policy = policy();
        policy.allow_private = false;
        if policy.check(address.into()).is_ok() {
            let [first, second, ..] = address.segments();
            let translated = address.to_ipv4().is_some() || (first, second) == (0x64, 0xff9b);
            prop_assert!(first & 0xe000 == 0x2000 || translated, "{}", address);
        }
    }
}

#[test]
fn a_denial_completes_a_sentence() {
    assert_eq!(
        format!("127.0.0.1 is {}", Denied::Loopback),
        "127.0.0.1 is a loopback address, which is this machine"
    );
}
