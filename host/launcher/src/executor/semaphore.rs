//! How much a guest does at the same time. The guest has the same bounds, but what waited there
//! would wait while time limits run.

use std::sync::{Condvar, Mutex, PoisonError};

use exec::{Cancel, Stopped, wait_while};
use wire::limits::{MAX_STEPS, MAX_TRANSFERS};

use crate::session::SessionError;

/// Layers that are sent at the same time. Unpacking one keeps a processor of the guest busy, and
/// each holds two pieces in this process's memory.
pub(super) const MAX_IMPORTS: usize = 2;

/// The bounds of one guest.
#[derive(Debug)]
pub(super) struct Semaphores {
    pub(super) imports: Semaphore,
    pub(super) exports: Semaphore,
    pub(super) steps: Semaphore,
}

impl Default for Semaphores {
    fn default() -> Self {
        Self {
            imports: Semaphore::new(MAX_IMPORTS),
            exports: Semaphore::new(MAX_TRANSFERS - MAX_IMPORTS),
            steps: Semaphore::new(MAX_STEPS),
        }
    }
}

/// A counting semaphore whose wait can be cancelled.
#[derive(Debug)]
pub(super) struct Semaphore {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Semaphore {
    fn new(permits: usize) -> Self {
        Self {
            free: Mutex::new(permits),
            changed: Condvar::new(),
        }
    }

    /// Waits for a permit, which is returned when it is dropped.
    pub(super) fn acquire(&self, cancel: &Cancel) -> Result<Permit<'_>, SessionError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let none_free = |free: &mut usize| *free == 0;
        let mut free = wait_while(&self.changed, free, || cancel.check(), none_free)
            .map_err(|Stopped| SessionError::Cancelled)?;
        *free -= 1;
        Ok(Permit(self))
    }
}

/// A permit of a semaphore.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Semaphore);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}
