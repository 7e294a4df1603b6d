//! Groups of threads that stop together: when the build is cancelled, or when one of them fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Stopped};
use crate::wait::poll;

/// The stop flag of a group of threads, on top of the build's [`Cancel`].
///
/// ```
/// use exec::{Cancel, CancelScope, Stopped};
///
/// let cancel = Cancel::new();
/// let (pulls, steps) = (CancelScope::new(&cancel), CancelScope::new(&cancel));
///
/// // A thread that fails stops its own group …
/// pulls.stop();
/// assert_eq!(pulls.check(), Err(Stopped));
/// assert_eq!(steps.check(), Ok(()));
///
/// // … and a cancelled build stops every group.
/// cancel.cancel();
/// assert!(steps.is_stopped());
/// ```
#[derive(Debug, Clone)]
pub struct CancelScope {
    cancel: Cancel,
    failed: Arc<AtomicBool>,
}

impl CancelScope {
    /// A new group under `cancel`.
    pub fn new(cancel: &Cancel) -> Self {
        Self {
            cancel: cancel.clone(),
            failed: Arc::default(),
        }
    }

    /// Tells the others of the group to stop.
    pub fn stop(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub fn is_stopped(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// For waits and loops that end with an error.
    ///
    /// # Errors
    /// When told to stop.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.is_stopped() {
            return Err(Stopped);
        }
        Ok(())
    }

    /// Sleeps for `time`.
    ///
    /// # Errors
    /// When told to stop meanwhile.
    pub fn sleep(&self, time: Duration) -> Result<(), Stopped> {
        let begun = Instant::now();
        poll(
            || self.check(),
            |tick| {
                let left = time.saturating_sub(begun.elapsed());
                // Whether it was cancelled is looked at by the check.
                let _cancelled = self.cancel.sleep(left.min(tick));
                left.is_zero().then_some(())
            },
        )?;
        self.check()
    }
}

/// Does `work` for each of `items` on at most `threads` threads, each with a state of its own made
/// by `start`. The results are in the order of the items.
///
/// # Errors
/// The first error of `start` or `work`, which stops the scope; or [`Stopped`], when the scope was
/// stopped from outside.
///
/// ```
/// use exec::{Cancel, CancelScope, Stopped, each};
///
/// let scope = CancelScope::new(&Cancel::new());
/// let start = || Ok::<_, Stopped>(());
/// let lengths = each(&["a", "bc", "def"], 2, &scope, start, |(), text| Ok(text.len()));
/// assert_eq!(lengths, Ok(vec![1, 2, 3]));
/// ```
pub fn each<T, S, R, E>(
    items: &[T],
    threads: usize,
    scope: &CancelScope,
    start: impl Fn() -> Result<S, E> + Sync,
    work: impl Fn(&mut S, &T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E>
where
    T: Sync,
    R: Send,
    E: Send + From<Stopped>,
{
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    let worker = || {
        let mut done = Vec::new();
        if let Err(error) = drain(items, &next, scope, &start, &work, &mut done) {
            let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
            scope.stop();
        }
        done
    };
    let mut results = join_all(threads.min(items.len()), &worker);
    if let Some(error) = first_error
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(error);
    }
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// What one worker does: takes items until there are no more.
fn drain<T, S, R, E: From<Stopped>>(
    items: &[T],
    next: &AtomicUsize,
    scope: &CancelScope,
    start: &impl Fn() -> Result<S, E>,
    work: &impl Fn(&mut S, &T) -> Result<R, E>,
    done: &mut Vec<(usize, R)>,
) -> Result<(), E> {
    let mut state = start()?;
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(item) = items.get(at) else {
            return Ok(());
        };
        if scope.is_stopped() {
            return Err(Stopped.into());
        }
        done.push((at, work(&mut state, item)?));
    }
}

/// Runs `worker` in `count` threads and puts together what they return. A panic continues here.
fn join_all<R: Send>(count: usize, worker: &(impl Fn() -> Vec<R> + Sync)) -> Vec<R> {
    std::thread::scope(|threads| {
        let threads: Vec<_> = (0..count).map(|_| threads.spawn(worker)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Failure {
        Three,
        Stopped,
    }

    impl From<Stopped> for Failure {
        fn from(_: Stopped) -> Self {
            Self::Stopped
        }
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let scope = CancelScope::new(&Cancel::new());
        let doubled = each(
            &items,
            4,
            &scope,
            || Ok::<_, Failure>(()),
            |(), n| Ok(n * 2),
        )
        .unwrap();
        assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_stops_the_others() {
        let items: Vec<usize> = (0..1000).collect();
        let scope = CancelScope::new(&Cancel::new());
        let done = AtomicUsize::new(0);
        let outcome = each(
            &items,
            2,
            &scope,
            || Ok(()),
            |(), n| {
                done.fetch_add(1, Ordering::Relaxed);
                if *n == 3 { Err(Failure::Three) } else { Ok(()) }
            },
        );
        assert_eq!(outcome, Err(Failure::Three));
        assert!(scope.is_stopped());
    }

    #[test]
    fn a_cancelled_group_gives_no_partial_result() {
        let cancel = Cancel::new();
        let scope = CancelScope::new(&cancel);
        let outcome = each(
            &[1, 2, 3],
            1,
            &scope,
            || Ok(()),
            |(), n| {
                cancel.cancel();
                Ok(*n)
            },
        );
        assert_eq!(outcome, Err(Failure::Stopped));
    }

    #[test]
    fn sleep_ends_when_cancelled() {
        let cancel = Cancel::new();
        let scope = CancelScope::new(&cancel);
        let begun = Instant::now();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                cancel.cancel();
            });
            assert_eq!(scope.sleep(Duration::from_secs(60)), Err(Stopped));
        });
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
