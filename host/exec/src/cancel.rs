//! Cancellation is a state, not an event: everything that waits or loops looks at it.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
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
    /// Cancelled with this one.
    children: Mutex<Vec<Weak<Self>>>,
}

impl Inner {
    fn cancel(&self) {
        let cancelled = &self.cancelled;
        *cancelled.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
        let children = &self.children;
        let children =
            std::mem::take(&mut *children.lock().unwrap_or_else(PoisonError::into_inner));
        for child in children.iter().filter_map(Weak::upgrade) {
            child.cancel();
        }
    }
}

impl Cancel {
    /// A new flag, not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag of its own for a part of the work, which is also cancelled when this one is.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::new();
        let children = &self.0.children;
        let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        // Whoever cancels this one looks at the children afterwards, so no child is missed.
        if self.is_cancelled() {
            child.cancel();
        }
        child
    }

    /// Cancels. Doing it again changes nothing.
    pub fn cancel(&self) {
        self.0.cancel();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_cancelled_with_its_parent_and_never_the_other_way_round() {
        let parent = Cancel::new();
        let (first, second) = (parent.child(), parent.child());
        let grandchild = first.child();
        first.cancel();
        assert!(grandchild.is_cancelled() && !parent.is_cancelled() && !second.is_cancelled());
        let sleeper = second.clone();
        let slept = std::thread::spawn(move || sleeper.sleep(Duration::from_secs(60)));
        parent.cancel();
        assert!(slept.join().unwrap());
        assert!(parent.child().is_cancelled());
    }
}
