//! Frames: a fixed header, parsed in place, and a body.
//!
//! **Law:** no byte of a peer makes this module panic, and nothing is buffered or allocated for a
//! length that was not checked first. `Ok(None)` always means "read more".
//!
//! ```
//! use wire::{HEADER_LEN, Kind, frame};
//!
//! let bytes = frame::encode(Kind::Data, 0, 4, 1024, b"some bytes of a layer")?;
//! assert_eq!(bytes.len(), HEADER_LEN + 21);
//!
//! // A decoder that has not received the whole frame asks for more.
//! assert_eq!(frame::decode(&bytes[..40])?, None);
//!
//! let (frame, rest) = frame::decode(&bytes)?.expect("a whole frame");
//! assert_eq!((frame.kind, frame.id, frame.offset), (Kind::Data, 4, 1024));
//! assert_eq!(frame.body, b"some bytes of a layer");
//! assert!(rest.is_empty());
//!
//! // Every altered bit is an error, but for the bytes of flows.
//! let mut altered = bytes.clone();
//! altered[50] ^= 1;
//! assert!(frame::decode(&altered).is_err());
//! # Ok::<(), wire::FrameError>(())
//! ```
//!
//! The checksum covers header and body, but only the header of [`Kind::FlowData`]. Bytes that are lost,
//! repeated or moved are found there, too, since the next header is not where it should be; altered
//! ones are not. Both ends of these bytes are programs that carry them on as TCP does, nothing of them
//! is kept, and an emulated guest has no time to spare for looking at each byte once more.

mod body;
mod read;

use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::limits::{MAX_ATTACH, MAX_BODY, MAX_FAILURE, MAX_FLOW_DATA, MAX_FLOW_OPEN, MAX_MESSAGE};

pub use body::Body;
pub use read::{ReadError, read, read_body, read_header};

/// Length of every header, in bytes.
pub const HEADER_LEN: usize = 32;

/// Length of the body of [`Kind::End`]: the digest.
pub const END_BODY: u32 = 8;

/// First two bytes of every frame. A reader that lost its position fails here at once instead of
/// waiting for a body of random length.
const MAGIC: u16 = u16::from_le_bytes(*b"cd");

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame of each side on the control connection: [`crate::Hello`].
    Hello = 1,
    /// A [`crate::Request`]; `id` is its number.
    Request = 2,
    /// A [`crate::Reply`]; `id` repeats the number of the request.
    Reply = 3,
    /// Heartbeat; `id` is its number. No body.
    Ping = 4,
    /// Answer to a heartbeat, with its number. No body.
    Pong = 5,
    /// First frame of a transfer connection: [`crate::Attach`].
    Attach = 6,
    /// Data of a transfer; `id` is the transfer, `offset` the position of its first byte.
    Data = 7,
    /// End of a transfer: `offset` is the total length, the body its digest.
    End = 8,
    /// The sender gives up the transfer: [`crate::Failure`].
    Abort = 9,
    /// The guest asks for a flow: [`crate::flow::FlowOpen`]; `id` is its number.
    FlowOpen = 10,
    /// The host has connected it: [`crate::flow::FlowOpened`].
    FlowOpened = 11,
    /// The host has not: [`crate::flow::FlowRefused`].
    FlowRefused = 12,
    /// Data of a flow; `offset` is the position of its first byte.
    FlowData = 13,
    /// The receiver of a flow has room for `offset` bytes more. No body.
    FlowCredit = 14,
    /// One direction of a flow ends after `offset` bytes. No body.
    FlowEnd = 15,
    /// A flow is over at once. No body.
    FlowReset = 16,
}

impl Kind {
    /// Longest body that a frame of this kind may have.
    #[must_use]
    pub const fn max_body(self) -> u32 {
        match self {
            Self::Hello | Self::Request | Self::Reply => MAX_MESSAGE,
            Self::Attach => MAX_ATTACH,
            Self::Ping | Self::Pong | Self::FlowCredit | Self::FlowEnd | Self::FlowReset => 0,
            Self::FlowOpen | Self::FlowOpened | Self::FlowRefused => MAX_FLOW_OPEN,
            Self::FlowData => MAX_FLOW_DATA,
            Self::Data => MAX_BODY,
            Self::End => END_BODY,
            Self::Abort => MAX_FAILURE,
        }
    }
}

impl Kind {
    /// Whether the checksum covers the body, too.
    const fn is_covered(self) -> bool {
        !matches!(self, Self::FlowData)
    }
}

impl TryFrom<u8> for Kind {
    type Error = FrameError;
    fn try_from(kind: u8) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Ping,
            5 => Self::Pong,
            6 => Self::Attach,
            7 => Self::Data,
            8 => Self::End,
            9 => Self::Abort,
            10 => Self::FlowOpen,
            11 => Self::FlowOpened,
            12 => Self::FlowRefused,
            13 => Self::FlowData,
            14 => Self::FlowCredit,
            15 => Self::FlowEnd,
            16 => Self::FlowReset,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }
}

/// Why bytes are not a frame. Each of these ends the connection: there is no way to find the
/// next frame in a broken stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The first two bytes are not those of a frame.
    #[error("not a frame: starts with {0:#06x}")]
    BadMagic(u16),
    /// This version does not know the kind.
    #[error("unknown kind of frame: {0}")]
    UnknownKind(u8),
    /// The body is longer than its kind allows.
    #[error("frame of {len} bytes is too long for {kind:?}")]
    TooLong {
        /// The kind.
        kind: Kind,
        /// The length that the header states.
        len: u32,
    },
    /// Header and body do not match the checksum.
    #[error("wrong checksum in a {0:?} frame")]
    Corrupt(Kind),
}

