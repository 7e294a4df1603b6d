//! How requests to a guest fail. The variants differ by who has to do something about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use wire::frame::ReadError;
use wire::{Failure, FailureKind};

/// Why a guest cannot be used any more. Its VM is destroyed.
#[derive(Debug, Error)]
pub enum Lost {
    /// It did not answer heartbeats.
    #[error("the builder VM did not answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The control connection ended.
    #[error("the builder VM closed its control connection")]
    Closed,
    /// The control connection failed.
    #[error("the control connection to the builder VM failed")]
    Connection(#[source] io::Error),
    /// It broke the protocol.
    #[error("the builder VM broke the protocol: {0}")]
    Violation(String),
    /// It is of another version.
    #[error(
        "the guest image does not match this program: `{guest}` uses protocol {theirs}, but `{host}` \
         uses {ours}; rebuild the guest image with `cargo xtask image`"
    )]
    Version {
        /// Software of the guest.
        guest: String,
        /// Its protocol.
        theirs: u16,
        /// Software of the host.
        host: String,
        /// Its protocol.
        ours: u16,
    },
    /// It does not know the nonce of this session, so it is not the VM that this process started.
    #[error("an unexpected VM connected (wrong nonce)")]
    Nonce,
    /// It did not carry out a request in time.
    #[error("the builder VM did not {what} within {} s", limit.as_secs())]
    TooLate {
        /// What it should have done.
        what: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// Its disk lost data that was written to it, so nothing that it read from there can be
    /// trusted.
    #[error("the disk of the builder VM failed: {0}")]
    Disk(String),
    /// Our own vsock device stopped serving it.
    #[error("the vsock device disconnected the builder VM: {0}")]
    Device(String),
    /// This process ended it.
    #[error("the builder VM was shut down")]
    Ended,
}

/// Why a request to the guest has no result.
#[derive(Debug, Clone, Error)]
pub enum SessionError {
    /// The guest is lost.
    #[error(transparent)]
    Lost(Arc<Lost>),
    /// The caller's cancel came first.
    #[error("cancelled")]
    Cancelled,
    /// The guest works and says that it cannot do this.
    #[error("{}", .0.text)]
    Refused(Failure),
    /// The host could not do its part.
    #[error("{what}")]
    Host {
        /// What could not be done.
        what: &'static str,
        /// Why.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl SessionError {
    /// The host could not do `what`.
    pub(crate) fn host(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Host {
            what,
            source: Arc::from(source.into()),
        }
    }

    /// The guest's disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Refused(failure) if failure.kind == FailureKind::DiskFull)
    }
}

impl From<Lost> for SessionError {
    fn from(lost: Lost) -> Self {
        Self::Lost(Arc::new(lost))
    }
}

impl From<ReadError<io::Error>> for Lost {
    fn from(error: ReadError<io::Error>) -> Self {
        match error {
            ReadError::Source(err) => Self::Connection(err),
            ReadError::Frame(err) => Self::Violation(err.to_string()),
            ReadError::Cut => Self::Violation("the connection ended inside a frame".into()),
        }
    }
}
