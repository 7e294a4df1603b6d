//! Boots builder VMs and runs steps in them.
#![forbid(unsafe_code)]

pub mod accel;
pub mod disk;
mod host;
pub mod image;
pub mod monitor;
mod session;

pub use accel::Accel;
pub use image::VmImage;
pub use session::{Lost, SessionError};
