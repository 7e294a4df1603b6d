//! Errors, by how callers react to them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer::LayerError;
use nix::errno::Errno;
use rusqlite::ErrorCode;

/// An operation on the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process is using it, or holds the database or a lock for too long. Try again.
    #[error("{0}")]
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
    #[error("no space left on device: cannot write {}", path.display())]
    Full {
        /// What could not be written.
        path: PathBuf,
    },
    /// There is less free space than is to be kept free, so nothing large is written.
    #[error("{0}")]
    LowSpace(#[source] LowSpace),
    /// The build would add more than it may.
    #[error("{0}")]
    OverBudget(#[source] OverBudget),
    /// The store is damaged, or the caller passed something that it cannot store.
    #[error("{what}")]
    Corrupt {
        /// What is wrong.
        what: String,
    },
    /// The store was written by a newer version of this program.
    #[error(
        "the store at {} was written by a newer version of this program (schema {found}, this \
         version supports up to {known}); use the newer version, or another store directory",
        root.display()
    )]
    NewerSchema {
        /// The store.
        root: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest schema version that this program knows.
        known: i64,
    },
    /// The store is on a file system on which file locks and shared memory do not work.
    #[error(
        "{} is on a network or shared file system ({kind}), where file locks do not work; use \
         a directory on a local disk (--store)",
        path.display()
    )]
    NetworkFs {
        /// The store.
        path: PathBuf,
        /// Name of the file system type.
        kind: &'static str,
    },
    /// The store directory belongs to somebody else.
    #[error(
        "{} belongs to user {owner}; use a directory that you own (--store)",
        path.display()
    )]
    NotOurs {
        /// The store.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others can write to the store directory, so what is in it may be theirs.
    #[error(
        "{} is writable for other users (mode {mode:03o}), so what is in it may not be yours; if you \
         trust its content, run `chmod 700` on it, else use another directory (--store)",
        path.display()
    )]
    OpenToOthers {
        /// The store.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no store, and it was to be opened read-only.
    #[error("no store at {}; check --store", .0.display())]
    Missing(PathBuf),
    /// A write to a store that was opened read-only.
    #[error("the store was opened read-only")]
    ReadOnly,
    /// A write to a store that was closed.
    #[error("the store was closed")]
    Closed,
    /// A layer, blob, build or log that the caller names is not, or no longer, in the store.
    #[error("{0} is not in the store")]
    Unknown(String),
    /// Another error of SQLite.
    #[error("store database error")]
    Database(#[source] Arc<rusqlite::Error>),
}

impl StoreError {
    /// Classifies an error of the operating system.
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let below = source.get_ref();
        if let Some(low) = below.and_then(|inner| inner.downcast_ref()) {
            return Self::LowSpace(*low);
        }
        if let Some(over) = below.and_then(|inner| inner.downcast_ref()) {
            return Self::OverBudget(*over);
        }
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

    /// As [`Self::io`], for `map_err`.
    pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::io(what, path, source)
    }

    /// Whether a file or directory did not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a limit of the user's keeps the store from writing, and nothing is broken.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::LowSpace(_) | Self::OverBudget(_))
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

/// The free space of the store's file system has fallen below what is to be kept free, and nothing more
/// can be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {} MiB of disk space are left at the store, {} MiB are to be kept free (--min-free-space), and \
     nothing more can be pruned; free disk space or use another --store",
    free >> 20, floor >> 20
)]
pub struct LowSpace {
    /// Free bytes when this was last looked at.
    pub free: u64,
    /// Bytes that are to be kept free.
    pub floor: u64,
}

/// A build would add more layers and other blobs to the store than it may ([`crate::Store::with_budget`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this build has added {} to the store and would exceed the {} that it may add (--build-disk); make \
     its layers smaller, or raise the limit",
    mib(*used), mib(*limit)
)]
pub struct OverBudget {
    /// Bytes that the build has added, unfinished layers included.
    pub used: u64,
    /// Bytes that it may add.
    pub limit: u64,
}

/// A size with one decimal.
fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

/// Whether the file system is full, or the user's quota is used up.
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
                "another process has held the lock on the store database for too long; try again, or end \
                 that process if it is stopped"
                    .to_owned(),
            ),
            Some(ErrorCode::DiskFull) => Self::Full {
                path: PathBuf::from("store.db"),
            },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::corrupt(format!(
                "the store database is damaged ({error}); run `cofferdam store check --repair` to recover \
                 what is left"
            )),
            Some(_) | None => Self::Database(Arc::new(error)),
        }
    }
}

/// A tar could not be ingested as a layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// The tar cannot be a layer. Its maker is to blame.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store could not keep it. The layer is not to blame.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_distinguished_from_other_errors() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT] {
            assert!(is_full(&io::Error::from(errno)), "{errno}");
        }
        for errno in [Errno::EIO, Errno::ENOENT] {
            assert!(!is_full(&io::Error::from(errno)), "{errno}");
        }
    }
}
