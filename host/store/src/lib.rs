//! Content-addressed store: blobs, indexes, ingest, metadata, leases, claims, prune, check.
#![forbid(unsafe_code)]

mod digest;
mod index;

pub use digest::{ContentId, DiffId, Digest, NotADigest, StepKey};
pub use index::{Entry, EntryKind, Index, Mtime};

/// A valid layer on which this instance holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of the index without times.
    pub content_id: ContentId,
    /// Length of the uncompressed tar in bytes.
    pub size: u64,
    /// Number of entries.
    pub entries: u64,
    /// When it was first made, in seconds since 1970.
    pub created: i64,
}
