//! Why a COPY or ADD fails.

use std::fmt;
use std::io;

use store::{Digest, StoreError};

use crate::context::{BadPattern, ContextError, IgnoreError, IgnoredBy, Missing};
use crate::download::{BadName, DownloadError};
use crate::rootfs::{ReadError, ResolveError, UserError};

/// Why a COPY, ADD or WORKDIR fails. Those that are not the user's to mend say so in
/// [`CopyError::is_host`].
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source is not there.
    #[error("{0}")]
    Missing(MissingSource),
    /// The whole context is ignored.
    #[error(
        "nothing to copy: all files of the build context are ignored, first by {} line {}: `{}`",
        .0.file, .0.line, .0.pattern
    )]
    AllIgnored(IgnoredBy),
    /// A source is a pattern with a mistake.
    #[error("`{pattern}` is not a pattern: {reason}")]
    Pattern {
        /// The source as written.
        pattern: String,
        /// What is wrong with it.
        reason: BadPattern,
    },
    /// A pattern of a flag has a mistake.
    #[error(transparent)]
    Flag(#[from] IgnoreError),
    /// A directory meets something else.
    #[error("cannot copy to non-directory: {0}")]
    NonDirectory(String),
    /// A file meets a directory.
    #[error("cannot replace to directory {0} with file")]
    OntoDirectory(String),
    /// The name of something that is copied means something else in a layer.
    #[error(
        "cannot copy to {0}: in a layer, a name that begins with .wh. means that something is removed"
    )]
    Whiteout(String),
    /// A directory of the image was replaced by something that then became a directory again.
    #[error(
        "{0} is a directory in the image, and of the sources one has a file there and a later one \
         a directory: copy them in two steps"
    )]
    DirectoryAgain(String),
    /// A path leads nowhere.
    #[error(transparent)]
    Path(#[from] ResolveError),
    /// The value of `--chmod` is no mode.
    #[error("`{0}` is not a mode: octal up to 07777, or symbolic as in `u=rwX,go=rX`")]
    Mode(String),
    /// The value of `--chown` names nobody.
    #[error(transparent)]
    Owner(#[from] UserError),
    /// A source that was named is a socket, named pipe or device.
    #[error("{path}: {what} in the build context cannot be copied")]
    Special {
        /// Path in the context.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A file that is needed cannot be read.
    #[error("cannot read {path} in the build context")]
    Unreadable {
        /// Path in the context.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file changes while the build runs.
    #[error("{0} in the build context changed while it was read; build again when it is at rest")]
    Changed(String),
    /// An archive that ADD unpacks is damaged, or tries to leave its directory.
    #[error("cannot unpack {archive}: {reason}")]
    Archive {
        /// The archive.
        archive: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of a server cannot be had.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A file of a server has no name to be put under.
    #[error(
        "{url} gives no name for a file in a directory, since {reason}; write the name of the file \
         at the destination"
    )]
    NoName {
        /// The address.
        url: String,
        /// Why not.
        reason: BadName,
    },
    /// A file of a server was to be copied before it was there.
    #[error("{0} was not downloaded")]
    NotDownloaded(String),
    /// A file that was downloaded is gone, or not what it was.
    #[error("the downloaded file {0} is gone from the store or was damaged there; build again")]
    Lost(Digest),
    /// The context cannot be read at all.
    #[error(transparent)]
    Context(ContextError),
    /// A layer that files are taken from cannot be read.
    #[error("cannot read a file of another stage or image")]
    Layer(#[from] ReadError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The layer cannot be written. The store's own error is inside.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A source that is not there, with all that helps to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingSource {
    /// As written.
    pub written: String,
    /// Where links led, if they led elsewhere.
    pub leads: Option<String>,
    /// Why it is not there, if that is known.
    pub why: Missing,
    /// Where it was looked for: `the build context`, or `the stage or image`.
    pub place: &'static str,
}

impl fmt::Display for MissingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not in {}", self.written, self.place)?;
        if let Some(leads) = &self.leads {
            write!(f, " (it is a link to `{leads}` there)")?;
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
            Self::Missing(_)
            | Self::AllIgnored(_)
            | Self::Pattern { .. }
            | Self::Flag(_)
            | Self::NonDirectory(_)
            | Self::OntoDirectory(_)
            | Self::Whiteout(_)
            | Self::DirectoryAgain(_)
            | Self::Path(_)
            | Self::Mode(_)
            | Self::Owner(_)
            | Self::Special { .. }
            | Self::Unreadable { .. }
            | Self::Changed(_)
            | Self::Archive { .. }
            | Self::NoName { .. }
            | Self::Context(_)
            | Self::Cancelled => false,
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
