//! When a group of workers stops: the build was cancelled, or one of them failed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cancel::Cancel;

/// How long anybody sleeps before looking again.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// The stop flag of a group of workers, on top of the build's [`Cancel`].
#[derive(Debug, Clone)]
pub(crate) struct Halt {
    cancel: Cancel,
    failed: Arc<AtomicBool>,
}

impl Halt {
    /// A new group under `cancel`.
    pub(crate) fn new(cancel: &Cancel) -> Self {
        Self {
            cancel: cancel.clone(),
            failed: Arc::default(),
        }
    }

    /// Tells the others of the group to stop.
    pub(crate) fn stop(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// Sleeps for `time` or until stopped. Returns whether it is stopped.
    #[must_use]
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let mut left = time;
        while !left.is_zero() && !self.failed.load(Ordering::Relaxed) {
            let nap = left.min(TICK);
            if self.cancel.sleep(nap) {
                return true;
            }
            left = left.saturating_sub(nap);
        }
        self.is_stopped()
    }
}

/// A group of workers was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

/// Does `work` for each of `items` on at most `threads` threads, each with a state of its own made
/// by `start`. The results are in the order of the items. The first error ends the whole; so does
/// `halt`, with [`Stopped`].
pub(crate) fn each<T, S, R, E>(
    items: &[T],
    threads: usize,
    halt: &Halt,
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
        if let Err(error) = drain(items, &next, halt, &start, &work, &mut done) {
            let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
            halt.stop();
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
    halt: &Halt,
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
        if halt.is_stopped() {
            return Err(Stopped.into());
        }
        done.push((at, work(&mut state, item)?));
    }
}

/// Runs `worker` in `count` threads and puts together what they return. A panic goes on here.
fn join_all<R: Send>(count: usize, worker: &(impl Fn() -> Vec<R> + Sync)) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
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
        let halt = Halt::new(&Cancel::new());
        let doubled = each(&items, 4, &halt, || Ok::<_, Failure>(()), |(), n| Ok(n * 2)).unwrap();
        assert_eq!(doubled, items.iter().map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_stops_the_others() {
        let items: Vec<usize> = (0..1000).collect();
        let halt = Halt::new(&Cancel::new());
        let done = AtomicUsize::new(0);
        let outcome = each(
            &items,
            2,
            &halt,
            || Ok(()),
            |(), n| {
                done.fetch_add(1, Ordering::Relaxed);
                if *n == 3 { Err(Failure::Three) } else { Ok(()) }
            },
        );
        assert_eq!(outcome, Err(Failure::Three));
        assert!(halt.is_stopped());
    }

    #[test]
    fn a_cancelled_group_gives_no_partial_result() {
        let cancel = Cancel::new();
        let halt = Halt::new(&cancel);
        let outcome = each(
            &[1, 2, 3],
            1,
            &halt,
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
        let halt = Halt::new(&cancel);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                cancel.cancel();
            });
            assert!(halt.sleep(Duration::from_secs(60)));
        });
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
