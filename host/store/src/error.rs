//! What can go wrong, by what the caller does about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use rusqlite::ErrorCode;

/// An operation on the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the database, or a lock, for longer than we wait. Try again.
    #[error("store busy: {0}")]
    Busy(String),
    /// A file or directory of the store cannot be used.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb: `open`, `write`, …
        what: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// The file system of the store is full, or a quota is used up.
    #[error("no space left for {}", path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
    },
    /// The store holds something else than it should.
    #[error("{what}")]
    Corrupt {
        /// What is damaged.
        what: String,
    },
    /// A newer version of this program has used the store.
    #[error(
        "the store at {} has schema {found}, and this version knows only up to {known}: use the \
         newer version, or another store directory",
        root.display()
    )]
    NewerSchema {
        /// The store.
        root: PathBuf,
        /// Version found.
        found: i64,
        /// Newest version that this program knows.
        known: i64,
    },
    /// File locks and shared memory prove nothing there.
    #[error(
        "{} is on a network or shared file system ({kind}), where locks prove nothing: choose a \
         directory on a local disk",
        path.display()
    )]
    NetworkFs {
        /// The store.
        path: PathBuf,
        /// Name of the file system type.
        kind: &'static str,
    },
    /// The store directory belongs to somebody else.
    #[error("{} belongs to user {owner}, not to the user who runs this", path.display())]
    NotOurs {
        /// The store.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// There is no store, and it was to be opened for reading only.
    #[error("there is no store at {}", .0.display())]
    Missing(PathBuf),
    /// A write through a store that was opened for reading only.
    #[error("the store was opened for reading only")]
    ReadOnly,
    /// A write through a store whose instance has ended.
    #[error("the store was closed")]
    Closed,
    /// A layer or blob that the caller names is not there (any more).
    #[error("{0} is not in the store")]
    Unknown(String),
    /// SQLite refused something else.
    #[error("the database of the store failed")]
    Database(#[source] Arc<rusqlite::Error>),
}

impl StoreError {
    /// Files an error of the operating system.
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::Full {
                path: path.to_owned(),
            };
        }
        Self::Io {
            what,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    /// For `map_err`.
    pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::io(what, path, source)
    }

    /// Whether a name was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

/// Whether the file system has no room, or this user's share of it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) || error.raw_os_error() == Some(Errno::ENOSPC as i32)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(
                "another process has been writing to its database for too long".to_owned(),
            ),
            Some(ErrorCode::DiskFull) => Self::Full {
                path: PathBuf::from("store.db"),
            },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::corrupt(format!(
                "the database of the store is damaged ({error}): \
                     `cofferdam store check --repair` saves what can be saved"
            )),
            Some(_) | None => Self::Database(Arc::new(error)),
        }
    }
}

/// A tar was not taken in as a layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// The tar is not one that a layer may be. Its maker is to blame.
    #[error("{}{reason}", Shown(entry))]
    Rejected {
        /// The entry at fault, as far as its name is known.
        entry: Option<Vec<u8>>,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit on what a layer may hold was passed.
    #[error("{}more than {limit} {unit}", Shown(entry))]
    TooLarge {
        /// The entry that passed it, as far as its name is known.
        entry: Option<Vec<u8>>,
        /// Of what.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The store could not keep it. The layer is not to blame.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Puts the name of an entry in front of a reason.
struct Shown<'a>(&'a Option<Vec<u8>>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(path) => write!(f, "`{}`: ", path.escape_ascii()),
            None => Ok(()),
        }
    }
}

impl IngestError {
    pub(crate) fn rejected(entry: Option<&[u8]>, reason: impl Into<String>) -> Self {
        Self::Rejected {
            entry: entry.map(<[u8]>::to_vec),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_trouble() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            assert!(is_full(&io::Error::from(errno)), "{errno}");
        }
        for errno in [Errno::EIO, Errno::ENOENT] {
            assert!(!is_full(&io::Error::from(errno)), "{errno}");
        }
    }
}
