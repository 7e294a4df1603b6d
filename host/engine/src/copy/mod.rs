//! COPY, ADD and WORKDIR: layers that the host makes without a VM.
//!
//! The law: [`plan()`] decides everything that a layer will contain, from names and metadata alone;
//! [`CopyPlan::ingest`] only carries it out. The plan depends on nothing but the instruction, the
//! files it names and the root it is copied into; not on a clock, the umask or the order of
//! directories. Where Docker uses the current time (created directories, files whose content is in
//! the Dockerfile, WORKDIR), a fixed time is used.
//!
//! Paths are resolved inside the root they belong to, both in the source and in the target, so no
//! link of an image leads to a file of the host.

mod archive;
mod builder;
mod chmod;
mod entry;
mod error;
mod ingest;
mod plan;
mod planner;
mod select;
mod source;
mod spec;
#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets a new variant may fail"
)]
mod tests;
mod unpack;
mod walk;
mod write;

pub use error::{CopyError, MissingSource};
pub use plan::{CopyPlan, plan, plan_workdir};
pub use source::SourceTree;
pub use spec::{CopyFrom, CopySource, CopySpec};
