//! How long somebody is waited for.
//!
//! The law: only time in which this process ran counts against others. If it was stopped (Ctrl-Z, a
//! debugger) or the host slept, an answer may have come long ago and lie unread, because the thread
//! that reads it has only just woken too. A process is not told that it was stopped, but it can see
//! it: whoever waits looks at the clock every few milliseconds, and a gap between two looks that is
//! much longer than that counts for no more than [`LONGEST_LOOK`], whatever the clock says.
//!
//! Everything here is fed with the time and knows no clock, save [`Clock`].

use std::time::{Duration, Instant};

/// Longest time that one look at the clock counts for. Waits look at least every 50 ms, so this is
/// several looks that a busy host let fall out, and little beside any limit.
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// What counts of the time from one look at the clock to the next.
#[must_use]
pub(crate) fn counted(last: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(last).min(LONGEST_LOOK)
}

/// The time that is left to somebody who is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    limit: Duration,
    left: Duration,
    last: Instant,
}

impl Patience {
    /// Lasts for `limit` from now on.
    pub(crate) fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            left: limit,
            last: now,
        }
    }

    /// How long it lasts in all.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Feeds the passage of time. Returns whether it is over now.
    #[must_use]
    pub(crate) fn ends(&mut self, now: Instant) -> bool {
        self.left = self.left.saturating_sub(counted(self.last, now));
        self.last = now;
        self.is_over()
    }

    /// Whether it was over when time was fed last.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.left.is_zero()
    }
}

/// Says what time it is. A test can stop everybody who reads it for a while.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    #[cfg(test)]
    stopped: std::sync::Arc<std::sync::Mutex<Duration>>,
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        let now = Instant::now();
        #[cfg(test)]
        let now = now + *self.stopped.lock().unwrap();
        now
    }

    /// It is later at once, as it is for a process that was stopped.
    #[cfg(test)]
    pub(crate) fn stop_for(&self, time: Duration) {
        *self.stopped.lock().unwrap() += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);
    const TICK: Duration = Duration::from_millis(50);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Looks every `every` until it ends, and says after how many looks.
    fn looks(patience: &mut Patience, now: &mut Instant, every: Duration) -> u32 {
        let mut looks = 1;
        loop {
            *now += every;
            if patience.ends(*now) {
                return looks;
            }
            looks += 1;
        }
    }

    #[test]
    fn it_ends_at_its_limit_and_stays_over() {
        let mut now = Instant::now();
        let mut patience = Patience::new(LIMIT, now);
        assert!(!patience.is_over() && patience.limit() == LIMIT);
        assert_eq!(looks(&mut patience, &mut now, TICK), 100);
        assert!(patience.is_over() && patience.ends(now));
    }

    #[test]
    fn looks_that_are_late_on_a_busy_host_count_in_full() {
        let mut now = Instant::now();
        let mut patience = Patience::new(LIMIT, now);
        assert_eq!(looks(&mut patience, &mut now, LONGEST_LOOK), 20);
    }

    #[test]
    fn a_stop_counts_for_one_look_however_long_it_is() {
        for stop in [TICK * 6, LIMIT, HOUR, HOUR * 24 * 365] {
            let mut now = Instant::now();
            let mut patience = Patience::new(LIMIT, now);
            now += stop;
            assert!(!patience.ends(now), "{stop:?}");
            assert_eq!(looks(&mut patience, &mut now, TICK), 95, "{stop:?}");
        }
    }

    #[test]
    fn whoever_is_stopped_again_and_again_still_comes_to_an_end() {
        let mut now = Instant::now();
        let mut patience = Patience::new(LIMIT, now);
        assert_eq!(looks(&mut patience, &mut now, HOUR), 20);
    }

    /// The monotonic clock of a machine that was suspended stands still, and no clock is trusted to
    /// never go back.
    #[test]
    fn a_clock_that_stands_still_or_goes_back_costs_nothing() {
        let now = Instant::now();
        let mut patience = Patience::new(LIMIT, now);
        for then in [now, now.checked_sub(TICK).unwrap(), now] {
            assert!(!patience.ends(then));
        }
        assert!(patience.left >= LIMIT.checked_sub(TICK).unwrap());
    }
}
