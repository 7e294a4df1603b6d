//! The build engine: Dockerfile front end, plan, cache keys, solver, build context, COPY, images.
#![forbid(unsafe_code)]

pub mod build;
pub mod changes;
pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod download;
pub mod event;
mod expansion;
pub mod export;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod image;
mod keys;
pub mod plan;
mod redact;
pub mod registry;
pub mod rootfs;
mod solver;
