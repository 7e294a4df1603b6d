//! Boots builder VMs and runs steps in them.
#![forbid(unsafe_code)]

pub mod accel;
pub mod disk;
mod executor;
mod host;
pub mod image;
pub mod monitor;
pub mod options;
mod session;
mod vm;

pub use accel::Accel;
pub use executor::{VmExecutor, boot_once};
pub use image::VmImage;
pub use options::{Notice, Options, VmReport, Watcher};
pub use session::{Lost, SessionError};
pub use vm::BootError;