/// The header as it is on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    kind: u8,
    flags: u8,
    len: U32,
    id: U64,
    offset: U64,
    check: U64,
}

const _: () = assert!(
    size_of::<RawHeader>() == HEADER_LEN,
    "the header has a fixed length"
);

impl RawHeader {
    /// XXH3-64 of the body, seeded with that of the header without its checksum: one pass over the
    /// bytes covers both. Where the body is not covered, it is hashed as an empty one.
    fn checksum(self, kind: Kind, body: &[u8]) -> u64 {
        let covered = if kind.is_covered() { body } else { &[] };
        xxh3_64_with_seed(covered, self.seed())
    }

    /// The checksum of the header alone.
    fn seed(mut self) -> u64 {
        self.check = U64::ZERO;
        xxh3_64(self.as_bytes())
    }
}

/// A header whose kind and length were checked. Its body has not been read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of the frame.
    pub kind: Kind,
    /// Meaning depends on the kind; zero if unused.
    pub flags: u8,
    /// Length of the body, at most [`Kind::max_body`].
    pub len: u32,
    /// Request, heartbeat, transfer or flow number.
    pub id: u64,
    /// Offset within a transfer.
    pub offset: u64,
    /// Checksum over header and, except for data of flows, body.
    pub check: u64,
}

impl Header {
    /// Parses a header and checks everything but the checksum.
    ///
    /// # Errors
    /// If this is not a header, or its length is above the limit of its kind.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let raw: RawHeader = transmute!(*bytes);
        if raw.magic.get() != MAGIC {
            return Err(FrameError::BadMagic(raw.magic.get()));
        }
        let kind = Kind::try_from(raw.kind)?;
        let len = raw.len.get();
        if len > kind.max_body() {
            return Err(FrameError::TooLong { kind, len });
        }
        Ok(Self {
            kind,
            flags: raw.flags,
            len,
            id: raw.id.get(),
            offset: raw.offset.get(),
            check: raw.check.get(),
        })
    }

    /// Joins the header with its body of [`Self::len`] bytes and compares the checksum.
    ///
    /// # Errors
    /// If the body has another length or another checksum.
    pub fn verify(self, body: &[u8]) -> Result<Frame<'_>, FrameError> {
        let same_length = usize::try_from(self.len) == Ok(body.len());
        if !same_length || self.raw().checksum(self.kind, body) != self.check {
            return Err(FrameError::Corrupt(self.kind));
        }
        let Self {
            kind,
            flags,
            id,
            offset,
            check,
            ..
        } = self;
        Ok(Frame {
            kind,
            flags,
            id,
            offset,
            body,
            check,
        })
    }

    /// Starts to verify a body that arrives in pieces.
    #[must_use]
    pub fn body(self) -> Body {
        Body::new(self, Xxh3::with_seed(self.raw().seed()))
    }

    fn raw(self) -> RawHeader {
        RawHeader {
            magic: U16::new(MAGIC),
            kind: self.kind as u8,
            flags: self.flags,
            len: U32::new(self.len),
            id: U64::new(self.id),
            offset: U64::new(self.offset),
            check: U64::new(self.check),
        }
    }
}

/// A whole, verified frame. It borrows its body from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind of the frame.
    pub kind: Kind,
    /// Meaning depends on the kind. For the output of a step, bit 0 is set for stderr.
    pub flags: u8,
    /// Request, heartbeat, transfer or flow number.
    pub id: u64,
    /// Offset within a transfer.
    pub offset: u64,
    /// The body.
    pub body: &'a [u8],
    /// The checksum that was verified.
    pub check: u64,
}

/// Encodes the header for a body. The caller sends the body after it, so that bulk data is not
/// copied.
///
/// # Errors
/// If the body is longer than its kind allows.
pub fn encode_header(
    kind: Kind,
    flags: u8,
    id: u64,
    offset: u64,
    body: &[u8],
) -> Result<[u8; HEADER_LEN], FrameError> {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if len > kind.max_body() {
        return Err(FrameError::TooLong { kind, len });
    }
    let mut raw = Header {
        kind,
        flags,
        len,
        id,
        offset,
        check: 0,
    }
    .raw();
    raw.check = U64::new(raw.checksum(kind, body));
    Ok(transmute!(raw))
}

/// Encodes a whole frame; meant for small ones, since it copies the body.
///
/// # Errors
/// If the body is longer than its kind allows.
pub fn encode(
    kind: Kind,
    flags: u8,
    id: u64,
    offset: u64,
    body: &[u8],
) -> Result<Vec<u8>, FrameError> {
    let header = encode_header(kind, flags, id, offset, body)?;
    let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(body);
    Ok(frame)
}

/// Splits the first frame off `buf` and returns it with the rest. `Ok(None)` means that more bytes
/// are needed. One frame needs at most [`HEADER_LEN`] plus the limit of its kind.
///
/// # Errors
/// If `buf` does not start with a frame, as early as its bytes show that.
pub fn decode(buf: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, FrameError> {
    let Some((header, rest)) = buf.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = Header::parse(header)?;
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    let Some((body, rest)) = rest.split_at_checked(len) else {
        return Ok(None);
    };
    Ok(Some((header.verify(body)?, rest)))
}
