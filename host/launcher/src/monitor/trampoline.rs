//! The trampoline: what runs between fork and exec, as a program of its own.
//!
//! A monitor must not outlive the process that started it, however that one ends. The kernel
//! ensures that: a process that set its parent-death signal is killed when its parent ends. But only
//! the process itself can set it, so the launcher starts its own program again with a hidden
//! command, which sets the signal and then becomes the monitor by `exec`, which keeps the signal. In
//! between it gives up all that the monitor does not need (`confine`).
//!
//! Its standard input is the VM's lock file. The monitor inherits it and so holds the lock for as
//! long as it lives. The trampoline writes its process id into that file, for a process that later
//! finds the lock held by a monitor without an owner.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::unistd::getpid;

use super::confine::apply::{become_confined, check_owner};
use super::confine::handover::Handover;

/// The hidden command, for which the program calls [`become_monitor`].
pub const COMMAND: &str = "__monitor";

/// How to start this program so that it calls [`become_monitor`] with what follows `args`.
#[derive(Debug, Clone)]
pub struct Trampoline {
    /// The program. `/proc/self/exe` works even if an update has replaced the file meanwhile.
    pub program: OsString,
    /// Arguments that lead to [`become_monitor`].
    pub args: Vec<OsString>,
}

impl Default for Trampoline {
    /// For a program that calls [`become_monitor`] if its first argument is [`COMMAND`].
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            args: vec![COMMAND.into()],
        }
    }
}

/// Makes this process the monitor, confined as `args` say, which are those that follow [`COMMAND`].
/// Returns only if that fails; the caller should then print the error and exit.
///
/// # Errors
/// If the owner has ended already, the arguments are invalid, the confinement cannot be put into force
/// or the program cannot be executed.
pub fn become_monitor(args: impl IntoIterator<Item = OsString>) -> io::Result<Infallible> {
    let handover = Handover::from_args(args)?;
    check_owner(handover.owner)?;
    write_pid()?;
    become_confined(handover)
}

/// Writes the process id into the lock file, which is standard input.
fn write_pid() -> io::Result<()> {
    let mut lock = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    writeln!(lock, "{}", getpid())
}
