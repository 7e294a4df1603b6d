//! The trampoline: what runs between fork and exec, as a program of its own.
//!
//! A monitor must not outlive the process that started it, however that one ends. The kernel
//! ensures that: a process that set its parent-death signal is killed when its parent ends. But only
//! the process itself can set it, so the launcher starts its own program again with a hidden
//! command, which sets the signal and then becomes the monitor by `exec`, which keeps the signal.
//!
//! Its standard input is the VM's lock file. The monitor inherits it and so holds the lock for as
//! long as it lives. The trampoline writes its process id into that file, for a process that later
//! finds the lock held by a monitor without an owner.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

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

/// Makes this process the monitor. `args` are those that follow [`COMMAND`]: the process id of
/// the owner, then the monitor's program and its arguments. Returns only if that fails; the caller
/// should then print the error and exit.
///
/// # Errors
/// If the owner has ended already, the arguments are invalid or the program cannot be executed.
pub fn become_monitor(args: impl IntoIterator<Item = OsString>) -> io::Result<Infallible> {
    let mut args = args.into_iter();
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "an argument is missing");
    let owner = args
        .next()
        .and_then(|owner| owner.to_str()?.parse().ok())
        .ok_or_else(missing)?;
    let program = args.next().ok_or_else(missing)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // An owner that ended before the line above sends no signal any more; then somebody else is
    // the parent by now.
    if getppid() != Pid::from_raw(owner) {
        return Err(io::Error::other("the owner of this monitor has ended"));
    }
    write_pid()?;
    Err(Command::new(program).args(args).exec())
}

/// Writes the process id into the lock file, which is standard input.
fn write_pid() -> io::Result<()> {
    let mut lock = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    writeln!(lock, "{}", getpid())
}
