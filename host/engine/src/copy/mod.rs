//! COPY and ADD.

mod spec;

pub use spec::{CopyFrom, CopySource, CopySpec};
