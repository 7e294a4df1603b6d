//! COPY, ADD, and WORKDIR: layers that the host makes by itself.
//!
//! The law: [`plan()`] decides everything that a layer will hold from names and metadata alone,
//! [`CopyPlan::write`] only carries it out. What is decided depends on nothing but the
//! instruction, the files it names, and the root it is copied into; no clock, no umask, no
//! order of directories is part of it. Where Docker takes the time of day (directories made on
//! the way, files whose content stands in the Dockerfile, WORKDIR), a fixed time stands.
//!
//! Paths are resolved inside the root they belong to, on the source side and on the target
//! side, so no link of an image leads anywhere on the host.

mod archive;
mod chmod;
mod draft;
mod error;
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
