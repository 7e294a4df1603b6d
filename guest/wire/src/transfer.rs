//! Sending and receiving the frames of one transfer, as state machines without I/O.
//!
//! A transfer is `Data*` and then exactly one `End` or `Abort`:
//!
//! ```text
//!             Data (next offset)
//!              ┌──┐
//!              ▼  │
//!  ──────────► Open ───── End (total, digest) ──► Ended      anything after it: violation
//!               └──────── Abort ─────────────────► Aborted   anything after it: violation
//! ```
//!
//! The digest of `End` is a chain over the checksums of the data frames, each of which covers its
//! bytes, their offset and their length. So each side hashes every byte only once, which is what an
//! emulated guest can afford, and two honest ends still detect every lost, repeated, swapped or
//! altered frame.
//!
//! **Law:** received bytes count for nothing until [`Event::End`] was returned. That is why a body
//! may be used while it arrives ([`Receiver::begin`]): its user has to wait for the end anyway.
//!
//! ```
//! use wire::{Event, Receiver, Sender, frame};
//!
//! // The sender writes each header and then its body.
//! let mut sender = Sender::new(7);
//! let mut stream = sender.data(0, b"layer")?.to_vec();
//! stream.extend_from_slice(b"layer");
//! stream.extend(sender.end()?);
//!
//! // The receiver checks every frame of the connection.
//! let mut receiver = Receiver::new(7, 1024);
//! let (data, rest) = frame::decode(&stream)?.expect("a whole frame");
//! assert_eq!(receiver.handle(&data)?, Event::Data { flags: 0, bytes: b"layer" });
//! assert!(receiver.handle_eof().is_err(), "bytes were lost");
//!
//! let (end, _) = frame::decode(rest)?.expect("a whole frame");
//! assert_eq!(receiver.handle(&end)?, Event::End { total: 5 });
//! receiver.handle_eof()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::frame::{self, Body, Frame, FrameError, HEADER_LEN, Header, Kind};
use crate::message::{self, Failure, MessageError};

/// The chain over the checksums of the data frames of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Chain(u64);

impl Chain {
    fn push(&mut self, check: u64) {
        self.0 = xxh3_64_with_seed(&check.to_le_bytes(), self.0);
    }
}

/// The sending end of a transfer. It makes the headers; the caller writes each header and then its
/// body.
#[derive(Debug)]
pub struct Sender {
    id: u64,
    offset: u64,
    chain: Chain,
}

impl Sender {
    /// Starts the transfer with this number.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self {
            id,
            offset: 0,
            chain: Chain(0),
        }
    }

    /// How many bytes were sent.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.offset
    }

    /// The header for the next piece of data, which must not be empty.
    ///
    /// # Errors
    /// If the piece is longer than a frame may be.
    pub fn data(&mut self, flags: u8, body: &[u8]) -> Result<[u8; HEADER_LEN], FrameError> {
        debug_assert!(!body.is_empty(), "an empty piece would be a violation");
        let header = frame::encode_header(Kind::Data, flags, self.id, self.offset, body)?;
        self.chain.push(Header::parse(&header)?.check);
        self.offset = self.offset.saturating_add(body.len() as u64);
        Ok(header)
    }

    /// The whole `End` frame. Nothing may follow it.
    ///
    /// # Errors
    /// Never in practice: the body has its fixed length.
    pub fn end(self) -> Result<Vec<u8>, FrameError> {
        frame::encode(
            Kind::End,
            0,
            self.id,
            self.offset,
            &self.chain.0.to_le_bytes(),
        )
    }

    /// The whole `Abort` frame. Nothing may follow it.
    ///
    /// # Errors
    /// If the failure cannot be encoded.
    pub fn abort(self, failure: &Failure) -> Result<Vec<u8>, MessageError> {
        message::encode(self.id, failure)
    }
}

/// What a frame of a transfer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next bytes, directly after those before.
    Data {
        /// Flags of the frame.
        flags: u8,
        /// The bytes; never empty.
        bytes: &'a [u8],
    },
    /// The transfer is complete: length and digest match.
    End {
        /// Its length in bytes.
        total: u64,
    },
    /// The sender gave up. Discard what was received.
    Abort(Failure),
}

