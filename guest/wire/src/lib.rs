//! The protocol between the host and the agent in the builder VM.
//!
//! This crate is the protocol specification. Both sides, the tests and the fuzzers share it, so that
//! there is one reading of every byte. Everything is little-endian.
//!
//! **Law:** this crate does no I/O and reads no clock, and no bytes of a peer make it panic or
//! allocate without limit.
//!
//! | module | content |
//! |---|---|
//! | [`frame`] | the frame: a header of 32 bytes, a body, a checksum |
//! | [`message`] | the bodies of control frames: greetings, requests, replies, failures |
//! | [`transfer`] | the frames of one transfer: [`Sender`] and [`Receiver`] as state machines |
//! | [`flow`] | the network of a step: [`flow::FlowTable`] as a state machine |
//! | [`limits`] | a limit for every number that a peer chooses |
//!
//! # Connections
//!
//! All connections are vsock streams **from the guest to the host** (cid 2, port [`PORT`]); the
//! agent listens on nothing. The first frame of a connection tells its kind:
//!
//! * **control**, the first connection: both sides send [`Kind::Hello`], the host first. Then the
//!   host sends requests and heartbeats, and the guest sends replies and heartbeat answers. If this
//!   connection is lost, both sides end.
//! * **transfer**: the guest opens one for each transfer that a request announced, and names it with
//!   [`Kind::Attach`] (nonce and transfer number). Then [`Kind::Data`] frames follow in the
//!   direction of the transfer, and exactly one [`Kind::End`] or [`Kind::Abort`].
//! * **flows**: the guest opens one for each step with network access, as for a transfer. Then come
//!   the frames of [`flow`], in both directions, until one side closes the connection.
//!
//! Each transfer has a connection of its own so that vsock's credit is the only flow control: there
//! is no demultiplexer with a queue that could overflow. Flows are too many for that, so each has a
//! credit of its own on the connection of its step.
//!
//! # Frames
//!
//! Every frame is a [`frame::Header`] of 32 bytes and a body of at most [`limits::MAX_BODY`] bytes.
//! `Data` carries the absolute offset of its first byte; `End` carries the total length and a digest
//! that chains the checksums of all data frames. A stream that ends without `End` or `Abort` has
//! lost bytes.
//!
//! Checksums are XXH3-64: they detect accidents in transit, not attacks. Nothing trusts them
//! against a hostile peer; the host computes the sha256 of everything that it keeps.
//!
//! # Example
//!
//! ```
//! use wire::{Hello, Kind, PROTOCOL, Request, frame, limits, message};
//!
//! // On the control connection the host sends its hello, and then request 1 …
//! let hello = Hello {
//!     protocol: PROTOCOL,
//!     software: "cofferdam 0.1.0".to_owned(),
//!     features: 0,
//!     max_body: limits::MAX_BODY,
//!     nonce: [7; 16],
//! };
//! let mut stream = message::encode(0, &hello)?;
//! stream.extend(message::encode(1, &Request::Stat)?);
//!
//! // … and the guest reads both.
//! let (first, rest) = frame::decode(&stream)?.expect("a whole frame");
//! assert_eq!(message::decode::<Hello>(&first)?, hello);
//! let (second, rest) = frame::decode(rest)?.expect("a whole frame");
//! assert_eq!((second.kind, second.id), (Kind::Request, 1));
//! assert_eq!(message::decode::<Request>(&second)?, Request::Stat);
//! assert!(rest.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`transfer`] has an example of a transfer.
#![forbid(unsafe_code)]

pub mod flow;
pub mod frame;
pub mod limits;
pub mod message;
pub mod transfer;

pub use frame::{Frame, FrameError, HEADER_LEN, Header, Kind};
pub use message::{
    Attach, Exit, Failure, FailureKind, Hello, LayerName, Message, MessageError, Network, Reply,
    Request, RunStep, Script, Stat, StepLimits,
};
pub use transfer::{Event, Receiver, Sender, Violation};

/// The vsock port on which the host (cid 2) accepts all connections of the guest.
pub const PORT: u32 = 0x0cfd;

/// Bit of [`Hello::features`]: the guest drives its vsock device itself. For reports only.
pub const FEATURE_RING: u64 = 1;

/// Version of this protocol. Both sides must speak the same version; on a mismatch the control
/// connection closes without effect, and the error names both versions.
pub const PROTOCOL: u16 = 3;
