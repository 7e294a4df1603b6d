//! The device without vhost-user and threads: for a model of the protocol and for fuzzing.
//!
//! Not part of the API. [`Device`] is the multiplexer as a value that can be cloned, hashed, and
//! checked for broken invariants; [`WorkerHarness`] is the worker on rings in memory.

mod device;
mod worker;

pub use device::{Closed, Device};
pub use worker::{BASE, RingAddresses, WorkerHarness};
