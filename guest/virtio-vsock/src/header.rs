//! The packet header of virtio-vsock (virtio 1.2, 5.10.6), its operations and its flags.
//!
//! Invariant: decoding cannot fail and validates nothing. A [`Header`] holds the numbers that the
//! peer wrote; its user decides whether they make sense.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = size_of::<Wire>();

/// The context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`: connection-oriented, without message boundaries. The only packet type
/// that driver and device support.
pub const TYPE_STREAM: u16 = 1;

/// What a packet asks for (virtio 1.2, 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Open a connection.
    Request,
    /// The connection is open.
    Response,
    /// There is no such connection, or it is closed.
    Reset,
    /// The sender will not send, or not receive, any more; see [`Shutdown`].
    Shutdown,
    /// Bytes of the stream (`VIRTIO_VSOCK_OP_RW`).
    Data,
    /// Carries nothing but the sender's `buf_alloc` and `fwd_cnt`.
    CreditUpdate,
    /// Asks for a [`Self::CreditUpdate`].
    CreditRequest,
}

impl Op {
    /// The operation with this number, if the specification defines one.
    #[must_use]
    #[inline]
    pub fn from_wire(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Reset),
            4 => Some(Self::Shutdown),
            5 => Some(Self::Data),
            6 => Some(Self::CreditUpdate),
            7 => Some(Self::CreditRequest),
            _ => None,
        }
    }

    /// The number of this operation.
    #[must_use]
    #[inline]
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// Which directions a side has shut down (virtio 1.2, 5.10.6.5). Bits are only ever added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shutdown(u32);

impl Shutdown {
    /// The sender of the packet will not receive any more.
    pub const RECEIVE: Self = Self(1);
    /// The sender of the packet will not send any more.
    pub const SEND: Self = Self(2);
    /// Both directions.
    pub const BOTH: Self = Self(3);

    /// Reads the flags of a packet. Bits without a meaning are dropped.
    #[must_use]
    #[inline]
    pub fn from_wire(flags: u32) -> Self {
        Self(flags & Self::BOTH.0)
    }

    /// The flags of a packet.
    #[must_use]
    #[inline]
    pub fn to_wire(self) -> u32 {
        self.0
    }

    /// Adds the directions of `other`.
    #[inline]
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all directions of `other` are included.
    #[must_use]
    #[inline]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A header as it lies in memory.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    src_cid: U64,
    dst_cid: U64,
    src_port: U32,
    dst_port: U32,
    len: U32,
    kind: U16,
    op: U16,
    flags: U32,
    buf_alloc: U32,
    fwd_cnt: U32,
}

/// A packet header, with the numbers that the peer wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// [`TYPE_STREAM`], or a type that is not supported.
    pub kind: u16,
    /// Number of an [`Op`], or one that is not defined.
    pub op: u16,
    /// [`Shutdown`] flags if the operation is [`Op::Shutdown`].
    pub flags: u32,
    /// Bytes of the sender's receive buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender's application has read so far, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let wire: Wire = zerocopy::transmute!(*bytes);
        Self {
            src_cid: wire.src_cid.get(),
            dst_cid: wire.dst_cid.get(),
            src_port: wire.src_port.get(),
            dst_port: wire.dst_port.get(),
            len: wire.len.get(),
            kind: wire.kind.get(),
            op: wire.op.get(),
            flags: wire.flags.get(),
            buf_alloc: wire.buf_alloc.get(),
            fwd_cnt: wire.fwd_cnt.get(),
        }
    }

    /// Reads the header at the beginning of `bytes`. `None` if there are fewer than [`HEADER_LEN`].
    #[must_use]
    #[inline]
    pub fn decode_prefix(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::decode)
    }

    /// Writes a header.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(Wire {
            src_cid: self.src_cid.into(),
            dst_cid: self.dst_cid.into(),
            src_port: self.src_port.into(),
            dst_port: self.dst_port.into(),
            len: self.len.into(),
            kind: self.kind.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        })
    }

    /// The reset that answers this packet when it belongs to no connection. `None` for a reset: two
    /// sides could answer each other's resets for ever.
    #[must_use]
    pub fn reset_reply(&self) -> Option<Self> {
        (self.op != Op::Reset.to_wire()).then(|| Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.to_wire(),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 0x1112_1314_1516_1718,
            src_port: 0x2122_2324,
            dst_port: 0x3132_3334,
            len: 0x4142_4344,
            kind: 0x5152,
            op: 0x6162,
            flags: 0x7172_7374,
            buf_alloc: 0x8182_8384,
            fwd_cnt: 0x9192_9394,
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), 44);
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x24, 0x23, 0x22, 0x21]);
        assert_eq!(bytes[28..32], [0x52, 0x51, 0x62, 0x61]);
        assert_eq!(bytes[40..], [0x94, 0x93, 0x92, 0x91]);
    }

    #[test]
    fn seven_numbers_are_operations_and_survive_the_wire() {
        let known = (0..=u16::MAX).filter_map(|n| Op::from_wire(n).map(|op| (n, op)));
        let known: Vec<_> = known.collect();
        assert!(known.iter().all(|&(n, op)| op.to_wire() == n));
        let numbers: Vec<u16> = known.into_iter().map(|(n, _)| n).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_reset_is_not_answered() {
        let reset = Header {
            op: Op::Reset.to_wire(),
            ..Header::default()
        };
        assert_eq!(reset.reset_reply(), None);
    }

    proptest! {
        #[test]
        fn decoding_and_encoding_are_inverse(bytes: [[u8; 11]; 4]) {
            let bytes: [u8; HEADER_LEN] = bytes.concat().try_into().unwrap();
            let header = Header::decode(&bytes);
            prop_assert_eq!(header.encode(), bytes);
            prop_assert_eq!(Header::decode_prefix(&bytes), Some(header));
            prop_assert_eq!(Header::decode_prefix(&bytes[1..]), None);
        }
    }
}
