//! Content-addressed store: blobs, indexes, ingest, metadata, leases, claims, prune, check.
//!
//! Several processes use one store at the same time, and each can be killed at any instruction.
//! There is no daemon: what a dead process left is settled by the next one that comes along. The
//! laws that make this work:
//!
//! - **One arbiter.** An object exists if and only if its row is `valid`. All deciding happens in
//!   write transactions of one SQLite database, which are ordered across processes and hold only
//!   SQL.
//! - **Order.** The row comes first, as intent; then bytes, in a file named by the row's id; then
//!   syncs; then the commit of `valid`. At the end of its life a row becomes `condemned`, durably;
//!   then the bytes go; then the row. At any moment there may be bytes that nothing needs, and
//!   never a valid row without its bytes.
//! - **Liveness is a lock.** A process holds a lock on the file of its instance for as long as it
//!   lives. Process numbers, ages and times are for display.
//! - **Lease first.** Finding an object and leasing it are one transaction, and an object that a
//!   live instance leases is never condemned. Leases last until the instance ends.
//! - **Hints.** Step keys, facts and caches are hints: what they name may be gone, and then it is a
//!   miss.
//! - **Nothing is trusted.** The tar of a layer comes from strangers. It is checked and hashed while
//!   it is written, in one pass, and everything in it has a limit.
//! - **One seam.** Every effect on the disk goes through `disk` and `db`, and tests make each of
//!   them fail, and stop before each of them (`docs/checking.md`).
//!
//! All calls block; a [`Store`] is cheap to clone and may be used from any thread.
#![forbid(unsafe_code)]

mod action;
mod blob;
mod cache;
mod db;
mod digest;
mod disk;
mod effect;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod housekeeping;
mod image;
mod index;
mod ingest;
mod instance;
mod layer;
mod layout;
mod lock;
mod object;
mod place;
mod resource;

mod store;
#[cfg(test)]
mod tests;
mod time;

pub use action::{Claim, Failure, Lookup, Owner, Run};
pub use blob::BlobWriter;
pub use digest::{ContentId, DiffId, Digest, Hasher, NotADigest, StepKey};
pub use disk::Removal;
pub use error::{IngestError, StoreError};
pub use history::{
    Build, BuildId, BuildInfo, BuildOutcome, BuildState, Class, Event, LogFrame, LogReader, StepLog,
};
pub use housekeeping::{
    CheckReport, Filter, FilterError, Finding, Item, Pin, PruneEnd, PruneOptions, PruneReport,
    Pruned, Rebuilt, Space, Usage,
};
pub use image::Image;
pub use index::{Entry, EntryKind, Index, Mtime, content_id};
pub use ingest::{LayerWriter, WrittenLayer};
pub use instance::InstanceId;
pub use layer::Layer;
pub use resource::{ResourceId, ResourceKind};
pub use store::{OpenOptions, Store};

/// 128 bits that nobody else has.
fn random() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(StoreError::io(
            "read random numbers from",
            std::path::Path::new("the system"),
            std::io::Error::other(error.to_string()),
        )),
    }
}
