//! Frames: a fixed header read in place, and a body.
//!
//! The law of this module: no byte of a peer makes it panic, and nothing is buffered or allocated
//! for a length that was not checked first. `Ok(None)` always means "read more".

use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::limits::{MAX_ATTACH, MAX_BODY, MAX_FAILURE, MAX_MESSAGE};

/// Length of every header, in bytes.
pub const HEADER_LEN: usize = 32;

/// Length of the body of [`Kind::End`]: the digest.
pub const END_BODY: u32 = 8;

/// First two bytes of every frame. A reader that lost its place fails here at once instead of
/// waiting for a body of some random length.
const MAGIC: u16 = u16::from_le_bytes(*b"cd");

/// What a frame is.
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
    /// A piece of a transfer; `id` is the transfer, `offset` that of its first byte.
    Data = 7,
    /// All of a transfer was sent: `offset` is the total length, the body its digest.
    End = 8,
    /// The sender of a transfer gives up: [`crate::Failure`].
    Abort = 9,
}

impl Kind {
    /// Longest body that a frame of this kind may have.
    #[must_use]
    pub const fn max_body(self) -> u32 {
        match self {
            Self::Hello | Self::Request | Self::Reply => MAX_MESSAGE,
            Self::Attach => MAX_ATTACH,
            Self::Ping | Self::Pong => 0,
            Self::Data => MAX_BODY,
            Self::End => END_BODY,
            Self::Abort => MAX_FAILURE,
        }
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
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }
}

/// Why bytes are not a frame. Each of these ends the connection: there is no way to find the
/// next frame in a stream that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The first two bytes are not those of a frame.
    #[error("not a frame: it begins with {0:#06x}")]
    BadMagic(u16),
    /// A kind that this version does not know.
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
    /// Header and body do not agree with the checksum.
    #[error("checksum of a {0:?} frame is wrong")]
    Corrupt(Kind),
}

/// The header as it lies on the wire.
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
    /// XXH3-64 of the body, seeded by that of the header without its check: one pass over the
    /// bytes covers both.
    fn checksum(self, body: &[u8]) -> u64 {
        xxh3_64_with_seed(body, self.seed())
    }

    /// The checksum of the header alone.
    fn seed(mut self) -> u64 {
        self.check = U64::ZERO;
        xxh3_64(self.as_bytes())
    }
}

/// A header whose kind and length were checked. The body is still to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Depends on the kind; zero where it means nothing.
    pub flags: u8,
    /// Length of the body, at most [`Kind::max_body`].
    pub len: u32,
    /// Request, heartbeat or transfer number.
    pub id: u64,
    /// Offset within a transfer.
    pub offset: u64,
    /// Checksum over header and body.
    pub check: u64,
}

impl Header {
    /// Reads a header and checks everything but the checksum.
    ///
    /// # Errors
    /// If this is no header, or its length is above the limit of its kind.
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

    /// Joins the header with its body, which must be [`Self::len`] bytes, and compares the
    /// checksum.
    ///
    /// # Errors
    /// If they do not agree.
    pub fn verify(self, body: &[u8]) -> Result<Frame<'_>, FrameError> {
        let same_length = usize::try_from(self.len) == Ok(body.len());
        if !same_length || self.raw().checksum(body) != self.check {
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

    /// Begins to verify a body that comes in pieces.
    #[must_use]
    pub fn body(self) -> Body {
        Body {
            header: self,
            hasher: Xxh3::with_seed(self.raw().seed()),
            left: self.len,
        }
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

/// A body that is verified while it comes in pieces. Whoever uses a piece before the end must be
/// able to take that back.
#[derive(Clone)]
pub struct Body {
    header: Header,
    hasher: Xxh3,
    left: u32,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { header, left, .. } = self;
        write!(f, "Body {{ {left} bytes left of {header:?} }}")
    }
}

impl Body {
    /// How many bytes are to come, at most [`Kind::max_body`].
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Takes as much of `bytes` as belongs to this body, and returns it.
    pub fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX);
        let piece = bytes.get(..len).unwrap_or(bytes);
        self.hasher.update(piece);
        self.left -= u32::try_from(piece.len()).unwrap_or(self.left);
        piece
    }

    /// Compares the checksum.
    ///
    /// # Errors
    /// If header and body do not agree, or some of the body has not come.
    pub fn finish(self) -> Result<Header, FrameError> {
        if self.left > 0 || self.hasher.digest() != self.header.check {
            return Err(FrameError::Corrupt(self.header.kind));
        }
        Ok(self.header)
    }
}

/// A whole frame that was verified; it borrows its body from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Depends on the kind. For data of a step's output, bit 0 set means stderr.
    pub flags: u8,
    /// Request, heartbeat or transfer number.
    pub id: u64,
    /// Offset within a transfer.
    pub offset: u64,
    /// The body.
    pub body: &'a [u8],
    /// The checksum that was verified.
    pub check: u64,
}

