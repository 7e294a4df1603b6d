//! The content-addressed store of cofferdam: layers and other blobs, step results, image names, build
//! history, leases and claims.
//!
//! Several processes can use one store at the same time, and each can be killed at any instruction.
//! There is no daemon: the next process that opens the store cleans up after a dead one. These laws
//! make that work:
//!
//! - **One arbiter.** An object exists if and only if its row is `valid`. All decisions are made in write
//!   transactions of one SQLite database, which are ordered across processes and contain only SQL.
//! - **Order.** First a row as intent; then the content, in a file named by the row's id; then syncs; then
//!   the commit of `valid`. At the end of its life a row is durably tombstoned, then the files are
//!   removed, then the row is deleted. So there may be files that nothing needs, but never a valid row
//!   without its content.
//! - **Liveness is a lock.** A process holds a lock on the file of its instance as long as it lives.
//!   Process ids, ages and times are for display only.
//! - **Lease first.** Finding an object and leasing it are one transaction, and an object that a live
//!   instance leases is never removed by a prune. Leases last until the instance ends.
//! - **Hints.** Step results, facts and caches are hints: what they refer to may be gone, and that counts
//!   as a miss.
//! - **Nothing is trusted.** The tar of a layer can come from anybody. It is checked and hashed in one
//!   pass while it is written, and everything in it has a limit.
//! - **Failpoints.** Every I/O operation goes through `disk` and `db` and is announced to `failpoint`
//!   first. Tests make each one fail, and kill the process before each one (`docs/checking.md`).
//!
//! All calls block. A [`Store`] is cheap to clone, and can be used from any thread.
//!
//! # Example
//!
//! ```
//! use store::{OpenOptions, Store};
//!
//! let root = tempfile::tempdir()?;
//! let store = Store::open(root.path(), &OpenOptions::default())?;
//! let digest = store.put_blob(b"{}", "config")?;
//! assert_eq!(store.blob(digest)?.as_deref(), Some(&b"{}"[..]));
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! Each module uses only modules above it; a test reads that from the sources.
//!
//! | modules | what they do |
//! |---|---|
//! | `error`, `digest`, `content`, `time`, `random` | errors, digests, content ids, clock |
//! | `failpoint` | announces each I/O operation, for tests |
//! | `disk`, `layout`, `lock`, `location` | files, their paths, locks, checks of the root directory |
//! | `budget` | what a build may write to the store |
//! | `db` | the SQLite database: transactions, schema and migrations, replacement |
//! | `instance` | the instance of this process |
//! | `store` | the handle of an open store |
//! | `trust` | which steps the VM of a result had run, and whose results a build takes |
//! | `references`, `removal` | what refers to an object; the removal of its files and row |
//! | `resource` | VMs, disks and sockets that an instance has made |
//! | `reap` | cleaning up after dead instances |
//! | `history` | builds, logs of steps, events |
//! | `object` | objects: look-up with lease, writing, eviction |
//! | `blob`, `layers`, `image`, `cache` | what callers store |
//! | `ingest`, `reindex` | layers that come in, and their indexes; the format is the crate `layer` |
//! | `action` | step keys: results and claims |
//! | `memory` | the host's memory that VMs share |
//! | `housekeeping` | disk usage, prune, free space, check, rebuild |
//! | `open` | opening and closing a store |
#![forbid(unsafe_code)]

mod action;
mod blob;
mod budget;
mod cache;
mod content;
mod db;
mod digest;
mod disk;
mod error;
mod failpoint;
mod history;
mod housekeeping;
mod image;
mod ingest;
mod instance;
mod layers;
mod layout;
mod location;
mod lock;
mod memory;
mod object;
mod open;
mod random;
mod reap;
mod references;
mod reindex;
mod removal;
mod reserve;
mod resource;
mod store;
#[cfg(test)]
mod tests;
mod time;
mod trust;

pub use self::layers::Layer;
pub use action::{Claim, Failure, Lookup, Owner, StepResult};
pub use blob::BlobWriter;
pub use content::content_id;
pub use digest::{ContentId, Hasher, StepKey, sha256};
pub use disk::Removal;
pub use error::{IngestError, LowSpace, OverBudget, StoreError};
pub use history::{
    Build, BuildId, BuildInfo, BuildOutcome, BuildState, Class, Connection, Connections, Event,
    LogFrame, LogReader, Run, StepLog,
};
pub use housekeeping::{
    CheckReport, Filter, FilterError, Finding, FreeSpaceEvent, FreeSpaceGuard, FreeSpaceHooks,
    Item, Pin, PruneEnd, PruneOptions, PruneReport, Pruned, Rebuilt, Space, Usage,
};
pub use image::Image;
pub use ingest::{LayerWriter, WrittenLayer};
pub use instance::InstanceId;
pub use layer::{
    Attributes, DiffId, Digest, Entry, EntryKind, Index, LayerError, Mtime, NotADigest,
};
pub use memory::{MemoryHolder, MemoryShare, MemoryWait};
pub use open::OpenOptions;
pub use resource::{ResourceId, ResourceKind};
pub use store::Store;
pub use trust::{Distrusted, KnownSteps, Provenance, Trust, TrustDomain, VmId, VmSteps};
