//! Waits that can be cancelled.
//!
//! The law: a wait looks at least once per [`TICK`] whether to go on, and takes what has come before
//! it looks.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest that any wait lasts before it looks again whether to go on: short enough that nobody
/// notices the delay after Ctrl-C, long enough that hundreds of waiting threads cost nothing.
pub const TICK: Duration = Duration::from_millis(50);

/// Calls `attempt` until it gives a value or `check` an error. `attempt` gets the longest time for
/// which it may block. It is called first, so a value that is there already is taken.
///
/// Deadlines, cancellation and the loss of a peer are all for `check` to find.
///
/// # Errors
/// Those of `check`.
pub fn poll<T, E>(
    mut check: impl FnMut() -> Result<(), E>,
    mut attempt: impl FnMut(Duration) -> Option<T>,
) -> Result<T, E> {
    loop {
        if let Some(value) = attempt(TICK) {
            return Ok(value);
        }
        check()?;
    }
}

/// Waits on `changed` while `blocked` says so, or until `check` gives an error. A poisoned lock is
/// taken over.
///
/// # Errors
/// Those of `check`.
pub fn wait_while<'a, T, E>(
    changed: &Condvar,
    mut guard: MutexGuard<'a, T>,
    mut check: impl FnMut() -> Result<(), E>,
    mut blocked: impl FnMut(&mut T) -> bool,
) -> Result<MutexGuard<'a, T>, E> {
    while blocked(&mut guard) {
        check()?;
        let waited = changed.wait_timeout(guard, TICK);
        guard = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Cancel, Stopped};

    #[test]
    fn a_value_that_is_there_is_taken_even_after_a_cancel() {
        let cancel = Cancel::new();
        cancel.cancel();
        assert_eq!(poll(|| cancel.check(), |_| Some(1)), Ok(1));
        let (changed, ready) = (Condvar::new(), Mutex::new(2));
        let guard = ready.lock().unwrap();
        let guard = wait_while(&changed, guard, || cancel.check(), |value| *value == 0);
        assert_eq!(guard.map(|guard| *guard), Ok(2));
    }

    #[test]
    fn without_a_value_the_check_ends_the_wait() {
        let cancel = Cancel::new();
        let mut attempts = 0;
        let outcome: Result<(), Stopped> = poll(
            || cancel.check(),
            |tick| {
                assert_eq!(tick, TICK);
                attempts += 1;
                if attempts == 3 {
                    cancel.cancel();
                }
                None
            },
        );
        assert_eq!((outcome, attempts), (Err(Stopped), 3));
    }

    #[test]
    fn a_cancel_reaches_who_waits_for_a_condition() {
        let (changed, never) = (Condvar::new(), Mutex::new(()));
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let guard = never.lock().unwrap();
                wait_while(&changed, guard, || cancel.check(), |()| true).map(drop)
            });
            cancel.cancel();
            assert_eq!(waiting.join().unwrap(), Err(Stopped));
        });
    }
}
