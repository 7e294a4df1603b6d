//! Downloads for ADD. Interrupted downloads resume.
//!
//! ```text
//! checksum given, its bytes in the store ─► no request
//! address downloaded before, its bytes in the store ─► conditional request ─► 304: not downloaded
//! anything else, or the file changed ─► downloaded into the store, hashed, compared, then visible
//! ```
//!
//! The law: servers are not trusted. Length and time have limits, and nothing of a file is visible
//! before its digest is verified. Neither a message nor a log shows a password in an address.

mod address;
mod entry;
mod error;
mod fetch;
mod partial;

use std::time::Duration;

use oci::http::{MinRate, READ_TIMEOUT};
use store::{Digest, Mtime, Store};

pub use address::{BadAddress, BadName, WebAddress};
pub use error::DownloadError;
pub use fetch::{Job, fetch};

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebSource {
    /// Its address.
    pub address: WebAddress,
    /// The digest that it must have.
    pub checksum: Option<Digest>,
    /// Unpack it if it is an archive.
    pub unpack: bool,
}

/// A file that was downloaded, now or earlier. Its bytes are a blob of the store, with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Time of its last change according to the server; 1970 if unknown.
    pub mtime: Mtime,
    /// Digest of the previous download from the address, if there was one.
    pub before: Option<Digest>,
    /// Where the bytes come from.
    pub origin: Origin,
}

/// Where the bytes of a file come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// They were in the store under the given checksum. No request was sent.
    Store,
    /// They were in the store, and the server says that they are unchanged.
    Unchanged,
    /// The server sent them.
    Server,
}

impl Fetched {
    /// How the file at `address` changed since the previous download.
    pub(crate) fn news(&self, address: &WebAddress) -> Option<String> {
        let before = self.before.filter(|before| *before != self.digest)?;
        let now = self.digest;
        Some(format!("{address} changed from {before} to {now}"))
    }

    /// Why the file counts as unchanged.
    pub(crate) fn how(&self, address: &WebAddress) -> String {
        match self.origin {
            Origin::Store => format!("{address} is in the store (matched by --checksum)"),
            Origin::Unchanged => format!("{address} is unchanged on the server"),
            Origin::Server => format!("{address} was downloaded ({})", self.digest),
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
    /// Longest time for all attempts together.
    pub whole: Duration,
    /// The least that a server must send.
    pub rate: MinRate,
}

impl Limits {
    /// Larger and slower files should get into the context by other means.
    pub const USUAL: Self = Self {
        bytes: 16 << 30,
        idle: READ_TIMEOUT,
        whole: Duration::from_secs(2 * 60 * 60),
        rate: MinRate::USUAL,
    };
}

/// The downloaded files of an ADD.
#[derive(Debug, Clone, Default)]
pub struct Downloads {
    pub(crate) store: Option<Store>,
    files: Vec<(WebSource, Fetched)>,
}

impl Downloads {
    /// No files yet. They are in `store`.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self {
            store: Some(store.clone()),
            files: Vec::new(),
        }
    }

    /// Adds a file.
    pub fn add(&mut self, source: WebSource, file: Fetched) {
        self.files.push((source, file));
    }

    /// The file of a source.
    #[must_use]
    pub fn get(&self, source: &WebSource) -> Option<&Fetched> {
        let mut files = self.files.iter();
        files
            .find(|(added, _)| added == source)
            .map(|(_, file)| file)
    }
}
