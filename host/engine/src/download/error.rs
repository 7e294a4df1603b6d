//! Why a download fails.

use std::io;
use std::time::Duration;

use exec::Stopped;
use oci::http::{BoxError, HostDenied, TooSlow};
use store::{Digest, StoreError};

/// Why a download fails. Addresses are without secrets.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server refuses the request. Another attempt would not help.
    #[error("cannot download {url}: the server answered {status}{}", advice(*.status))]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server failed, after several attempts.
    #[error("cannot download {url}: the server answered {status}; retry later")]
    Failing {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The content does not have the requested digest.
    #[error(
        "{url} does not match --checksum: expected {expected}, got {actual}; the download was discarded"
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
    #[error(
        "{url} is larger than {limit} bytes, the limit for ADD; download it into the build context and use \
         COPY"
    )]
    TooLarge {
        /// The address.
        url: String,
        /// How much it may be.
        limit: u64,
    },
    /// The server redirects to where a client must not follow.
    #[error("cannot download {url}: {reason}")]
    Redirect {
        /// The address.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A Dockerfile or an image must not reach the server, or one that it redirects to.
    #[error("cannot download {url}")]
    OutOfReach {
        /// The address.
        url: String,
        /// Which server, and why.
        #[source]
        source: HostDenied,
    },
    /// The build has no network.
    #[error(
        "cannot download {url} in a build with --network none; download it into the build context and \
         use COPY, or give its digest with --checksum after a build with the network"
    )]
    Offline {
        /// The address.
        url: String,
    },
    /// The server sends too little, in several attempts.
    #[error("cannot download {url}; retry later")]
    Trickles {
        /// The address.
        url: String,
        /// What it sends.
        #[source]
        source: TooSlow,
    },
    /// It takes too long.
    #[error(
        "{url} was not downloaded within {} minutes, the limit for ADD; download it into the build context \
         and use COPY",
        .limit.as_secs() / 60
    )]
    TooSlow {
        /// The address.
        url: String,
        /// How long it may take.
        limit: Duration,
    },
    /// No answer, or an incomplete one, after several attempts.
    #[error("cannot download {url}; check the URL and the network, then retry")]
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
    /// The content cannot be written.
    #[error("cannot write the download of {url}")]
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
    /// Whether a machine or the network is to blame, and not the Dockerfile.
    #[must_use]
    pub fn is_host(&self) -> bool {
        match self {
            Self::Failing { .. }
            | Self::TooSlow { .. }
            | Self::Trickles { .. }
            | Self::Unreachable { .. }
            | Self::Setup(_)
            | Self::Store(_)
            | Self::Write { .. } => true,
            Self::Refused { .. }
            | Self::Mismatch { .. }
            | Self::TooLarge { .. }
            | Self::Redirect { .. }
            | Self::OutOfReach { .. }
            | Self::Offline { .. }
            | Self::Cancelled => false,
        }
    }
}

/// What a status means for the author of the Dockerfile.
fn advice(status: u16) -> &'static str {
    match status {
        401 | 403 | 407 => "; the file requires a login or does not exist",
        404 | 410 => "; check the URL",
        _ => "",
    }
}
