//! The monitor: the process that runs a VM.

pub(crate) mod process;
pub mod qemu;
pub(crate) mod tail;
pub mod trampoline;

pub use trampoline::{COMMAND, Trampoline, become_monitor};
