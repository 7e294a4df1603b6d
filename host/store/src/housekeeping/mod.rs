//! Usage, prune, sweep and check.
//!
//! The law: what keeps an object is asked of the rows each time (leases of live instances, names of
//! images, children), never of a counter, and disk usage is what the file system has allocated for
//! everything below the root.

pub(crate) mod check;
mod filter;
mod graph;
mod prune;
mod rebuild;
mod reserve;
mod room;
mod sweep;
mod usage;

pub use check::{CheckReport, Finding};
pub use filter::{Filter, FilterError};
pub use prune::{PruneEnd, PruneOptions, PruneReport, Pruned};
pub use rebuild::Rebuilt;
pub use room::Space;
pub use usage::{Item, Pin, Usage};

pub(crate) use reserve::{
    give_up as give_up_reserve, is_there as has_reserve, make as make_reserve,
};
