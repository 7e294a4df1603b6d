//! How the application's threads wake the worker.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes the worker.
///
/// Its parts are parameters so that the tests run these very steps under loom.
#[derive(Debug)]
pub(crate) struct Notifier<E = EventFd, F = AtomicBool> {
    event: E,
    /// Whether the event is set, or will be by whoever has set this flag.
    is_notified: F,
}

/// What makes the worker's poll return.
pub(crate) trait Event {
    fn set(&self);
    fn clear(&self);
}

impl Event for EventFd {
    fn set(&self) {
        // Can fail only if 2⁶⁴ wake-ups were pending, and then the worker wakes up anyway.
        self.write(1).ok();
    }

    fn clear(&self) {
        // Fails if the event is not set.
        self.read().ok();
    }
}

/// An atomic flag.
pub(crate) trait Flag {
    fn swap(&self, value: bool, order: Ordering) -> bool;
    fn store(&self, value: bool, order: Ordering);
}

impl Flag for AtomicBool {
    fn swap(&self, value: bool, order: Ordering) -> bool {
        Self::swap(self, value, order)
    }

    fn store(&self, value: bool, order: Ordering) {
        Self::store(self, value, order);
    }
}

impl Notifier {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            event,
            is_notified: AtomicBool::new(false),
        })
    }
}

impl<E: Event, F: Flag> Notifier<E, F> {
    /// Wakes the worker, unless it is about to wake up anyway.
    pub(crate) fn notify(&self) {
        if !self.is_notified.swap(true, Ordering::AcqRel) {
            self.event.set();
        }
    }

    /// The worker is awake. To be called before it looks for work.
    pub(crate) fn acknowledge(&self) {
        self.event.clear();
        self.is_notified.store(false, Ordering::Release);
    }

    /// What the worker polls.
    pub(crate) fn event(&self) -> &E {
        &self.event
    }
}

#[cfg(test)]
mod tests;
