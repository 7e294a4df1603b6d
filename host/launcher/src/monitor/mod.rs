//! The monitor: the process that runs a VM.
//!
//! `qemu` finds the program, `machine` makes its arguments, `trampoline` is the process between this
//! one and the monitor, `process` starts and kills it, and `tail` keeps what it printed last.

pub(crate) mod machine;
pub(crate) mod process;
pub mod qemu;
pub(crate) mod tail;
pub mod trampoline;

pub use trampoline::{COMMAND, Trampoline, become_monitor};
