//! The pool of guest disks.
//!
//! A guest disk is a cache of unpacked layers: the store has everything that is on it, so discarding
//! one costs time and nothing else. The laws of this module:
//!
//! * A disk is used by the process that holds the lock on its lock file, and by no other. Locks are
//!   tried, never waited for: if no disk is free, a new one is created.
//! * A disk is taken from the pool only if its last VM ended cleanly *and* the host was not
//!   restarted since. The VM runs without flushing to the host's disk, so a power loss may corrupt
//!   what looked complete. The proof is the file `.clean`, which names the host's boot and is
//!   removed *before* a VM starts: any other end leaves no such file, and the next process that
//!   finds the disk free discards it.
//!
//! Files of the disk `N`: `N.lock` (created first, removed last), `N.img`, `N.clean`.

mod files;
mod free;
mod pool;
mod template;
#[cfg(test)]
mod tests;

pub use files::DiskError;
pub(crate) use free::inventory;
pub use free::{FreeDisk, free};
pub use pool::{Disk, DiskPool};
