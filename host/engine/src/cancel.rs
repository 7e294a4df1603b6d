//! Cancellation is a state, not an event: everything that waits or loops looks at it.

use std::sync::Arc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A shared flag that goes from "go on" to "cancelled" once, and wakes all who sleep on it.
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
