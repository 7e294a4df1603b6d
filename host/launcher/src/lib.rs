//! Boots builder VMs and runs steps in them.
//!
//! [`VmExecutor`] implements [`exec::Executor`]. It boots one VM per build, sends it the
//! layers that it lacks, runs steps in it, and takes their changes into the store.
//!
//! What holds everywhere in this crate:
//!
//! * **A VM never outlives its owner.** The monitor is killed by the kernel when this process ends,
//!   the guest powers off when its control connection ends, and the store has a record of each
//!   monitor from before it was started, for whoever cleans up after us.
//! * **A VM ends in one way.** Success, failure, cancel and a boot that got half-way go through
//!   the same code; a record goes only after the absence of the thing was observed.
//! * **The guest is believed nothing.** Every byte of it may be hostile: it can fail its own build,
//!   and make a wait last as long as a limit allows, and no more. Only layers that came whole, with
//!   their end mark and under this VM's nonce, reach the store, which checks them itself.
//! * **Every wait has an end.** It is the answer, the caller's cancel, or the loss of the guest,
//!   which a heartbeat decides on a thread that does nothing else.
//!
//! Read `monitor` for how VMs are started, `session` for how a guest is talked to, and
//! `executor` for what a build sees.
#![forbid(unsafe_code)]

pub mod accel;
mod audit;
pub mod bridge;
pub mod disk;
mod executor;
mod host;
pub mod image;
pub mod monitor;
pub mod options;
mod patience;
mod session;
pub mod transport;
mod vm;

pub use accel::Accel;
pub use audit::{Finding, audit};
pub use bridge::Bridge;
pub use executor::{VmExecutor, boot_once};
pub use host::memory_range;
pub use image::VmImage;
pub use options::{Notice, Options, Transferred, VmReport, Watcher};
pub use session::{Lost, SessionError};
pub use transport::Transport;
pub use vm::BootError;
