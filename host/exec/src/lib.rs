//! The interface between the build engine and whatever runs its steps.
//!
//! The engine knows no VM, and the launcher no Dockerfile: both know this crate. The engine hands a
//! [`StepSpec`] to an [`Executor`] and gets a layer back. Both stop when a [`Cancel`] says so, also
//! while they wait.
//!
//! The law: cancellation is a state that is looked at, not an event that can be missed. Every wait
//! here looks at it at least once per [`TICK`].
//!
//! | module | what it holds |
//! |---|---|
//! | `step` | [`Executor`], the step that it runs, what the step leaves behind or why it failed |
//! | `cancel` | [`Cancel`], the flag of a build |
//! | `scope` | [`CancelScope`], the flag of a group of threads; [`each`], which runs one |
//! | `wait` | [`poll`] and [`wait_while`], the waits that can be cancelled, and their [`TICK`] |
//! | `time_budget` | [`TimeBudget`], a limit that counts only time in which this process ran |
//! | `file` | [`InterruptibleFile`], a pipe or device that may keep its user waiting |
//!
//! ```
//! use std::sync::mpsc::sync_channel;
//!
//! use exec::{Cancel, Stopped, poll};
//!
//! let cancel = Cancel::new();
//! let (sender, receiver) = sync_channel::<u32>(1);
//! let receive = || poll(|| cancel.check(), |tick| receiver.recv_timeout(tick).ok());
//!
//! sender.send(7).unwrap();
//! assert_eq!(receive(), Ok(7));
//! cancel.cancel();
//! assert_eq!(receive(), Err(Stopped));
//! ```
#![forbid(unsafe_code)]

mod cancel;
mod file;
mod scope;
mod step;
mod time_budget;
mod wait;

pub use cancel::{Cancel, Stopped};
pub use file::InterruptibleFile;
pub use scope::{CancelScope, each};
pub use step::{Executor, Output, StepDone, StepError, StepNetwork, StepScript, StepSpec, Stream};
pub use time_budget::{TimeBudget, active_time};
pub use wait::{TICK, poll, wait_while};
