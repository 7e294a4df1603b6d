//! The network of steps.
//!
//! ```text
//!  step's namespace        process "net"              PID 1                 host
//!  ┌──────────────┐ TUN ┌─────────────────┐ stream ┌────────┐  vsock  ┌────────────┐
//!  │ eth0, routes ├─────┤ stack: packets  ├────────┤ pump:  ├─────────┤ dials what │
//!  └──────────────┘     │ become flows    │        │ bytes  │         │ is allowed │
//!                       └─────────────────┘        └────────┘         └────────────┘
//! ```
//!
//! The VM has no network device. Each step has a network namespace of its own, with loopback and, if
//! it has network access, a TUN device that takes every packet. The packets end in one unprivileged
//! process, which turns them into flows ([`wire::flow`]); the host decides about each and makes the
//! connections.
//!
//! **Laws:** PID 1 reads no packet and no frame of a flow. A step reaches nothing but its device: not
//! the process `net`, nor other steps, nor anything else in the VM. Without the process `net` the VM
//! ends.
//!
//! | module | content |
//! |---|---|
//! | [`child`], [`calls`] | the process `net`, and what it may do |
//! | [`serve`] | its thread for one step |
//! | [`stack`] | packets become flows, without I/O |
//! | [`tun`] | the device |
//! | [`pump`] | PID 1's part |
//! | [`netlink`] | addresses and routes of a step |

mod calls;
pub(crate) mod child;
mod netlink;
mod pump;
mod serve;
mod stack;
#[cfg(test)]
mod tests;
mod tun;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair};
use nix::unistd::pipe2;
use wire::flow::STEP_ADDRESSES;

use crate::console;
use crate::reap::Reaper;
use crate::sandbox::{self, Program};
use crate::sys;
use netlink::Netlink;

pub(crate) use pump::Pump;

/// The longest packet, which is the longest there is: few packets for many bytes.
const MTU: usize = 65_535;

/// Packets of the step's kernel that may wait, so that a thousand connections that begin at once lose
/// none.
const QUEUE: u32 = 5_000;

/// How much may wait in the stream between the process `net` and PID 1, either way, in bytes: the largest
/// window of a flow, so that each of the two seldom waits for the other.
const STREAM_BUFFER: usize = wire::flow::MAX_FLOW_WINDOW as usize;

/// The name of the device, as in other containers.
const DEVICE: &str = "eth0";

/// Index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// How much of what the process `net` says is kept for the console, in bytes.
const LAST_WORDS: u64 = 4 << 10;

/// The process `net`, as PID 1 knows it.
#[derive(Debug)]
pub(crate) struct Net {
    /// Steps are sent to it on this socket.
    control: OwnedFd,
}

/// What a step's first program needs to set up its network.
#[derive(Debug)]
pub(crate) struct StepNetwork {
    /// Where the process `net` takes steps.
    pub(crate) control: OwnedFd,
    /// The end of the stream that is for the process `net`.
    pub(crate) theirs: OwnedFd,
}

impl Net {
    /// Starts the process `net`. If it ends, so does the VM.
    pub(crate) fn start(program: &Program, reaper: &Reaper) -> Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let (words, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let null = program.null();
        let stderr = sys::duplicate_above(stderr.as_fd())?;
        let theirs = sys::duplicate_above(theirs.as_fd())?;
        let name = CString::new(child::NAME)?;
        let cgroup = sandbox::network_cgroup()?;
        let spawn = sys::Spawn {
            program: program.file(),
            args: &[&name],
            files: &[null, null, stderr.as_fd(), theirs.as_fd()],
            cgroup: cgroup.as_fd(),
            namespaces: sandbox::NAMESPACES,
        };
        let started = reaper.spawn(|| sys::spawn(&spawn));
        let (child, _pidfd) = started.context("cannot start the process net")?;
        let watch = move || {
            let mut last = Vec::new();
            let mut words = File::from(words);
            // What is lost here is lost to an error report.
            words.by_ref().take(LAST_WORDS).read_to_end(&mut last).ok();
            std::io::copy(&mut words, &mut std::io::sink()).ok();
            let ended = child.wait();
            let words = last.escape_ascii();
            console::print(&format!(
                "agent: the process net has ended: {ended:?}: {words}"
            ));
            console::power_off()
        };
        thread::Builder::new().name("net".into()).spawn(watch)?;
        Ok(Self { control: ours })
    }

    /// Makes the stream of a step. Returns PID 1's end, and what the step's first program needs.
    pub(crate) fn connect(&self) -> Result<(UnixStream, StepNetwork)> {
        let (ours, theirs) = UnixStream::pair()?;
        for end in [&ours, &theirs] {
            setsockopt(end, SndBufForce, &STREAM_BUFFER).context("cannot size a stream")?;
        }
        let network = StepNetwork {
            control: sys::duplicate_above(self.control.as_fd())?,
            theirs: sys::duplicate_above(theirs.as_fd())?,
        };
        Ok((ours, network))
    }
}

/// Takes the next step: its device and its stream. `None`: PID 1 is gone.
fn receive_step(control: BorrowedFd<'_>) -> Result<Option<[OwnedFd; 2]>> {
    sys::receive_files(control).context("cannot receive a step")
}

/// Sets up the network of the calling process, which is alone in a new network namespace. With
/// `network`, it gets a device, which the process `net` serves.
pub(crate) fn set_up_step(network: Option<StepNetwork>) -> Result<()> {
    // As with other builders, neither ping nor low ports need a privilege.
    set("ipv4/ping_group_range", "0 2147483647")?;
    set("ipv4/ip_unprivileged_port_start", "0")?;
    if let Some(network) = network {
        connect(network).context("cannot connect the step to the network")?;
    }
    Netlink::open()?.up(LOOPBACK)
}

fn connect(network: StepNetwork) -> Result<()> {
    let device = make_device()?;
    let files = [device.as_fd(), network.theirs.as_fd()];
    sys::send_files(network.control.as_fd(), files).context("cannot reach the process net")
}

/// Makes the device of this network namespace, with addresses and routes.
fn make_device() -> Result<OwnedFd> {
    // There are no neighbours and no routers to look for.
    set("ipv6/conf/default/accept_ra", "0")?;
    set("ipv6/conf/default/addr_gen_mode", "1")?;
    // The usual buffers hold one of the longest packets; with many, both ends work at once.
    set("ipv4/tcp_rmem", "4096 4194304 6291456")?;
    set("ipv4/tcp_wmem", "4096 262144 4194304")?;
    let file = tun::create(DEVICE)?;
    let index = nix::net::if_::if_nametoindex(DEVICE)?;
    let mut netlink = Netlink::open()?;
    netlink.size(index, u32::try_from(MTU)?, QUEUE)?;
    let (v4, v6) = STEP_ADDRESSES;
    let addresses = [IpAddr::V4(v4), IpAddr::V6(v6)];
    for address in addresses {
        netlink.address(index, address)?;
    }
    netlink.up(index)?;
    for address in addresses {
        netlink.default_route(index, address)?;
    }
    Ok(file)
}

fn set(path: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{path}");
    fs::write(&path, value).with_context(|| format!("cannot set {path}"))
}
