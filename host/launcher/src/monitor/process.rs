//! A running monitor: its start, its end and what it says.
//!
//! The kernel sends the parent-death signal when the *thread* that started a process ends, not
//! when its process does. So one thread starts all monitors and lives as long as this process.
//!
//! A monitor is killed through a pidfd and has ended when the kernel says so; nothing here
//! remembers it as gone because it was told to go.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::tail::Tail;
use super::trampoline::Trampoline;

/// What to start.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The monitor's program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Its working directory.
    pub(crate) dir: PathBuf,
    /// The VM's lock file, locked. The monitor holds the lock as long as it lives.
    pub(crate) lock: File,
}

/// A monitor that was started. It may have ended since.
#[derive(Debug)]
pub(crate) struct Monitor {
    child: Mutex<Child>,
    pidfd: OwnedFd,
    /// What the guest wrote to its console, which is the monitor's standard output.
    pub(crate) console: Tail,
    /// What the monitor itself had to say.
    pub(crate) messages: Tail,
    drains: Mutex<Vec<JoinHandle<()>>>,
}

impl Monitor {
    /// Starts a monitor that cannot outlive this process.
    ///
    /// # Errors
    /// If the program cannot be started. That the *monitor* cannot be executed shows later, as its
    /// end.
    pub(crate) fn start(spec: Spec, trampoline: &Trampoline) -> io::Result<Self> {
        let mut command = Command::new(&trampoline.program);
        command
            .args(&trampoline.args)
            .arg(std::process::id().to_string())
            .arg(spec.program)
            .args(spec.args)
            .current_dir(spec.dir)
            .stdin(spec.lock)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C at the terminal is for the owner, which then ends its VM in order.
            .process_group(0);
        let mut child = spawn(command)?;
        match Self::watch(&mut child) {
            Ok((pidfd, console, messages, drains)) => Ok(Self {
                child: Mutex::new(child),
                pidfd,
                console,
                messages,
                drains: Mutex::new(drains),
            }),
            Err(err) => {
                child.kill()?;
                child.wait()?;
                Err(err)
            }
        }
    }

    fn watch(child: &mut Child) -> io::Result<(OwnedFd, Tail, Tail, Vec<JoinHandle<()>>)> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without an id"))?;
        // The child is not waited for yet, so its id still means this process.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let gone = || io::Error::other("a child without its pipes");
        let (console, one) = Tail::drain("console", child.stdout.take().ok_or_else(gone)?)?;
        let (messages, two) = Tail::drain("monitor", child.stderr.take().ok_or_else(gone)?)?;
        Ok((pidfd, console, messages, vec![one, two]))
    }

    /// Its process id, for messages.
    pub(crate) fn id(&self) -> u32 {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Waits until it has ended, for at most `timeout`. `None` means that it lives.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()
    }

    /// Kills it and waits until it has ended, for at most `timeout`. `None` means that it lives
    /// all the same: it hangs in the kernel.
    pub(crate) fn kill(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(err) => return Err(err.into()),
        }
        let ended = self.wait(timeout)?;
        if ended.is_some() {
            self.join_drains();
        }
        Ok(ended)
    }

    /// Waits for the threads that read its output, which end with it.
    fn join_drains(&self) {
        for thread in self.drains.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                log::warn!("a thread that reads a monitor's output panicked");
            }
        }
    }
}

impl Drop for Monitor {
    /// The last resort: a monitor that nobody can end any more must not stay.
    fn drop(&mut self) {
        match self.wait(Duration::ZERO) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                log::warn!("monitor {} was not ended in order", self.id());
                if let Err(err) = self.kill(Duration::from_secs(1)) {
                    log::warn!("cannot kill monitor {}: {err}", self.id());
                }
            }
        }
    }
}

struct Job {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// Starts a process from the thread that lives as long as this one.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: Mutex<Option<Sender<Job>>> = Mutex::new(None);
    let gone = || io::Error::other("the thread that starts monitors has ended");
    let spawner = {
        let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
        match spawner.as_ref() {
            Some(jobs) => jobs.clone(),
            None => spawner.insert(start_spawner()?).clone(),
        }
    };
    let (answer, answered) = bounded(1);
    spawner.send(Job { command, answer }).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

fn start_spawner() -> io::Result<Sender<Job>> {
    let (jobs, work) = bounded::<Job>(1);
    thread::Builder::new().name("monitors".into()).spawn(move || {
        // Ends never: the sender is a static.
        for mut job in work {
            let started = job.command.spawn();
            // The command holds this process's copy of the VM lock.
            drop(job.command);
            if let Err(unheard) = job.answer.send(started)
                && let Ok(mut child) = unheard.into_inner()
            {
                log::warn!("a monitor was started for nobody");
                child.kill().and_then(|()| child.wait()).ok();
            }
        }
    })?;
    Ok(jobs)
}