/// How the peer broke the rules of a transfer. Each of these ends the connection and fails whatever
/// depends on it. It is always the peer's fault.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A frame of another transfer.
    #[error("frame of transfer {got} on the connection of transfer {want}")]
    WrongTransfer {
        /// The transfer of this connection.
        want: u64,
        /// The one in the frame.
        got: u64,
    },
    /// Bytes are missing or repeated.
    #[error("expected data at offset {want}, got offset {got}")]
    Gap {
        /// Where the next byte belongs.
        want: u64,
        /// The offset in the frame.
        got: u64,
    },
    /// An empty data frame: an endless stream of them would make no progress.
    #[error("empty data frame")]
    Empty,
    /// More bytes than agreed.
    #[error("transfer exceeds its limit of {0} bytes")]
    TooMuch(u64),
    /// The length in the end mark differs from what was received.
    #[error("the end mark says {stated} bytes, but {received} were received")]
    WrongTotal {
        /// Length according to the end mark.
        stated: u64,
        /// Bytes received.
        received: u64,
    },
    /// The digest in the end mark differs from that of what was received.
    #[error("wrong digest at the end of the transfer")]
    WrongDigest,
    /// A frame after the end.
    #[error("{0:?} frame after the end of the transfer")]
    AfterEnd(Kind),
    /// A frame of a kind that does not belong on a transfer connection.
    #[error("unexpected {0:?} frame on a transfer connection")]
    Misplaced(Kind),
    /// The body of an `Abort` frame cannot be read.
    #[error("unreadable Abort frame")]
    BadAbort(#[source] MessageError),
    /// The stream ended without `End` or `Abort`: bytes were lost.
    #[error("the transfer ended after {0} bytes without its end mark")]
    NoEnd(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Aborted,
}

/// The receiving end of a transfer.
#[derive(Debug)]
pub struct Receiver {
    id: u64,
    limit: u64,
    offset: u64,
    chain: Chain,
    state: State,
}

impl Receiver {
    /// Expects the transfer with this number, of at most `limit` bytes.
    #[must_use]
    pub const fn new(id: u64, limit: u64) -> Self {
        Self {
            id,
            limit,
            offset: 0,
            chain: Chain(0),
            state: State::Open,
        }
    }

    /// How many bytes were received.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.offset
    }

    /// Whether the transfer has ended; only the end of the stream may follow.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state, State::Ended | State::Aborted)
    }

    /// Handles the header of a data frame before its body has arrived. Pass the body to
    /// [`Self::finish`] before anything else.
    ///
    /// # Errors
    /// If the peer broke the rules. Do not use the receiver any more then.
    pub fn begin(&self, header: Header) -> Result<Body, Violation> {
        self.check(header.kind, header.id)?;
        if header.kind != Kind::Data {
            return Err(Violation::Misplaced(header.kind));
        }
        self.check_data(header.offset, header.len.into())?;
        Ok(header.body())
    }

    /// Handles a body that has arrived.
    ///
    /// # Errors
    /// If its checksum is wrong. Do not use the receiver any more then.
    pub fn finish(&mut self, body: Body) -> Result<(), FrameError> {
        let Header { len, check, .. } = body.finish()?;
        self.count(len.into(), check);
        Ok(())
    }

    /// Handles the next frame of the connection.
    ///
    /// # Errors
    /// If the peer broke the rules. Do not use the receiver any more then.
    pub fn handle<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Violation> {
        self.check(frame.kind, frame.id)?;
        match frame.kind {
            Kind::Data => self.on_data(frame),
            Kind::End => self.on_end(frame),
            Kind::Abort => {
                self.state = State::Aborted;
                message::decode(frame)
                    .map(Event::Abort)
                    .map_err(Violation::BadAbort)
            }
            Kind::Hello
            | Kind::Request
            | Kind::Reply
            | Kind::Ping
            | Kind::Pong
            | Kind::Attach
            | Kind::FlowOpen
            | Kind::FlowOpened
            | Kind::FlowRefused
            | Kind::FlowData
            | Kind::FlowCredit
            | Kind::FlowEnd
            | Kind::FlowReset => Err(Violation::Misplaced(frame.kind)),
        }
    }

    /// Handles the end of the stream.
    ///
    /// # Errors
    /// If it ended before the transfer did.
    pub fn handle_eof(&self) -> Result<(), Violation> {
        if self.ended() {
            Ok(())
        } else {
            Err(Violation::NoEnd(self.offset))
        }
    }

    /// Checks that the transfer is open and the frame belongs to it.
    fn check(&self, kind: Kind, id: u64) -> Result<(), Violation> {
        match self.state {
            State::Open => {}
            State::Ended | State::Aborted => return Err(Violation::AfterEnd(kind)),
        }
        if id != self.id {
            return Err(Violation::WrongTransfer {
                want: self.id,
                got: id,
            });
        }
        Ok(())
    }

    /// Checks that data is next and within the limit.
    fn check_data(&self, offset: u64, len: u64) -> Result<(), Violation> {
        if offset != self.offset {
            return Err(Violation::Gap {
                want: self.offset,
                got: offset,
            });
        }
        if len == 0 {
            return Err(Violation::Empty);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.limit => Ok(()),
            Some(_) | None => Err(Violation::TooMuch(self.limit)),
        }
    }

    fn count(&mut self, len: u64, check: u64) {
        self.chain.push(check);
        self.offset = self.offset.saturating_add(len);
    }

    fn on_data<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Violation> {
        let len = frame.body.len() as u64;
        self.check_data(frame.offset, len)?;
        self.count(len, frame.check);
        Ok(Event::Data {
            flags: frame.flags,
            bytes: frame.body,
        })
    }

    fn on_end<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Violation> {
        if frame.offset != self.offset {
            return Err(Violation::WrongTotal {
                stated: frame.offset,
                received: self.offset,
            });
        }
        if frame.body != self.chain.0.to_le_bytes() {
            return Err(Violation::WrongDigest);
        }
        self.state = State::Ended;
        Ok(Event::End { total: self.offset })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::message::FailureKind;

    /// The frames of a transfer, one element each.
    fn send(id: u64, pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut sender = Sender::new(id);
        let mut frames = Vec::new();
        for piece in pieces {
            let mut frame = sender.data(0, piece).unwrap().to_vec();
            frame.extend_from_slice(piece);
            frames.push(frame);
        }
        frames.push(sender.end().unwrap());
        frames
    }

    /// Receives bodies in pieces of at most `size` bytes.
    fn receive_in_pieces(
        id: u64,
        limit: u64,
        mut stream: &[u8],
        size: usize,
    ) -> Result<Vec<u8>, String> {
        let mut receiver = Receiver::new(id, limit);
        let mut bytes = Vec::new();
        let mut read = |buf: &mut [u8]| std::io::Read::read(&mut stream, buf);
        while let Some(header) = frame::read_header(&mut read).map_err(|err| err.to_string())? {
            if header.kind == Kind::Data {
                let mut body = receiver.begin(header).map_err(|err| err.to_string())?;
                while body.left() > 0 {
                    let mut piece = vec![0; size.min(body.left() as usize)];
                    let n = read(&mut piece).unwrap();
                    if n == 0 {
                        return Err("cut".into());
                    }
                    bytes.extend_from_slice(body.take(&piece[..n]));
                }
                receiver.finish(body).map_err(|err| err.to_string())?;
                continue;
            }
            let mut buf = Vec::new();
            let frame = frame::read_body(header, &mut buf, &mut read);
            let frame = frame.map_err(|err| err.to_string())?;
            match receiver.handle(&frame).map_err(|err| err.to_string())? {
                Event::Data { .. } => unreachable!("data is read in pieces"),
                Event::End { total } => assert_eq!(total, bytes.len() as u64),
                Event::Abort(failure) => return Err(failure.text),
            }
        }
        receiver.handle_eof().map_err(|err| err.to_string())?;
        Ok(bytes)
    }

    /// Receives a stream in all ways; returns the bytes if the transfer was complete.
    fn receive(id: u64, limit: u64, stream: &[u8]) -> Result<Vec<u8>, String> {
        let received = receive_whole(id, limit, stream);
        for size in [1, 7, usize::MAX] {
            let in_pieces = receive_in_pieces(id, limit, stream, size);
            assert_eq!(in_pieces.ok(), received.clone().ok(), "pieces of {size}");
        }
        received
    }

    fn receive_whole(id: u64, limit: u64, stream: &[u8]) -> Result<Vec<u8>, String> {
        let mut receiver = Receiver::new(id, limit);
        let mut rest = stream;
        let mut bytes = Vec::new();
        while let Some((frame, after)) = frame::decode(rest).map_err(|err| err.to_string())? {
            rest = after;
            match receiver.handle(&frame).map_err(|err| err.to_string())? {
                Event::Data { bytes: piece, .. } => bytes.extend_from_slice(piece),
                Event::End { total } => assert_eq!(total, bytes.len() as u64),
                Event::Abort(failure) => return Err(failure.text),
            }
        }
        if !rest.is_empty() {
            return Err("cut".into());
        }
        receiver.handle_eof().map_err(|err| err.to_string())?;
        Ok(bytes)
    }

    fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        vec(vec(any::<u8>(), 1..50), 0..6)
    }

    #[test]
    fn an_empty_transfer_is_an_end_alone() {
        assert_eq!(receive(3, 0, &send(3, &[]).concat()), Ok(Vec::new()));
    }

    #[test]
    fn a_stream_without_end_is_lost() {
        let frames = send(3, &[b"abc".to_vec()]);
        let lost = receive(3, 10, &frames[0]).unwrap_err();
        assert_eq!(
            lost,
            "the transfer ended after 3 bytes without its end mark"
        );
    }

    #[test]
    fn whatever_follows_the_end_is_a_violation() {
        let frames = send(3, &[b"abc".to_vec()]);
        for late in &frames {
            let stream = [frames.concat(), late.clone()].concat();
            assert!(
                receive(3, 10, &stream)
                    .unwrap_err()
                    .contains("after the end")
            );
        }
    }

    #[test]
    fn swapped_missing_and_doubled_frames_are_violations() {
        let [a, b, c, end] = send(3, &[b"aa".to_vec(), b"bb".to_vec(), b"cc".to_vec()])
            .try_into()
            .unwrap();
        for stream in [
            [&b, &a, &c, &end].map(Vec::as_slice).concat(),
            [&a, &c, &end].map(Vec::as_slice).concat(),
            [&a, &b, &end].map(Vec::as_slice).concat(),
            [&a, &a, &b, &c, &end].map(Vec::as_slice).concat(),
        ] {
            assert!(receive(3, 100, &stream).is_err());
        }
        assert_eq!(
            receive(3, 6, &[a, b, c, end].concat()),
            Ok(b"aabbcc".to_vec())
        );
    }

    #[test]
    fn frames_of_another_transfer_and_of_the_control_connection_are_violations() {
        assert!(receive(4, 100, &send(3, &[b"x".to_vec()]).concat()).is_err());
        let ping = frame::encode(Kind::Ping, 0, 3, 0, b"").unwrap();
        assert!(receive(3, 100, &ping).unwrap_err().contains("Ping"));
    }

    #[test]
    fn empty_data_and_data_beyond_the_limit_are_violations() {
        let empty = frame::encode(Kind::Data, 0, 3, 0, b"").unwrap();
        assert_eq!(receive(3, 100, &empty), Err("empty data frame".into()));
        let much = receive(3, 2, &send(3, &[b"abc".to_vec()]).concat());
        assert_eq!(much, Err("transfer exceeds its limit of 2 bytes".into()));
    }

    #[test]
    fn an_abort_carries_its_reason() {
        let failure = Failure::new(FailureKind::DiskFull, "disk full");
        let abort = Sender::new(3).abort(&failure).unwrap();
        assert_eq!(receive(3, 0, &abort), Err("disk full".into()));
    }

    #[test]
    fn an_end_with_another_digest_is_a_violation() {
        let mut frames = send(3, &[b"abc".to_vec()]);
        frames[1] = frame::encode(Kind::End, 0, 3, 3, &[0; 8]).unwrap();
        assert_eq!(
            receive(3, 10, &frames.concat()),
            Err("wrong digest at the end of the transfer".into())
        );
    }

    proptest! {
        #[test]
        fn what_is_sent_is_received(pieces in pieces()) {
            let stream = send(9, &pieces).concat();
            prop_assert_eq!(receive(9, u64::MAX, &stream), Ok(pieces.concat()));
        }

        #[test]
        fn a_stream_cut_anywhere_is_not_whole(pieces in pieces()) {
            let stream = send(9, &pieces).concat();
            for cut in 0..stream.len() {
                prop_assert!(receive(9, u64::MAX, &stream[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn a_flipped_bit_is_an_error(pieces in pieces(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut stream = send(9, &pieces).concat();
            let at = at.index(stream.len());
            stream[at] ^= 1_u8 << bit;
            prop_assert!(receive(9, u64::MAX, &stream).is_err());
        }

        #[test]
        fn any_other_order_of_frames_is_an_error(
            pieces in vec(vec(any::<u8>(), 1..9), 1..6),
            order in vec(any::<prop::sample::Index>(), 0..9),
        ) {
            let frames = send(9, &pieces);
            let chosen: Vec<usize> = order.iter().map(|index| index.index(frames.len())).collect();
            let whole = chosen.iter().copied().eq(0..frames.len());
            let stream: Vec<u8> = chosen.iter().flat_map(|at| frames[*at].clone()).collect();
            prop_assert_eq!(receive(9, u64::MAX, &stream).is_ok(), whole);
        }
    }
}
