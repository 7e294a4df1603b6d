//! The few rtnetlink requests that the network of steps needs.
//!
//! A small writer builds the messages and keeps lengths and alignment right. Each request waits for
//! its acknowledgement.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;

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

    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLM_F_REQUEST: u16 = 0x1;
    pub(super) const NLM_F_ACK: u16 = 0x4;
    pub(super) const NLM_F_REPLACE: u16 = 0x100;
    pub(super) const NLM_F_CREATE: u16 = 0x400;

    pub(super) const IFLA_MTU: u16 = 4;
    pub(super) const IFLA_TXQLEN: u16 = 13;
    pub(super) const IFF_UP: u32 = 1;

    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const IFA_F_NODAD: u8 = 2;

    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTPROT_STATIC: u8 = 4;
    pub(super) const RTN_UNICAST: u8 = 1;
    pub(super) const RT_TABLE_MAIN: u8 = 254;
    pub(super) const RT_SCOPE_UNIVERSE: u8 = 0;
    pub(super) const RT_SCOPE_LINK: u8 = 253;

    pub(super) const AF_INET: u8 = 2;
    pub(super) const AF_INET6: u8 = 10;
}
use constants::{
    AF_INET, AF_INET6, IFA_ADDRESS, IFA_F_NODAD, IFA_LOCAL, IFF_UP, IFLA_MTU, IFLA_TXQLEN,
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR, RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_OIF, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST,
    RTPROT_STATIC,
};

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

    /// Brings an interface up.
    pub(super) fn up(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.interface(index, IFF_UP);
        self.request(message)
            .context("cannot bring up a network interface")
    }

    /// Sets the longest packet of an interface, and how many may wait for its reader.
    pub(super) fn size(&mut self, index: u32, mtu: u32, queue: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.interface(index, 0);
        message.attribute(IFLA_MTU, &mtu.to_le_bytes());
        message.attribute(IFLA_TXQLEN, &queue.to_le_bytes());
        self.request(message)
            .context("cannot set the sizes of a network interface")
    }

    /// Gives an interface an address that has no neighbours.
    pub(super) fn address(&mut self, index: u32, address: IpAddr) -> Result<()> {
        let mut message = Message::new(RTM_NEWADDR, CREATE);
        let (number, prefix, bytes) = family(address);
        // ifaddrmsg: family, prefix length, flags, scope, index
        message.bytes(&[number, prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE]);
        message.bytes(&index.to_le_bytes());
        message.attribute(IFA_LOCAL, &bytes);
        message.attribute(IFA_ADDRESS, &bytes);
        self.request(message).context("cannot set an address")
    }

    /// Sends every packet of a family, that of `like`, to an interface.
    pub(super) fn default_route(&mut self, index: u32, like: IpAddr) -> Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, CREATE);
        let (number, ..) = family(like);
        // rtmsg: family, two lengths, tos, table, protocol, scope, type, flags
        message.bytes(&[number, 0, 0, 0, RT_TABLE_MAIN]);
        message.bytes(&[RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST]);
        message.bytes(&0_u32.to_le_bytes());
        message.attribute(RTA_OIF, &index.to_le_bytes());
        self.request(message).context("cannot add a route")
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

/// Number of the family of an address, length in bits, and the address itself.
fn family(address: IpAddr) -> (u8, u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, 128, address.octets().to_vec()),
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
