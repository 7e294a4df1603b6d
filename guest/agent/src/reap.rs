//! Reaping child processes.
//!
//! **Law:** exactly one thread waits for children. PID 1 is the parent of every process whose own
//! parent died, so it has to wait for any child. A second waiter, such as the standard library's
//! `Child::wait`, would take results away from it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(Signal),
}

/// Starts children and reports how they ended.
#[derive(Debug, Clone)]
pub(crate) struct Reaper(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    children: Mutex<HashMap<Pid, Sender<Ended>>>,
    /// A child was started.
    started: Condvar,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Child(Receiver<Ended>);

impl Child {
    /// Waits until the child is dead and reaped.
    pub(crate) fn wait(self) -> Result<Ended> {
        self.0.recv().context("the reaper thread is gone")
    }
}

impl Shared {
    fn children(&self) -> MutexGuard<'_, HashMap<Pid, Sender<Ended>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for children forever.
    fn reap(&self) {
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, status)) => self.tell(pid, Ended::Exited(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.tell(pid, Ended::Killed(signal)),
                Err(Errno::ECHILD) => self.wait_for_start(),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn tell(&self, pid: Pid, ended: Ended) {
        // A process that is not in the table was adopted; nobody waits for it.
        if let Some(waiter) = self.children().remove(&pid) {
            // The channel has space, since this is its only message. This fails only if nobody waits
            // any more.
            waiter.try_send(ended).ok();
        }
    }

    fn wait_for_start(&self) {
        let children = self.children();
        let none = |children: &mut HashMap<Pid, _>| children.is_empty();
        drop(self.started.wait_while(children, none));
    }
}

impl Reaper {
    /// Starts the thread.
    pub(crate) fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let reaping = Arc::clone(&shared);
        thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reaping.reap())?;
        Ok(Self(shared))
    }

    /// Starts a child with `start`, which returns its process id and a value of its own.
    pub(crate) fn spawn<T>(
        &self,
        start: impl FnOnce() -> Result<(Pid, T), Errno>,
    ) -> Result<(Child, T), Errno> {
        // The lock is held while the child starts, since it may end before it is in the table.
        let mut children = self.0.children();
        let (pid, other) = start()?;
        let (sender, receiver) = bounded(1);
        children.insert(pid, sender);
        drop(children);
        self.0.started.notify_all();
        Ok((Child(receiver), other))
    }
}
