//! The contract between the host and the agent in the builder VM.
//!
//! This crate is the protocol specification. It does no I/O and reads no clock, so that both
//! sides, the tests and the fuzzers share one reading of every byte. Everything is little-endian.
//!
//! # Connections
//!
//! All connections are vsock streams **from the guest to the host** (cid 2, port [`PORT`]): the
//! agent listens on nothing. A connection is one of two kinds, told apart by its first frame:
//!
//! * **control**, the first one: both sides send [`Kind::Hello`], the host first. Then requests and
//!   heartbeats go to the guest, replies and heartbeat answers come back. Its loss ends both sides.
//! * **transfer**: the guest opens one for each transfer that a request announced, and says which
//!   with [`Kind::Attach`] (nonce and transfer number). Then [`Kind::Data`] frames follow in the
//!   direction of the transfer, and exactly one [`Kind::End`] or [`Kind::Abort`].
//!
//! A transfer has a connection of its own so that vsock's credit is the only flow control: there is
//! no demultiplexer with a queue that could overflow.
//!
//! # Frames
//!
//! Every frame is a [`frame::Header`] of 32 bytes and a body of at most [`limits::MAX_BODY`] bytes.
//! `Data` carries the absolute offset of its first byte; `End` carries the total length and a digest
//! that chains the checksums of all data frames. End of stream without `End` or `Abort` means that
//! bytes were lost.
//!
//! Checksums are XXH3-64: they catch accidents on the way, not attacks. Nothing trusts them
//! against a hostile peer; the host computes the sha256 of all that it keeps.
#![forbid(unsafe_code)]

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

/// Feature of the guest in [`Hello::features`]: it drives its vsock device itself. For reports only.
pub const FEATURE_RING: u64 = 1;

/// Version of this protocol. Both sides must speak the same one; a mismatch closes the control
/// connection without effect and names both versions.
pub const PROTOCOL: u16 = 2;
