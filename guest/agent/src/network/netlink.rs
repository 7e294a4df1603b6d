//! The few rtnetlink requests that the network of steps needs.
//!
//! A small writer builds the messages and keeps lengths and alignment right. Each request waits for
//! its acknowledgement.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const _: () = assert!(
    cfg!(target_endian = "little"),
    "netlink uses the byte order of the machine"
);

/// Constants of rtnetlink. `libc` has some of them, but not for every C library.
mod constants {
    pub(super) const RTM_NEWLINK: u16 = 16;
    pub(super) const RTM_NEWADDR: u16 = 20;
    pub(super) const RTM_NEWROUTE: u16 = 24;
    pub(super) const RTM_NEWNEIGH: u16 = 28;
    pub(super) const RTM_NEWRULE: u16 = 32;

    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLM_F_REQUEST: u16 = 0x1;
    pub(super) const NLM_F_ACK: u16 = 0x4;
    pub(super) const NLM_F_REPLACE: u16 = 0x100;
    pub(super) const NLM_F_CREATE: u16 = 0x400;

    pub(super) const IFLA_ADDRESS: u16 = 1;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_LINKINFO: u16 = 18;
    pub(super) const IFLA_NET_NS_FD: u16 = 28;
    pub(super) const IFLA_INFO_KIND: u16 = 1;
    pub(super) const IFLA_INFO_DATA: u16 = 2;
    pub(super) const VETH_INFO_PEER: u16 = 1;
    pub(super) const IFF_UP: u32 = 1;

    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;

    pub(super) const NDA_DST: u16 = 1;
    pub(super) const NDA_LLADDR: u16 = 2;
    pub(super) const NUD_PERMANENT: u16 = 0x80;

    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_GATEWAY: u16 = 5;
    pub(super) const RTNH_F_ONLINK: u32 = 4;
    pub(super) const RTPROT_STATIC: u8 = 4;
    pub(super) const RTN_UNICAST: u8 = 1;
    pub(super) const RTN_PROHIBIT: u8 = 8;
    pub(super) const RT_SCOPE_UNIVERSE: u8 = 0;
    pub(super) const RT_SCOPE_LINK: u8 = 253;

    pub(super) const FRA_IIFNAME: u16 = 3;
    pub(super) const FRA_PRIORITY: u16 = 6;
    pub(super) const FR_ACT_TO_TBL: u8 = 1;

    pub(super) const AF_INET: u8 = 2;
}
use constants::{
    AF_INET, FR_ACT_TO_TBL, FRA_IIFNAME, FRA_PRIORITY, IFA_ADDRESS, IFA_LOCAL, IFF_UP,
    IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_NET_NS_FD,
    NDA_DST, NDA_LLADDR, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR,
    NUD_PERMANENT, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTA_DST, RTA_GATEWAY, RTA_OIF, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE, RTN_PROHIBIT, RTN_UNICAST, RTNH_F_ONLINK,
    RTPROT_STATIC, VETH_INFO_PEER,
};

/// A routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// The kernel's main table.
    Main = 254,
    /// The table for packets that steps send.
    Steps = 100,
}

/// A route to a network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) table: Table,
    pub(super) to: (Ipv4Addr, u8),
    pub(super) via: Option<Ipv4Addr>,
    pub(super) device: u32,
}

/// A change of a network interface.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InterfaceChange {
    /// The interface.
    pub(super) index: u32,
    /// Brings it up.
    pub(super) up: bool,
    /// Moves it to this network namespace.
    pub(super) namespace: Option<RawFd>,
}

