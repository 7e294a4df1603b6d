//! Boots builder VMs and runs steps in them.
//!
//! [`VmExecutor`] implements [`exec::Executor`]. It boots one VM per build, sends it the
//! layers that it lacks, runs steps in it, and ingests their changes into the store.
//!
//! The laws of this crate:
//!
//! * **A VM never outlives its owner.** The kernel kills the monitor when this process ends, the
//!   guest powers off when its control connection ends, and the store has a record of each monitor
//!   from before it was started, for the process that cleans up.
//! * **A VM ends in one way.** Success, failure, cancel and a boot that stopped half-way go through
//!   the same code; a record is removed only after the absence of its resource was observed.
//! * **The guest is not trusted.** Every byte of it may be hostile: it can fail its own build, and
//!   make a wait last as long as a limit allows, and no more. Only layers that arrived whole, with
//!   their end mark and under this VM's nonce, reach the store, which validates them itself.
//! * **Every wait ends**: by the answer, the caller's cancel, or the loss of the guest, which the
//!   heartbeat detects on a thread that does nothing else.
//!
//! # Modules
//!
//! | module | what it is |
//! |---|---|
//! | `executor` | what a build sees: steps, and the VM that runs them |
//! | `vm` | one VM from its boot to its end |
//! | `session` | the conversation with the agent in a VM |
//! | [`monitor`] | the process that runs a VM: QEMU and its arguments |
//! | `disk` | the disk of a VM |
//! | [`vsock`] | what provides the vsock device |
//! | [`transport`] | which driver the guest uses for it |
//! | [`accel`] | KVM or emulation |
//! | [`guest_image`] | kernel and initramfs of the VM |
//! | [`options`], [`notice`], [`report`] | what a user chooses, sees meanwhile, and learns at the end |
//! | `audit` | monitors that are left over, for `store check` |
//! | `time_budget` | limits of waits: only time in which this process ran counts |
//! | `host` | memory and processors of the host |
//!
//! # Example
//!
//! ```no_run
//! use std::path::Path;
//!
//! use exec::Executor as _;
//! use launcher::{GuestImage, Options, VmExecutor};
//! use store::{OpenOptions, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = GuestImage::open(Path::new("target/vmimage"))?;
//! let store = Store::open(Path::new("/var/tmp/store"), &OpenOptions::default())?;
//! let executor = VmExecutor::new(store.clone(), Options::new(image));
//! executor.prepare(); // starts to boot; a build would now call `run` for each of its steps
//! let problems = executor.finish();
//! assert!(problems.is_empty(), "{problems:?}");
//! store.close()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod accel;
mod audit;
mod disk;
mod executor;
pub mod guest_image;
mod host;
pub mod monitor;
pub mod notice;
pub mod options;
pub mod report;
mod session;
mod time_budget;
pub mod transport;
mod vm;
pub mod vsock;

pub use accel::Accel;
pub use audit::{Finding, audit};
pub use executor::{VmExecutor, boot_once};
pub use guest_image::GuestImage;
pub use host::memory_range;
pub use notice::{Notice, Watcher};
pub use options::Options;
pub use report::{TransferStats, TransferTotals, VmReport};
pub use session::{Lost, SessionError};
pub use transport::Transport;
pub use vm::BootError;
pub use vsock::VsockBackend;
