//! Files from servers, for ADD.
//!
//! ```text
//! digest is known and its bytes are in the store ─► nothing is sent
//! address is known and its bytes are in the store ─► asked whether they changed ─► 304: taken
//! anything else, or they did change ─► downloaded into the store, hashed, compared, then visible
//! ```
//!
//! The law: what comes is not trusted. It is no longer than the limit, it takes no longer than the
//! limit, and nothing can be seen of it before its digest is the one that was asked for. Neither a
//! message nor a log shows a password that an address holds.

mod address;
mod error;
mod fetch;
mod known;
mod partial;

use std::time::Duration;

use oci::http::READ_TIMEOUT;
use store::{Digest, Mtime, Store};

pub use address::{BadAddress, BadName, WebAddress};
pub use error::DownloadError;
pub use fetch::{Job, fetch};

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebSource {
    /// Where it is.
    pub address: WebAddress,
    /// What it must be.
    pub checksum: Option<Digest>,
    /// Unpack it if it is an archive.
    pub unpack: bool,
}

/// A file that was downloaded, now or before. Its bytes are a blob of the store, which is leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// When it changed last, as the server says; 1970 if it does not.
    pub mtime: Mtime,
    /// What the address held the last time, if that is known.
    pub before: Option<Digest>,
    /// Where the bytes come from.
    pub origin: Origin,
}

/// Where the bytes of a file come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// They were in the store, under the digest that was asked for. No server was asked.
    Store,
    /// They were in the store, and the server says that they did not change.
    Unchanged,
    /// The server sent them.
    Server,
}

impl Fetched {
    /// What is new about the file at `address` since it was last downloaded.
    pub(crate) fn news(&self, address: &WebAddress) -> Option<String> {
        let before = self.before.filter(|before| *before != self.digest)?;
        let now = self.digest;
        Some(format!("{address} changed: was {before}, is {now}"))
    }

    /// How it was found out that the file is the one that was known.
    pub(crate) fn how(&self, address: &WebAddress) -> String {
        match self.origin {
            Origin::Store => format!("{address} was in the store by its digest"),
            Origin::Unchanged => format!("{address} did not change, says the server"),
            Origin::Server => format!("{address} was downloaded, and is {}", self.digest),
        }
    }
}

/// Bounds of a download.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes.
    pub bytes: u64,
    /// Longest wait for the next bytes.
    pub idle: Duration,
    /// Longest time for all of it, with all tries.
    pub whole: Duration,
}

impl Limits {
    /// Larger and slower files are better brought into the context by other means.
    pub const USUAL: Self = Self {
        bytes: 16 << 30,
        idle: READ_TIMEOUT,
        whole: Duration::from_secs(2 * 60 * 60),
    };
}

/// The files that the sources of an ADD stand for.
#[derive(Debug, Clone, Default)]
pub struct Downloads {
    pub(crate) store: Option<Store>,
    files: Vec<(WebSource, Fetched)>,
}

impl Downloads {
    /// None yet, for files that are in `store`.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self {
            store: Some(store.clone()),
            files: Vec::new(),
        }
    }

    /// Adds one.
    pub fn add(&mut self, source: WebSource, file: Fetched) {
        self.files.push((source, file));
    }

    /// The file that a source stands for.
    #[must_use]
    pub fn get(&self, source: &WebSource) -> Option<&Fetched> {
        let mut files = self.files.iter();
        files
            .find(|(known, _)| known == source)
            .map(|(_, file)| file)
    }
}
