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
//! Each step has a network namespace of its own, with loopback and, if it has network access, one end
//! of a veth pair. The network device of the VM is in a namespace without processes, which only
//! forwards.
//!
//! **Law:** the routing table of that namespace decides what a step can reach. No step can change it,
//! and nothing that a step sends gets around it. The monitor's own addresses are prohibited except
//! for its name server: 10.0.2.2 would be the host's loopback. Steps cannot reach each other.

mod netlink;

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use netlink::{InterfaceChange, Netlink, Route, Table};

/// The monitor's network, with the addresses that QEMU and similar monitors use.
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 0), 24);

/// The address of the VM in it.
const UPLINK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// The monitor's name server. It also serves as the gateway, since the monitor handles every packet
/// that reaches it.
pub(crate) const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The gateway as steps see it: an address that no machine has. Steps have a neighbour entry for it.
const STEP_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Last byte of the first step's address.
const FIRST_STEP: u8 = 32;

/// Hardware addresses of the two ends of a veth pair: locally administered, and the same for all
/// pairs, since no two pairs are connected.
const UPLINK_MAC: [u8; 6] = [0x02, 0xcf, 0xda, 0, 0, 1];
const STEP_MAC: [u8; 6] = [0x02, 0xcf, 0xda, 0, 0, 2];

/// Index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// The network namespace with the network device of the VM.
#[derive(Debug)]
pub(crate) struct Uplink(OwnedFd);

impl Uplink {
    /// Moves the network device, if there is one, into a namespace of its own.
    pub(crate) fn set_up() -> Result<Option<Self>> {
        let Some(device) = device()? else {
            return Ok(None);
        };
        // A thread has a namespace of its own; that of the agent must not change.
        let thread = thread::Builder::new()
            .name("uplink".into())
            .spawn(move || isolate(&device))?;
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

/// The name of the network interface that is not loopback.
fn device() -> Result<Option<String>> {
    for entry in fs::read_dir("/sys/class/net").context("cannot list the network interfaces")? {
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

fn isolate(device: &str) -> Result<OwnedFd> {
    let mut outside = Netlink::open()?;
    let index = index_of(device)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let namespace = own_namespace()?;
    outside.change(&InterfaceChange {
        index,
        namespace: Some(namespace.as_raw_fd()),
        ..InterfaceChange::default()
    })?;
    for (path, value) in SYSCTLS {
        set(path, value)?;
    }
    let mut inside = Netlink::open()?;
    let index = index_of(device)?;
    inside.up(LOOPBACK)?;
    set(&format!("ipv4/conf/{device}/proxy_arp"), "1")?;
    // The monitor asks for the hardware addresses of steps from an address that steps cannot reach. The
    // reverse path filter would take that for forged and drop the question.
    set(&format!("ipv4/conf/{device}/rp_filter"), "0")?;
    set(&format!("ipv4/neigh/{device}/proxy_delay"), "0")?;
    inside.address(index, UPLINK)?;
    inside.up(index)?;
    // Packets from steps are routed by a table of their own, which prohibits what steps must not reach.
    // Packets from the device are routed by the main table, which has a route to each step.
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
    inside.rule(100, Some(device), Table::Main)?;
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
    // Drops packets that a step sends from another step's address. The interfaces of steps start with
    // `default`; `all` would affect the device as well.
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
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no network interface {name}"))
}

/// Sets up the network of the calling process, which is alone in a new network namespace. With an
/// uplink, it gets the address with this number.
pub(crate) fn set_up_step(uplink: Option<(BorrowedFd<'_>, u8)>) -> Result<()> {
    // As with other builders, neither ping nor low ports need a privilege.
    set("ipv4/ping_group_range", "0 2147483647")?;
    set("ipv4/ip_unprivileged_port_start", "0")?;
    // IPv6 on loopback only: through the monitor it would lead to the host's loopback.
    set("ipv6/conf/default/disable_ipv6", "1")?;
    if let Some((uplink, number)) = uplink {
        connect(uplink, number).context("cannot connect the step to the network")?;
    }
    Netlink::open()?.up(LOOPBACK)
}

fn connect(uplink: BorrowedFd<'_>, number: u8) -> Result<()> {
    let address = step_address(number)?;
    let ours = own_namespace()?;
    // The kernel may still have the interface of an earlier step, so the name has the process id, which
    // is new each time.
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

/// The process id of this process outside its namespace, from the /proc that is mounted there.
fn outer_pid() -> Result<String> {
    let link = fs::read_link("/proc/self").context("cannot read /proc/self")?;
    Ok(link.to_string_lossy().into_owned())
}

fn step_address(number: u8) -> Result<Ipv4Addr> {
    let last = FIRST_STEP.checked_add(number).filter(|last| *last < 255);
    Ok(Ipv4Addr::new(
        10,
        0,
        2,
        last.context("too many concurrent steps with network access")?,
    ))
}
