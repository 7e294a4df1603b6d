//! Time limits of builds and steps.
//!
//! The law: only time in which this process ran counts, as for every wait ([`TimeBudget`]). What has
//! used up its limit is cancelled like anything else, so it ends within the bounds of a cancel.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Output, Stream, TICK, TimeBudget};
use store::Connections;

/// The limits of one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TimeLimits {
    /// How long it may take.
    pub(super) total: Option<Duration>,
    /// How long it may go without a sign of activity.
    pub(super) idle: Option<Duration>,
}

/// The limit that was used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    Total(Duration),
    Idle(Duration),
}

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total(limit) => write!(
                f,
                "it took longer than {}; --step-timeout sets the limit",
                seconds(*limit)
            ),
            Self::Idle(limit) => write!(
                f,
                "it printed nothing for {}; --idle-timeout sets the limit",
                seconds(*limit)
            ),
        }
    }
}

/// A limit as users write it.
pub(super) fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// Counts signs of activity.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicU64);

impl Activity {
    fn sign(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn signs(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An output each piece of which is a sign of activity.
pub(super) struct ActiveOutput<'a> {
    pub(super) inner: &'a mut dyn Output,
    pub(super) activity: &'a Activity,
}

impl Output for ActiveOutput<'_> {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        self.activity.sign();
        self.inner.write(stream, data);
    }

    fn connections(&mut self, connections: Connections) {
        self.inner.connections(connections);
    }
}

/// Does `work`, and cancels `cancel` when a limit is used up. Returns which one that was.
pub(super) fn within<T>(
    limits: TimeLimits,
    activity: &Activity,
    cancel: &Cancel,
    work: impl FnOnce() -> T,
) -> (T, Option<Expired>) {
    if limits == TimeLimits::default() {
        return (work(), None);
    }
    let expired = Mutex::new(None);
    let done = Cancel::new();
    let worked = thread::scope(|scope| {
        // Also if the work panics.
        let _end = CancelOnDrop(&done);
        let watch = thread::Builder::new().name("time-limit".into());
        let watch = watch.spawn_scoped(scope, || {
            if let Some(limit) = wait(limits, activity, &done) {
                *expired.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
                cancel.cancel();
            }
        });
        if let Err(error) = watch {
            log::warn!("cannot watch the time limit: {error}");
        }
        work()
    });
    let expired = expired.into_inner().unwrap_or_else(PoisonError::into_inner);
    (worked, expired)
}

/// Waits until a limit is used up; `None` if the work is done before.
fn wait(limits: TimeLimits, activity: &Activity, done: &Cancel) -> Option<Expired> {
    let now = Instant::now();
    let budget = |limit| TimeBudget::new(limit, now);
    let mut total = limits.total.map(budget);
    let mut idle = limits.idle.map(budget);
    let mut seen = activity.signs();
    while !done.sleep(TICK) {
        let now = Instant::now();
        let signs = activity.signs();
        if signs != seen {
            seen = signs;
            idle = limits.idle.map(|limit| TimeBudget::new(limit, now));
        }
        if let Some(total) = &mut total
            && total.elapse(now)
        {
            return Some(Expired::Total(total.limit()));
        }
        if let Some(idle) = &mut idle
            && idle.elapse(now)
        {
            return Some(Expired::Idle(idle.limit()));
        }
    }
    None
}

struct CancelOnDrop<'a>(&'a Cancel);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    /// Far longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn run(limits: TimeLimits, work: impl FnOnce(&Activity, &Cancel) -> bool) -> Option<Expired> {
        let (activity, cancel) = (Activity::default(), Cancel::new());
        let (ended_early, expired) =
            within(limits, &activity, &cancel, || work(&activity, &cancel));
        assert!(ended_early);
        assert_eq!(cancel.is_cancelled(), expired.is_some());
        expired
    }

    #[test]
    fn work_that_takes_too_long_or_is_silent_too_long_is_cancelled() {
        let total = TimeLimits {
            total: Some(SHORT),
            idle: Some(LONG),
        };
        let expired = run(total, |_, cancel| cancel.sleep(LONG));
        assert_eq!(expired, Some(Expired::Total(SHORT)));
        let idle = TimeLimits {
            total: Some(LONG),
            idle: Some(SHORT),
        };
        let expired = run(idle, |_, cancel| cancel.sleep(LONG));
        assert_eq!(expired, Some(Expired::Idle(SHORT)));
    }

    #[test]
    fn work_that_shows_signs_of_activity_or_ends_in_time_is_left_alone() {
        let idle = TimeLimits {
            total: None,
            idle: Some(LONG),
        };
        assert_eq!(run(idle, |_, _| true), None);
        assert_eq!(run(TimeLimits::default(), |_, _| true), None);
        // A sign puts the limit off: without it this would end after the first one.
        let idle = TimeLimits {
            total: None,
            idle: Some(4 * SHORT),
        };
        let expired = run(idle, |activity, cancel| {
            (0..6).all(|_| {
                activity.sign();
                !cancel.sleep(SHORT)
            })
        });
        assert_eq!(expired, None);
    }
}
