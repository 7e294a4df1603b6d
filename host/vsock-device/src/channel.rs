//! A connection and the threads that wait for it.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::{Cause, Connection};

/// One connection, shared by the application's threads, the worker and the table.
///
/// Locks are taken in the order: table, channel, schedule. Nobody waits for guest or application
/// with one of them held.
#[derive(Debug)]
pub(crate) struct Channel {
    core: Mutex<Core>,
    /// There is something to read, or there never will be.
    pub(crate) readable: Condvar,
    /// There is room to write, everything is written, or neither will ever be.
    pub(crate) writable: Condvar,
}

/// What the channel's lock protects.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Core {
    pub(crate) connection: Connection,
    /// Bytes that are out of the queue and not yet all in guest memory.
    pub(crate) in_copy: usize,
    /// Whether the schedule holds this channel in its lane for control packets, and for data.
    pub(crate) in_urgent: bool,
    pub(crate) in_ready: bool,
    /// Bytes that it has sent since its turn began.
    pub(crate) turn: usize,
}

impl Channel {
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            core: Mutex::new(Core {
                connection,
                in_copy: 0,
                in_urgent: false,
                in_ready: false,
                turn: 0,
            }),
            readable: Condvar::new(),
            writable: Condvar::new(),
        }
    }

    /// Another channel in the same state.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn copy(core: &Core) -> Self {
        Self {
            core: Mutex::new(core.clone()),
            readable: Condvar::new(),
            writable: Condvar::new(),
        }
    }

    /// Locks the connection. No code panics with the lock held, so a poisoned one is as good.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who waits for this connection.
    pub(crate) fn wake_all(&self) {
        self.readable.notify_all();
        self.writable.notify_all();
    }
}

/// When a wait that starts now has to end.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// Waits for `changed`, until `deadline` if there is one.
pub(crate) fn wait<'a>(
    changed: &Condvar,
    core: MutexGuard<'a, Core>,
    deadline: Option<Instant>,
) -> io::Result<MutexGuard<'a, Core>> {
    let Some(deadline) = deadline else {
        return Ok(changed.wait(core).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let woken = changed
        .wait_timeout(core, left)
        .unwrap_or_else(PoisonError::into_inner);
    Ok(woken.0)
}

/// Says a cause to the application.
pub(crate) fn error(cause: Cause) -> io::Error {
    let (kind, text) = match cause {
        Cause::Finished => (io::ErrorKind::BrokenPipe, "the connection is closed"),
        Cause::Refused => (
            io::ErrorKind::ConnectionRefused,
            "the guest refused the connection",
        ),
        Cause::ResetByGuest => (
            io::ErrorKind::ConnectionReset,
            "the guest reset the connection",
        ),
        Cause::ResetByHost => (
            io::ErrorKind::ConnectionAborted,
            "the connection was reset on this side",
        ),
        Cause::Violation(violation) => {
            let text = format!("the guest broke the rules of vsock: {violation}");
            return io::Error::new(io::ErrorKind::ConnectionReset, text);
        }
        Cause::GuestStopped => (
            io::ErrorKind::ConnectionReset,
            "the guest stopped its vsock driver",
        ),
        Cause::MonitorGone => (
            io::ErrorKind::ConnectionReset,
            "the monitor closed the vsock device",
        ),
        Cause::DeviceFailed => (
            io::ErrorKind::ConnectionReset,
            "the vsock device gave up on the guest",
        ),
        Cause::DeviceStopped => (
            io::ErrorKind::ConnectionReset,
            "the vsock device was shut down",
        ),
    };
    io::Error::new(kind, text)
}
