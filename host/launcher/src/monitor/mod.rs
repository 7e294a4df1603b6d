//! The monitor: the process that runs a VM.
//!
//! `qemu` finds the program, `machine` makes its arguments, `trampoline` is the process between this
//! one and the monitor, `confine` is what that process gives up, `process` starts and kills the monitor,
//! and `tail` keeps what it printed last.

pub mod confine;
pub(crate) mod machine;
pub(crate) mod process;
pub mod qemu;
pub(crate) mod tail;
pub mod trampoline;

pub use trampoline::{COMMAND, Trampoline, become_monitor};
