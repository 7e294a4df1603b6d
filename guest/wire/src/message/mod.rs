//! Messages: the bodies of `Hello`, `Attach`, `Request`, `Reply` and `Abort`, in postcard encoding.
//!
//! Tests pin the bytes of each. To change them, raise [`crate::PROTOCOL`].
//!
//! ```
//! use wire::{Kind, Reply, Request, frame, message};
//!
//! // The host sends request 7 …
//! let bytes = message::encode(7, &Request::Stat)?;
//!
//! // … and the guest reads it.
//! let (frame, rest) = frame::decode(&bytes)?.expect("a whole frame");
//! assert_eq!((frame.kind, frame.id), (Kind::Request, 7));
//! assert!(rest.is_empty());
//! assert_eq!(message::decode::<Request>(&frame)?, Request::Stat);
//!
//! // A frame of one kind is never read as a message of another.
//! assert!(message::decode::<Reply>(&frame).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod reply;
mod request;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{self, Frame, FrameError, Kind};
use crate::limits::MAX_FAILURE_TEXT;

pub use reply::{Exit, Failure, FailureKind, Reply, Stat};
pub use request::{Network, Request, RunStep, Script, StepLimits};

/// The `diff_id` of a layer: sha256 of its uncompressed tar. The host computes it; for the guest it
/// is only a name.
pub type LayerName = [u8; 32];

/// First frame of each side on the control connection. The host sends its own first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the sender.
    pub protocol: u16,
    /// Name and version of the sender's software, for messages to the user.
    pub software: String,
    /// Optional features, one bit each, such as [`crate::FEATURE_RING`]. Unknown bits are ignored.
    pub features: u64,
    /// Longest body of a data frame that the sender accepts, in bytes, at most
    /// [`crate::limits::MAX_BODY`]. Other frames have the limits of their kind.
    pub max_body: u32,
    /// Chosen at random by the host for this VM. The guest returns it here and in each [`Attach`].
    pub nonce: [u8; 16],
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;
    fn check(&self) -> Result<(), Limit> {
        at_most(
            "name of the software",
            self.software.len(),
            MAX_FAILURE_TEXT,
        )
    }
}

/// First frame of a transfer connection, sent by the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The nonce of [`Hello`].
    pub nonce: [u8; 16],
    /// The transfer that a request announced. The host chooses the numbers and never reuses one.
    pub transfer: u64,
}

impl Message for Attach {
    const KIND: Kind = Kind::Attach;
    fn check(&self) -> Result<(), Limit> {
        Ok(())
    }
}

/// A message that is the body of a frame.
pub trait Message: Serialize + for<'a> Deserialize<'a> {
    /// The kind of its frame.
    const KIND: Kind;

    /// Checks the content against the limits. Both sides do, so that the sender can tell the user.
    ///
    /// # Errors
    /// Names the limit that is exceeded.
    fn check(&self) -> Result<(), Limit>;
}

/// A limit that a message exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{what}: {got} is above the limit of {limit}")]
pub struct Limit {
    /// Which quantity is too large.
    pub what: &'static str,
    /// Its value.
    pub got: usize,
    /// Its maximum.
    pub limit: usize,
}

pub(crate) const fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), Limit> {
    if got > limit {
        Err(Limit { what, got, limit })
    } else {
        Ok(())
    }
}

/// Why a message cannot be sent, or a body is not a message.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Its content exceeds a limit.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// It is longer than a frame of its kind may be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is of another kind.
    #[error("expected a {want:?} frame, got {got:?}")]
    WrongKind {
        /// The expected kind.
        want: Kind,
        /// The kind of the frame.
        got: Kind,
    },
    /// The body is not such a message.
    #[error("unreadable {0:?} message")]
    Unreadable(Kind, #[source] postcard::Error),
    /// Bytes follow the message.
    #[error("{1} bytes follow the {0:?} message in its frame")]
    Trailing(Kind, usize),
}

/// Encodes a message as a whole frame. `id` is the number of the request or of the transfer.
///
/// # Errors
/// If the message exceeds a limit.
pub fn encode<M: Message>(id: u64, message: &M) -> Result<Vec<u8>, MessageError> {
    message.check()?;
    let body =
        postcard::to_allocvec(message).map_err(|err| MessageError::Unreadable(M::KIND, err))?;
    Ok(frame::encode(M::KIND, 0, id, 0, &body)?)
}

/// Decodes the message in a frame.
///
/// # Errors
/// If the frame is of another kind, its body is not exactly one message, or the message exceeds a
/// limit.
pub fn decode<M: Message>(frame: &Frame<'_>) -> Result<M, MessageError> {
    if frame.kind != M::KIND {
        return Err(MessageError::WrongKind {
            want: M::KIND,
            got: frame.kind,
        });
    }
    let (message, rest) = postcard::take_from_bytes::<M>(frame.body)
        .map_err(|err| MessageError::Unreadable(M::KIND, err))?;
    if !rest.is_empty() {
        return Err(MessageError::Trailing(M::KIND, rest.len()));
    }
    message.check()?;
    Ok(message)
}

#[cfg(test)]
mod tests;
