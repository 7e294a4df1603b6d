//! The connection to the monitor, as far as ending it goes.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_user_backend::ShutdownHandle;

/// Lets any thread end the connection to the monitor, or the wait for it.
pub(crate) struct MonitorConnection {
    state: Mutex<State>,
    closed: EventFd,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    handle: Option<ShutdownHandle>,
}

impl fmt::Debug for MonitorConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorConnection")
            .field("is_closed", &self.lock().is_closed)
            .finish_non_exhaustive()
    }
}

impl MonitorConnection {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let closed = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            state: Mutex::default(),
            closed,
        })
    }

    /// Ends the connection to the monitor, or the wait for it.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        if let Some(handle) = state.handle.take() {
            handle.shutdown();
        }
        // Fails only if the counter is about to overflow, and then every waiter is awake.
        self.closed.write(1).ok();
    }

    /// Remembers how to end the connection that has just been made.
    pub(crate) fn attach(&self, handle: Option<ShutdownHandle>) {
        let mut state = self.lock();
        match handle {
            Some(handle) if state.is_closed => handle.shutdown(),
            handle => state.handle = handle,
        }
    }

    /// Waits for a monitor to connect to `listener`. `false` if [`Self::close`] came first.
    pub(crate) fn wait_for_monitor(&self, listener: &UnixListener) -> io::Result<bool> {
        while !self.lock().is_closed {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.closed.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(failed) => return Err(failed.into()),
            }
            let [is_connecting, is_closed] = fds.map(|fd| fd.any().unwrap_or(false));
            if is_connecting && !is_closed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
