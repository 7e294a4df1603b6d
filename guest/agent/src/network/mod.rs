//! The network of steps.
//!
//! ```text
//!   step's namespace          uplink namespace                        monitor
//!   ┌──────────────┐ veth ┌──────────────────────────┐ virtio-net ┌────────────────────┐
//!   │ eth0 .32+n   ├──────┤ step-n            eth0 .15├────────────┤ user networking    │
//!   └──────────────┘      └──────────────────────────┘            │ .2 host, .3 names  │
//!                                                                 └────────────────────┘
//! ```
//!
//! Each step has a network namespace of its own, with loopback and perhaps one end of a veth pair.
//! The network card is in a namespace where no process lives, which only forwards. The law: what a
//! step may reach is decided by the routing table there, which no step can change, and not by what
//! the step sends. The monitor's own addresses are forbidden but for its name server: 10.0.2.2
//! would be the host's loopback. Steps do not reach each other.

mod netlink;

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use netlink::{Link, Netlink, Route, Table};

/// The monitor's network, as QEMU and its like have it.
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 0), 24);

/// Our own address there.
const UPLINK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// The monitor's name server. It also serves as the gateway: the monitor takes whatever reaches it.
pub(crate) const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The gateway as steps see it: an address of no real machine, known by its hardware address only.
const STEP_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Last byte of the address of the first step.
const FIRST_STEP: u8 = 32;

/// Hardware addresses of both ends of a veth pair: locally administered, and the same in all pairs,
/// since no two pairs share a link.
const UPLINK_MAC: [u8; 6] = [0x02, 0xcf, 0xda, 0, 0, 1];
const STEP_MAC: [u8; 6] = [0x02, 0xcf, 0xda, 0, 0, 2];

/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

/// The namespace with the network card.
#[derive(Debug)]
pub(crate) struct Uplink(OwnedFd);

impl Uplink {
    /// Moves the network card, if there is one, into a namespace of its own.
    pub(crate) fn set_up() -> Result<Option<Self>> {
        let Some(card) = card()? else { return Ok(None) };
        // A thread's namespace is its own, and ours must stay what it is.
        let thread = thread::Builder::new()
            .name("uplink".into())
            .spawn(move || isolate(&card))?;
        let uplink = thread
            .join()
            .map_err(|_| anyhow!("the uplink thread panicked"))?;
        uplink
            .map(|uplink| Some(Self(uplink)))
            .context("cannot set up the network")
    }

    /// The namespace, for a step that is being set up.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The network device that is not loopback.
fn card() -> Result<Option<String>> {
    for entry in fs::read_dir("/sys/class/net").context("cannot list network devices")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "lo" {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn own_namespace() -> Result<OwnedFd> {
    Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
}

fn isolate(card: &str) -> Result<OwnedFd> {
    let mut outside = Netlink::open()?;
    let index = index_of(card)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = own_namespace()?;
    outside.change(&Link {
        index,
        namespace: Some(namespace.as_raw_fd()),
        ..Link::default()
    })?;
    for (path, value) in SYSCTLS {
        set(path, value)?;
    }
    let mut inside = Netlink::open()?;
    let index = index_of(card)?;
    inside.up(LOOPBACK)?;
    set(&format!("ipv4/conf/{card}/proxy_arp"), "1")?;
    // The monitor asks for the hardware address of a step under an address that steps may not
    // reach. To the reverse path filter that looks forged, and the question would go unanswered.
    set(&format!("ipv4/conf/{card}/rp_filter"), "0")?;
    set(&format!("ipv4/neigh/{card}/proxy_delay"), "0")?;
    inside.address(index, UPLINK)?;
    inside.up(index)?;
    // Steps use a table of their own, where what they must not reach is forbidden. What comes in by
    // the card is looked up in the main one, which has the way to each step.
    for table in [Table::Main, Table::Steps] {
        inside.route(&Route {
            table,
            to: (NAMESERVER, 32),
            via: None,
            device: index,
        })?;
        inside.route(&Route {
            table,
            to: ANYWHERE,
            via: Some(NAMESERVER),
            device: index,
        })?;
    }
    inside.prohibit(Table::Steps, NETWORK)?;
    inside.rule(100, Some(card), Table::Main)?;
    inside.rule(101, Some("lo"), Table::Main)?;
    inside.rule(102, None, Table::Steps)?;
    Ok(namespace)
}

const ANYWHERE: (Ipv4Addr, u8) = (Ipv4Addr::UNSPECIFIED, 0);

/// Settings of the uplink namespace.
const SYSCTLS: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    // A step that sends with another step's address is ignored: `default` is what the devices of
    // steps begin with, and `all` would hold for the card as well.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

fn set(path: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{path}");
    fs::write(&path, value).with_context(|| format!("cannot set {path}"))
}

fn index_of(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no network device {name}"))
}

/// Sets up the network of the calling process, which is alone in a new network namespace. With an
/// uplink it gets the address with this number.
pub(crate) fn set_up_step(uplink: Option<(BorrowedFd<'_>, u8)>) -> Result<()> {
    // As other tools have it: no privilege is needed to ping, nor for low ports.
    set("ipv4/ping_group_range", "0 2147483647")?;
    set("ipv4/ip_unprivileged_port_start", "0")?;
    // Only the loopback device speaks IPv6: the monitor's own would lead to the host's loopback.
    set("ipv6/conf/default/disable_ipv6", "1")?;
    if let Some((uplink, number)) = uplink {
        connect(uplink, number).context("cannot connect the step to the network")?;
    }
    Netlink::open()?.up(LOOPBACK)
}

fn connect(uplink: BorrowedFd<'_>, number: u8) -> Result<()> {
    let address = step_address(number)?;
    let ours = own_namespace()?;
    // Names are only reused when the kernel has got rid of the device of an earlier step; so the
    // name has the process's own number, which is new each time.
    let name = format!("step{}", outer_pid()?);
    setns(uplink, CloneFlags::CLONE_NEWNET)?;
    let mut outside = Netlink::open()?;
    outside.make_veth((&name, UPLINK_MAC), ("eth0", STEP_MAC), ours.as_fd())?;
    let index = index_of(&name)?;
    outside.up(index)?;
    outside.neighbour(index, address, STEP_MAC)?;
    outside.route(&Route {
        table: Table::Main,
        to: (address, 32),
        via: None,
        device: index,
    })?;
    setns(ours.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let mut inside = Netlink::open()?;
    let index = index_of("eth0")?;
    inside.address(index, address)?;
    inside.up(index)?;
    inside.neighbour(index, STEP_GATEWAY, UPLINK_MAC)?;
    inside.route(&Route {
        table: Table::Main,
        to: ANYWHERE,
        via: Some(STEP_GATEWAY),
        device: index,
    })
}

/// This process's number outside its namespace, from a /proc that was mounted there.
fn outer_pid() -> Result<String> {
    let link = fs::read_link("/proc/self").context("no /proc")?;
    Ok(link.to_string_lossy().into_owned())
}

fn step_address(number: u8) -> Result<Ipv4Addr> {
    let last = FIRST_STEP.checked_add(number).filter(|last| *last < 255);
    Ok(Ipv4Addr::new(
        10,
        0,
        2,
        last.context("too many steps with a network")?,
    ))
}
