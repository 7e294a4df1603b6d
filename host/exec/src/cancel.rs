//! Cancellation is a state, not an event: everything that waits or loops looks at it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The work was told to stop: the build was cancelled, or another thread of its group failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// A shared flag that changes once, to "cancelled", and then wakes every thread that sleeps on it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cancelled: Mutex<bool>,
    changed: Condvar,
}

impl Cancel {
    /// A new flag, not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels. Doing it again changes nothing.
    pub fn cancel(&self) {
        *self
            .0
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }

    /// Whether [`Self::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self
            .0
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// For waits and loops that end with an error.
    ///
    /// # Errors
    /// When cancelled.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_cancelled() {
            return Err(Stopped);
        }
        Ok(())
    }

    /// Sleeps for `time`, or until cancelled. Returns whether it is cancelled.
    #[must_use]
    pub fn sleep(&self, time: Duration) -> bool {
        let cancelled = self
            .0
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (cancelled, _) = self
            .0
            .changed
            .wait_timeout_while(cancelled, time, |cancelled| !*cancelled)
            .unwrap_or_else(PoisonError::into_inner);
        *cancelled
    }
}
