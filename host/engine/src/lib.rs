//! The build engine: Dockerfile front end, plan, cache keys, solver, build context, COPY, images.
#![forbid(unsafe_code)]

pub mod cancel;
pub mod copy;
pub mod event;
pub mod executor;
mod halt;
pub mod image;
pub mod registry;

pub use cancel::Cancel;
