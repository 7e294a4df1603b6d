//! How the application's threads wake the worker.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes the worker.
#[derive(Debug)]
pub(crate) struct Bell {
    event: EventFd,
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            event,
            rung: AtomicBool::new(false),
        })
    }

    /// Wakes the worker, unless it is to wake up anyway.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It can fail only if 2⁶⁴ wake-ups were pending, and then the worker wakes up.
            self.event.write(1).ok();
        }
    }

    /// The worker is awake. To be called before it looks for work.
    pub(crate) fn answer(&self) {
        // Fails if the bell was not rung, which is as good.
        self.event.read().ok();
        self.rung.store(false, Ordering::Release);
    }

    /// What the worker has to watch.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}
