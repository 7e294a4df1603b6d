//! What the guest answers.

use serde::{Deserialize, Serialize};

use super::{Limit, Message, at_most};
use crate::frame::Kind;
use crate::limits::MAX_FAILURE_TEXT;

/// The answer to a [`Request`](super::Request).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The request was carried out.
    Done,
    /// Answer to [`Request::Run`](super::Request::Run).
    Exited(Exit),
    /// Answer to [`Request::ExportDiff`](super::Request::ExportDiff): the whole tar was sent,
    /// including its `End`.
    Exported {
        /// Length of the tar in bytes.
        size: u64,
    },
    /// Answer to [`Request::Stat`](super::Request::Stat).
    Stat(Stat),
    /// The request failed.
    Failed(Failure),
}

impl Message for Reply {
    const KIND: Kind = Kind::Reply;
    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Failed(failure) => failure.check(),
            Self::Done | Self::Exited(_) | Self::Exported { .. } | Self::Stat(_) => Ok(()),
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 plus the signal number.
    pub status: i32,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer was active in its cgroup.
    pub out_of_memory: bool,
    /// Peak memory of its cgroup in bytes, zero if unknown.
    pub peak_memory: u64,
}

/// Resource use of the guest, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Size of the guest disk's file system.
    pub disk_size: u64,
    /// Free space in it.
    pub disk_free: u64,
    /// Memory of the VM.
    pub memory_size: u64,
    /// Available memory.
    pub memory_free: u64,
    /// Resident memory of the agent itself.
    pub agent_memory: u64,
    /// Peak resident memory of the agent itself.
    pub agent_memory_peak: u64,
}

/// Why something failed; its kind decides how the host reacts. Also the body of `Abort`, with which
/// the sender of a transfer gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// Text for the user, at most [`MAX_FAILURE_TEXT`] bytes.
    pub text: String,
}

/// Whose fault a [`Failure`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The step cannot be set up: no such program, bad working directory, and the like. The user
    /// must change something.
    Setup,
    /// The guest disk is full.
    DiskFull,
    /// The step was cancelled before or while it ran.
    Cancelled,
    /// The request makes no sense in this state: a bug or a hostile peer.
    Violation,
    /// Any other failure in the guest.
    Internal,
    /// The step made something that no layer can hold: a name, a path, an attribute. The user must
    /// change something.
    Unfit,
    /// The step made more than a layer can hold, or more than the host takes.
    TooLarge,
}

impl Failure {
    /// A failure; a text that is too long is cut.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_FAILURE_TEXT));
        Self { kind, text }
    }
}

impl Message for Failure {
    const KIND: Kind = Kind::Abort;
    fn check(&self) -> Result<(), Limit> {
        at_most("text of a failure", self.text.len(), MAX_FAILURE_TEXT)
    }
}
