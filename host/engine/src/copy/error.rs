//! Errors of COPY, ADD and WORKDIR.

use std::fmt;
use std::io;

use exec::Stopped;
use layer::{LayerError, Unfit};
use oci::decompress::LimitExceeded;
use store::{Digest, IngestError, StoreError};

use crate::context::{BadPattern, ContextError, IgnoreError, IgnoredBy, Missing};
use crate::download::{BadName, DownloadError};
use crate::rootfs::{ReadError, ResolveError, UserError, path};

/// How much of a path that no layer can hold is shown, in bytes.
const SHOWN: usize = 200;

/// Why a COPY, ADD or WORKDIR fails. [`CopyError::is_host`] tells failures of the machine from mistakes
/// of the user.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source does not exist.
    #[error("{0}")]
    Missing(MissingSource),
    /// The whole context is ignored.
    #[error(
        "nothing to copy: all files in the build context are excluded, the first one by {} line {}: `{}`",
        .0.file, .0.line, .0.pattern
    )]
    AllIgnored(IgnoredBy),
    /// A source is an invalid pattern.
    #[error("`{pattern}` is not a valid pattern: {reason}")]
    Pattern {
        /// The source as written.
        pattern: String,
        /// What is wrong with it.
        reason: BadPattern,
    },
    /// A pattern of a flag is invalid.
    #[error(transparent)]
    Flag(#[from] IgnoreError),
    /// A directory would replace something that is not a directory.
    #[error("cannot copy to non-directory: {0}")]
    NonDirectory(String),
    /// A file would replace a directory.
    #[error("cannot replace to directory {0} with file")]
    OntoDirectory(String),
    /// No layer can hold it.
    #[error("cannot copy to {path}: {why}; {}", .why.advice())]
    Unfit {
        /// The destination.
        path: String,
        /// Why not.
        why: Unfit,
    },
    /// A directory of the image is replaced by a file and then by a directory.
    #[error(
        "{0} is a directory in the image and would become a file, then a directory again; split the \
         instruction in two"
    )]
    DirectoryAgain(String),
    /// A path cannot be resolved.
    #[error(transparent)]
    Path(#[from] ResolveError),
    /// The value of `--chmod` is invalid.
    #[error("`{0}` is not a valid mode; use octal up to 07777, or symbolic such as `u=rwX,go=rX`")]
    Mode(String),
    /// The value of `--chown` is unknown in the image.
    #[error(transparent)]
    Owner(#[from] UserError),
    /// A source is a socket, named pipe or device.
    #[error("{path}: {what} in the build context cannot be copied")]
    Special {
        /// Path in the context.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A source cannot be read.
    #[error("cannot read {path} in the build context")]
    Unreadable {
        /// Path in the context.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file changed during the build.
    #[error(
        "{0} in the build context changed while being read; retry when nothing is modifying it"
    )]
    Changed(String),
    /// An archive that ADD unpacks is damaged, or has an entry outside of its directory.
    #[error("cannot unpack {archive}: {reason}")]
    Archive {
        /// The archive.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// An archive that ADD unpacks is larger than a layer may be.
    #[error("cannot unpack {archive}: {source}; raise that limit if you trust the archive")]
    TooLarge {
        /// The archive.
        archive: String,
        /// Which limit it exceeds. Part of the text.
        #[source]
        source: LimitExceeded,
    },
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The URL gives no file name, and the destination is a directory.
    #[error(
        "cannot determine a file name from {url}: {reason}; end the destination with a file name"
    )]
    NoName {
        /// The address.
        url: String,
        /// Why not.
        reason: BadName,
    },
    /// A file was to be copied before it was downloaded.
    #[error("internal error: {0} was not downloaded before it was copied")]
    NotDownloaded(String),
    /// A downloaded file is missing or damaged.
    #[error("the downloaded file {0} is missing from the store or damaged; retry the build")]
    Lost(Digest),
    /// The context cannot be read at all.
    #[error(transparent)]
    Context(ContextError),
    /// A layer of the source cannot be read.
    #[error("cannot read a file of another stage or image")]
    Layer(#[from] ReadError),
    /// The store failed.
    #[error("cannot use the store")]
    Store(#[from] StoreError),
    /// The layer cannot be written. The source can be an error of the store.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The layer is invalid, or the store failed.
    #[error("cannot store the layer")]
    Ingest(#[source] IngestError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A source that does not exist, with information that helps to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingSource {
    /// As written.
    pub written: String,
    /// The path with links resolved, if it differs.
    pub leads: Option<String>,
    /// Why it does not exist, if that is known.
    pub why: Missing,
    /// What was searched: `the build context`, or `the stage or image`.
    pub place: &'static str,
}

impl fmt::Display for MissingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` not found in {}", self.written, self.place)?;
        if let Some(leads) = &self.leads {
            write!(f, " (it resolves to `{leads}`)")?;
        }
        match &self.why {
            Missing::Absent => Ok(()),
            why @ (Missing::Ignored(_) | Missing::Outside | Missing::Misspelt(_)) => {
                write!(f, ": {why}")
            }
        }
    }
}

impl CopyError {
    /// Whether the machine failed, not the Dockerfile or the context.
    #[must_use]
    pub fn is_host(&self) -> bool {
        match self {
            Self::Layer(_)
            | Self::Store(_)
            | Self::Write(_)
            | Self::NotDownloaded(_)
            | Self::Lost(_) => true,
            Self::Download(error) => error.is_host(),
            Self::Ingest(error) => matches!(error, IngestError::Store(_)),
            Self::Missing(_)
            | Self::AllIgnored(_)
            | Self::Pattern { .. }
            | Self::Flag(_)
            | Self::NonDirectory(_)
            | Self::OntoDirectory(_)
            | Self::Unfit { .. }
            | Self::DirectoryAgain(_)
            | Self::Path(_)
            | Self::Mode(_)
            | Self::Owner(_)
            | Self::Special { .. }
            | Self::Unreadable { .. }
            | Self::Changed(_)
            | Self::Archive { .. }
            | Self::TooLarge { .. }
            | Self::NoName { .. }
            | Self::Context(_)
            | Self::Cancelled => false,
        }
    }
}

impl From<Stopped> for CopyError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

impl CopyError {
    /// Whether there is too much of something.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
            || matches!(self, Self::Unfit { why, .. } if why.is_limit())
    }

    /// A layer that cannot hold `path`.
    pub(super) fn unfit(path: &[u8], why: Unfit) -> Self {
        let path = match path.get(..SHOWN) {
            Some(begin) if path.len() > SHOWN => path::show(begin) + "…",
            Some(_) | None => path::show(path),
        };
        Self::Unfit { path, why }
    }

    /// The error of a write to a layer. If the store refused the layer, it says so inside.
    pub(super) fn write(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner.cloned() {
            Some(refused) => Self::ingest(refused),
            None => Self::Write(error),
        }
    }

    /// The store's refusal of a layer.
    pub(super) fn ingest(error: IngestError) -> Self {
        match error {
            IngestError::Layer(LayerError::Unfit {
                entry: Some(path),
                why,
            }) => Self::unfit(&path, why),
            refused @ (IngestError::Layer(_) | IngestError::Store(_)) => Self::Ingest(refused),
        }
    }
}

impl From<ContextError> for CopyError {
    fn from(error: ContextError) -> Self {
        if let ContextError::Cancelled = error {
            Self::Cancelled
        } else {
            Self::Context(error)
        }
    }
}
