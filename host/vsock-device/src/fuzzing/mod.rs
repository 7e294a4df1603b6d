//! The device without vhost-user and threads: for a model of the protocol and for fuzzing.
//!
//! Not part of the API. [`Device`] is the multiplexer as a value that can be copied, hashed and
//! asked whether its laws hold; [`Rig`] is the worker on rings in memory.

mod device;
mod rig;

pub use device::{Closed, Device};
pub use rig::{BASE, Places, Rig};