/// An rtnetlink socket. It acts on the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: File,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        Ok(Self {
            socket: File::from(socket),
            sequence: 0,
        })
    }

    pub(super) fn up(&mut self, index: u32) -> Result<()> {
        self.change(&InterfaceChange {
            index,
            up: true,
            namespace: None,
        })
        .context("cannot bring up a network interface")
    }

    pub(super) fn change(&mut self, change: &InterfaceChange) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        let flags = if change.up { IFF_UP } else { 0 };
        message.interface(change.index, flags);
        if let Some(namespace) = change.namespace {
            message.attribute(IFLA_NET_NS_FD, &namespace.to_le_bytes());
        }
        self.request(message)
    }

    /// Creates a veth pair: one end here, the other in another namespace.
    pub(super) fn make_veth(
        &mut self,
        here: (&str, [u8; 6]),
        there: (&str, [u8; 6]),
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE);
        message.interface(0, 0);
        message.device(here);
        message.nested(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    peer.interface(0, 0);
                    peer.device(there);
                    peer.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_le_bytes());
                });
            });
        });
        self.request(message).context("cannot create a veth pair")
    }

    /// Gives an interface an address with a prefix length of 32: it has no neighbours of its own.
    pub(super) fn address(&mut self, index: u32, address: Ipv4Addr) -> Result<()> {
        let mut message = Message::new(RTM_NEWADDR, CREATE);
        // ifaddrmsg: family, prefix length, flags, scope, index
        message.bytes(&[AF_INET, 32, 0, RT_SCOPE_UNIVERSE]);
        message.bytes(&index.to_le_bytes());
        message.attribute(IFA_LOCAL, &address.octets());
        message.attribute(IFA_ADDRESS, &address.octets());
        self.request(message).context("cannot set an address")
    }

    /// Adds a permanent entry for the hardware address of a neighbour.
    pub(super) fn neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
        let mut message = Message::new(RTM_NEWNEIGH, CREATE);
        // ndmsg: family, padding, index, state, flags, type
        message.bytes(&[AF_INET, 0, 0, 0]);
        message.bytes(&index.to_le_bytes());
        message.bytes(&NUD_PERMANENT.to_le_bytes());
        message.bytes(&[0, 0]);
        message.attribute(NDA_DST, &address.octets());
        message.attribute(NDA_LLADDR, &mac);
        self.request(message).context("cannot add a neighbour")
    }

    pub(super) fn route(&mut self, route: &Route) -> Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, CREATE);
        let scope = if route.via.is_some() {
            RT_SCOPE_UNIVERSE
        } else {
            RT_SCOPE_LINK
        };
        let flags = if route.via.is_some() {
            RTNH_F_ONLINK
        } else {
            0
        };
        message.route(route.to.1, route.table, scope, RTN_UNICAST, flags);
        message.attribute(RTA_DST, &route.to.0.octets());
        message.attribute(RTA_OIF, &route.device.to_le_bytes());
        if let Some(via) = route.via {
            message.attribute(RTA_GATEWAY, &via.octets());
        }
        self.request(message).context("cannot add a route")
    }

    /// Prohibits packets to a network.
    pub(super) fn prohibit(&mut self, table: Table, to: (Ipv4Addr, u8)) -> Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, CREATE);
        message.route(to.1, table, RT_SCOPE_UNIVERSE, RTN_PROHIBIT, 0);
        message.attribute(RTA_DST, &to.0.octets());
        self.request(message).context("cannot prohibit a network")
    }

    /// Routes packets that arrive on an interface, or all packets, by a table.
    pub(super) fn rule(&mut self, priority: u32, from: Option<&str>, table: Table) -> Result<()> {
        let mut message = Message::new(RTM_NEWRULE, CREATE);
        // fib_rule_hdr: family, lengths, tos, table, two reserved, action, flags
        message.bytes(&[AF_INET, 0, 0, 0, table as u8, 0, 0, FR_ACT_TO_TBL]);
        message.bytes(&0_u32.to_le_bytes());
        message.attribute(FRA_PRIORITY, &priority.to_le_bytes());
        if let Some(from) = from {
            message.attribute(FRA_IIFNAME, &[from.as_bytes(), b"\0"].concat());
        }
        self.request(message).context("cannot add a routing rule")
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: Message) -> Result<()> {
        self.sequence += 1;
        self.socket.write_all(&message.finish(self.sequence))?;
        let mut answer = [0; 4096];
        let n = self.socket.read(&mut answer)?;
        acknowledged(answer.get(..n).unwrap_or_default(), self.sequence)
    }
}

/// Reads an acknowledgement: a header and an error number, zero for success.
fn acknowledged(answer: &[u8], sequence: u32) -> Result<()> {
    let word = |at: usize| {
        answer
            .get(at..)?
            .split_first_chunk()
            .map(|(word, _)| u32::from_le_bytes(*word))
    };
    let (Some(kind), Some(number), Some(error)) = (word(4), word(8), word(16)) else {
        bail!("the kernel's answer is too short");
    };
    if kind & 0xffff != u32::from(NLMSG_ERROR) || number != sequence {
        bail!("the kernel answered another request");
    }
    match error.cast_signed() {
        0 => Ok(()),
        error => Err(Errno::from_raw(error.wrapping_neg()).into()),
    }
}

const REQUEST: u16 = NLM_F_REQUEST | NLM_F_ACK;
const CREATE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const HEADER: usize = 16;

/// A message under construction.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self {
            bytes: vec![0; HEADER],
        };
        message.put(4, &kind.to_le_bytes());
        message.put(6, &(REQUEST | flags).to_le_bytes());
        message
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let field = self.bytes.iter_mut().skip(at);
        for (to, from) in field.zip(bytes) {
            *to = *from;
        }
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.put(0, &length.to_le_bytes());
        self.put(8, &sequence.to_le_bytes());
        self.bytes
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// ifinfomsg: family, padding, type, index, flags, mask of flags to change.
    fn interface(&mut self, index: u32, flags: u32) {
        self.bytes(&[0; 4]);
        for word in [index, flags, flags] {
            self.bytes(&word.to_le_bytes());
        }
    }

    fn device(&mut self, (name, mac): (&str, [u8; 6])) {
        self.attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.attribute(IFLA_ADDRESS, &mac);
    }

    /// rtmsg: family, two lengths, tos, table, protocol, scope, type, flags.
    fn route(&mut self, prefix: u8, table: Table, scope: u8, kind: u8, flags: u32) {
        self.bytes(&[
            AF_INET,
            prefix,
            0,
            0,
            table as u8,
            RTPROT_STATIC,
            scope,
            kind,
        ]);
        self.bytes(&flags.to_le_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes(value));
    }

    /// An attribute whose value `fill` writes; its length is known only afterwards.
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_le_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.put(start, &length.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_have_their_length() {
        let mut message = Message::new(RTM_NEWLINK, CREATE);
        message.nested(7, |inner| {
            inner.attribute(1, b"abcde");
            inner.attribute(2, b"");
        });
        let bytes = message.finish(3);
        let want = [
            &[36, 0, 0, 0, 16, 0, 5, 5, 3, 0, 0, 0, 0, 0, 0, 0][..],
            &[
                20, 0, 7, 0, 9, 0, 1, 0, b'a', b'b', b'c', b'd', b'e', 0, 0, 0, 4, 0, 2, 0,
            ],
        ];
        assert_eq!(bytes, want.concat());
    }

    #[test]
    fn an_answer_is_an_error_number_for_this_request() {
        let mut answer = vec![36, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(acknowledged(&answer, 9).is_ok());
        assert!(acknowledged(&answer, 8).is_err());
        answer[16..20].copy_from_slice(&(-17_i32).to_le_bytes());
        let err = acknowledged(&answer, 9).unwrap_err();
        assert_eq!(err.downcast_ref(), Some(&Errno::EEXIST));
        assert!(acknowledged(&answer[..18], 9).is_err());
    }
}
