//! Disk usage, prune, free space, leftovers, check and rebuild.
//!
//! The law: what keeps an object (leases of live instances, image names, child layers) is read from the
//! rows each time, never from a counter, and disk usage is what the file system has allocated for
//! everything below the root.

pub(crate) mod check;
mod filter;
pub(crate) mod free_space;
mod free_space_guard;
mod full_disk;
mod graph;
mod prune;
mod rebuild;
mod sweep;
mod usage;

pub use check::{CheckReport, Finding};
pub use filter::{Filter, FilterError};
pub use free_space::Space;
pub use free_space_guard::{FreeSpaceEvent, FreeSpaceGuard, FreeSpaceHooks};
pub use prune::{PruneEnd, PruneOptions, PruneReport, Pruned};
pub use rebuild::Rebuilt;
pub use usage::{Item, Pin, Usage};
