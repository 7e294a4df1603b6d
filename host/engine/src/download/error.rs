//! Why a file cannot be had.

use std::io;
use std::time::Duration;

use exec::Stopped;
use oci::http::BoxError;
use store::{Digest, StoreError};

/// See the variants. Addresses are as they may be shown.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server does not give the file, and asking again will not change that.
    #[error("cannot download {url}: the server answered {status}{}", advice(*.status))]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server cannot give the file now, after several tries.
    #[error("cannot download {url}: the server answered {status}. Try again later")]
    Failing {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The content is not the one that was asked for.
    #[error(
        "{url} does not hold what --checksum asks for: it should have the digest {expected} and has {actual}. Nothing of it was kept"
    )]
    Mismatch {
        /// The address.
        url: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// It is too large.
    #[error("{url} is larger than {limit} bytes, the most that ADD downloads")]
    TooLarge {
        /// The address.
        url: String,
        /// How much it may be.
        limit: u64,
    },
    /// The server leads somewhere else, and not well.
    #[error("cannot download {url}: {reason}")]
    Redirect {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// It takes too long.
    #[error("{url} was not downloaded after {} minutes, the longest that ADD waits", .limit.as_secs() / 60)]
    TooSlow {
        /// The address.
        url: String,
        /// How long it may take.
        limit: Duration,
    },
    /// No answer, or not all of it, after several tries.
    #[error("cannot download {url}. Check the address and that the network is up, then try again")]
    Unreachable {
        /// The address.
        url: String,
        /// The last failure.
        #[source]
        source: BoxError,
    },
    /// The client could not be set up.
    #[error("cannot set up the HTTP client")]
    Setup(#[source] BoxError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What came cannot be written.
    #[error("cannot write what is downloaded from {url}")]
    Write {
        /// The address.
        url: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<Stopped> for DownloadError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

impl DownloadError {
    /// Whether a machine or the network failed, not whoever wrote the Dockerfile.
    #[must_use]
    pub fn is_host(&self) -> bool {
        match self {
            Self::Failing { .. }
            | Self::TooSlow { .. }
            | Self::Unreachable { .. }
            | Self::Setup(_)
            | Self::Store(_)
            | Self::Write { .. } => true,
            Self::Refused { .. }
            | Self::Mismatch { .. }
            | Self::TooLarge { .. }
            | Self::Redirect { .. }
            | Self::Cancelled => false,
        }
    }
}

/// What a status means to whoever wrote the address.
fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 | 407 => ": it wants a login, or does not say that the file is not there",
        404 | 410 => ": there is no such file",
        _ => "",
    }
}
