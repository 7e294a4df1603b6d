//! A connection, its lock, and the threads that wait for it.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Connection;

/// One connection, shared by the application's threads, the worker and the table.
///
/// Locks are taken in the order: table, channel, schedule. No thread waits for the guest or the
/// application while it holds one.
#[derive(Debug)]
pub(crate) struct Channel {
    core: Mutex<Core>,
    /// There is something to read, or the connection has ended.
    pub(crate) readable: Condvar,
    /// There is buffer space to write, everything is sent, or the connection has ended.
    pub(crate) writable: Condvar,
}

/// What the channel's lock protects.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Core {
    pub(crate) connection: Connection,
    /// Bytes that have left the queue and are not all in guest memory yet.
    pub(crate) in_copy: usize,
    /// Whether the channel is in the schedule's queue for control packets, and in that for data.
    pub(crate) in_urgent: bool,
    pub(crate) in_ready: bool,
    /// Bytes that it has sent in its current turn.
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

    /// Locks the connection. No code panics with the lock held, so poisoning is ignored.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads that wait for this connection.
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