/// Makes the header for a body, which the caller then sends behind it: bulk data is not copied.
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
    raw.check = U64::new(raw.checksum(body));
    Ok(transmute!(raw))
}

/// Makes a whole small frame.
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

/// Splits the first frame off `buf`. `Ok(None)` means that more bytes are needed: at most
/// [`HEADER_LEN`] plus the limit of the kind are ever needed for one frame.
///
/// # Errors
/// If what begins in `buf` can never become a frame. Told as early as its bytes show it.
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

/// Why [`read`] gave no frame.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The source failed.
    #[error("cannot read from the connection")]
    Source(#[source] E),
    /// What was read is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
}

/// Reads one frame from a source of bytes into `buf`, which is grown to the size of the body only
/// after that was checked. `fill` reads into a slice and returns how much; zero is the end of the
/// stream. `Ok(None)` means that the stream ended between two frames.
///
/// # Errors
/// See [`ReadError`].
pub fn read<E: std::error::Error>(
    buf: &mut Vec<u8>,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Option<Frame<'_>>, ReadError<E>> {
    match read_header(&mut fill)? {
        Some(header) => read_body(header, buf, fill).map(Some),
        None => Ok(None),
    }
}

/// Reads the header of a frame as [`read`] does, and leaves the body to the caller.
///
/// # Errors
/// See [`ReadError`].
pub fn read_header<E: std::error::Error>(
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Option<Header>, ReadError<E>> {
    let mut header = [0; HEADER_LEN];
    match fill_whole(&mut header, &mut fill)? {
        0 => Ok(None),
        HEADER_LEN => Ok(Some(Header::parse(&header)?)),
        _ => Err(ReadError::Cut),
    }
}

/// Reads the body that belongs to a header as [`read`] does.
///
/// # Errors
/// See [`ReadError`].
pub fn read_body<E: std::error::Error>(
    header: Header,
    buf: &mut Vec<u8>,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Frame<'_>, ReadError<E>> {
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    // The length only ever grows, so that a reused buffer is not zeroed again for each frame.
    if buf.len() < len {
        buf.resize(len, 0);
    }
    let Some(body) = buf.get_mut(..len) else {
        return Err(ReadError::Cut);
    };
    if fill_whole(body, &mut fill)? != len {
        return Err(ReadError::Cut);
    }
    Ok(header.verify(body)?)
}

/// Fills `buf` unless the stream ends; returns how many bytes came.
fn fill_whole<E: std::error::Error>(
    buf: &mut [u8],
    fill: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, ReadError<E>> {
    let mut done = 0;
    while let Some(room) = buf.get_mut(done..).filter(|room| !room.is_empty()) {
        match fill(room).map_err(ReadError::Source)? {
            0 => break,
            n => done += n.min(room.len()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 9] = [
        Kind::Hello,
        Kind::Request,
        Kind::Reply,
        Kind::Ping,
        Kind::Pong,
        Kind::Attach,
        Kind::Data,
        Kind::End,
        Kind::Abort,
    ];

    #[track_caller]
    fn check(bytes: &[u8], want: Result<Option<Frame<'_>>, FrameError>) {
        assert_eq!(
            decode(bytes).map(|split| split.map(|(frame, _)| frame)),
            want
        );
    }

    #[test]
    fn the_bytes_of_a_frame_are_pinned() {
        let frame = encode(Kind::Data, 1, 0x0102, 0x0304, b"abc").unwrap();
        let golden = [
            b'c', b'd', 7, 1, 3, 0, 0, 0, // magic, kind, flags, length
            2, 1, 0, 0, 0, 0, 0, 0, // id
            4, 3, 0, 0, 0, 0, 0, 0, // offset
            238, 108, 72, 22, 47, 182, 248, 104, // check
            b'a', b'b', b'c',
        ];
        assert_eq!(frame, golden);
    }

    proptest! {
        #[test]
        fn a_body_in_pieces_is_as_good_as_a_whole_one(
            bytes in vec(any::<u8>(), 0..1000),
            size in 1_usize..300,
            flip in any::<Option<proptest::sample::Index>>(),
        ) {
            let frame = encode(Kind::Data, 1, 2, 3, &bytes).unwrap();
            let (header, sent) = frame.split_first_chunk().unwrap();
            let mut sent = sent.to_vec();
            let flipped = flip.filter(|_| !sent.is_empty());
            if let Some(at) = flipped {
                let at = at.index(sent.len());
                sent[at] ^= 0x10;
            }
            let header = Header::parse(header).unwrap();
            let mut body = header.body();
            let mut got = Vec::new();
            for piece in sent.chunks(size) {
                prop_assert_eq!(body.clone().finish(), Err(FrameError::Corrupt(Kind::Data)));
                got.extend_from_slice(body.take(piece));
            }
            prop_assert_eq!(body.left(), 0);
            prop_assert!(body.take(b"what follows is not of this body").is_empty());
            prop_assert_eq!(got, sent);
            let want = if flipped.is_some() {
                Err(FrameError::Corrupt(Kind::Data))
            } else {
                Ok(header)
            };
            prop_assert_eq!(body.finish(), want);
        }
    }

    #[test]
    fn a_wrong_start_is_told_before_any_body_is_awaited() {
        let mut bytes = encode(Kind::Ping, 0, 1, 0, b"").unwrap();
        bytes[0] = b'X';
        check(
            &bytes,
            Err(FrameError::BadMagic(u16::from_le_bytes(*b"Xd"))),
        );
        let mut bytes = encode(Kind::Ping, 0, 1, 0, b"").unwrap();
        bytes[2] = 77;
        check(&bytes, Err(FrameError::UnknownKind(77)));
    }

    #[test]
    fn a_length_above_the_limit_of_the_kind_is_refused_by_its_header_alone() {
        for (kind, len) in [(Kind::Data, MAX_BODY + 1), (Kind::Ping, 1), (Kind::End, 9)] {
            let mut header = encode_header(kind, 0, 0, 0, &[]).unwrap();
            header[4..8].copy_from_slice(&len.to_le_bytes());
            check(&header, Err(FrameError::TooLong { kind, len }));
        }
        assert!(encode(Kind::Pong, 0, 0, 0, b"x").is_err());
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let frame = encode(Kind::Data, 1, 7, 4096, b"some bytes of a layer").unwrap();
        for bit in 0..frame.len() * 8 {
            let mut broken = frame.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            // A longer length reads as "more needed"; then the end of the stream is the error.
            assert!(!matches!(decode(&broken), Ok(Some(_))), "bit {bit}");
            let mut source = broken.as_slice();
            assert!(read_all(&mut source).is_err(), "bit {bit}");
        }
    }

    fn read_all(source: &mut &[u8]) -> Result<usize, ReadError<std::convert::Infallible>> {
        let mut buf = Vec::new();
        let mut n = 0;
        while read(&mut buf, |room| Ok(take(source, room)))?.is_some() {
            n += 1;
        }
        Ok(n)
    }

    fn take(source: &mut &[u8], room: &mut [u8]) -> usize {
        let n = room.len().min(source.len()).min(5);
        room[..n].copy_from_slice(&source[..n]);
        *source = &source[n..];
        n
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, u8, u64, u64, Vec<u8>)>> {
        let frame = (
            0..KINDS.len(),
            any::<u8>(),
            any::<u64>(),
            any::<u64>(),
            vec(any::<u8>(), 0..200),
        )
            .prop_map(|(kind, flags, id, offset, mut body)| {
                body.truncate(KINDS[kind].max_body() as usize);
                (KINDS[kind], flags, id, offset, body)
            });
        vec(frame, 1..6)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frames in frames()) {
            let mut stream = Vec::new();
            for (kind, flags, id, offset, body) in &frames {
                stream.extend(encode(*kind, *flags, *id, *offset, body).unwrap());
            }
            let mut rest = stream.as_slice();
            for (kind, flags, id, offset, body) in &frames {
                let (frame, after) = decode(rest).unwrap().unwrap();
                prop_assert_eq!(
                    (frame.kind, frame.flags, frame.id, frame.offset, frame.body),
                    (*kind, *flags, *id, *offset, body.as_slice())
                );
                rest = after;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read_all(&mut stream.as_slice()), Ok(frames.len()));
        }

        #[test]
        fn a_stream_cut_anywhere_asks_for_more_or_ends_between_frames(frames in frames()) {
            let mut stream = Vec::new();
            let mut boundaries = vec![0];
            for (kind, flags, id, offset, body) in &frames {
                stream.extend(encode(*kind, *flags, *id, *offset, body).unwrap());
                boundaries.push(stream.len());
            }
            for cut in 0..stream.len() {
                let mut rest = &stream[..cut];
                while let Some((_, after)) = decode(rest).unwrap() {
                    rest = after;
                }
                prop_assert_eq!(boundaries.contains(&cut), rest.is_empty());
                let read = read_all(&mut &stream[..cut]);
                prop_assert_eq!(boundaries.contains(&cut), read.is_ok());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _frame_or_not = decode(&bytes).is_ok();
            let mut headed = b"cd".to_vec();
            headed.extend_from_slice(&bytes);
            let _frame_or_not = decode(&headed).is_ok();
        }
    }
}
