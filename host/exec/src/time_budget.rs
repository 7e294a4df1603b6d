//! Active-time budgets: how long a wait may take.
//!
//! The law: only time in which this process ran counts against its peers. If it was stopped (Ctrl-Z,
//! a debugger) or the host was suspended, an answer may have arrived long ago and still be unread,
//! because the thread that reads it has only just resumed too. The kernel does not tell a process
//! that it was stopped, but the process can see it: every wait reads the clock every few
//! milliseconds, and a gap between two reads that is much longer counts as [`MAX_STEP`] at most,
//! whatever the clock says.
//!
//! Everything here takes the time as an argument and reads no clock.

use std::time::{Duration, Instant};

/// Longest time that counts between two reads of the clock. Waits read it at least every 50 ms, so
/// this allows for several reads that a busy host delayed, and is small beside any limit.
const MAX_STEP: Duration = Duration::from_millis(250);

/// The active time between two reads of the clock.
#[must_use]
pub fn active_time(last: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(last).min(MAX_STEP)
}

/// The active time that is left for something that is waited for.
#[derive(Debug, Clone, Copy)]
pub struct TimeBudget {
    limit: Duration,
    left: Duration,
    last: Instant,
}

impl TimeBudget {
    /// A budget of `limit`, from `now` on.
    pub fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            left: limit,
            last: now,
        }
    }

    /// The whole budget.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Feeds the passage of time. Returns whether the budget is used up now.
    #[must_use]
    pub fn elapse(&mut self, now: Instant) -> bool {
        self.left = self.left.saturating_sub(active_time(self.last, now));
        self.last = now;
        self.is_used_up()
    }

    /// Whether the budget was used up when time was last fed.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);
    const TICK: Duration = Duration::from_millis(50);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Feeds time in steps of `every` until the budget is used up; returns the number of steps.
    fn steps(budget: &mut TimeBudget, now: &mut Instant, every: Duration) -> u32 {
        let mut steps = 1;
        loop {
            *now += every;
            if budget.elapse(*now) {
                return steps;
            }
            steps += 1;
        }
    }

    #[test]
    fn it_is_used_up_at_its_limit_and_stays_so() {
        let mut now = Instant::now();
        let mut budget = TimeBudget::new(LIMIT, now);
        assert!(!budget.is_used_up() && budget.limit() == LIMIT);
        assert_eq!(steps(&mut budget, &mut now, TICK), 100);
        assert!(budget.is_used_up() && budget.elapse(now));
    }

    #[test]
    fn steps_that_are_late_on_a_busy_host_count_in_full() {
        let mut now = Instant::now();
        let mut budget = TimeBudget::new(LIMIT, now);
        assert_eq!(steps(&mut budget, &mut now, MAX_STEP), 20);
    }

    #[test]
    fn a_stop_counts_for_one_step_however_long_it_is() {
        for stop in [TICK * 6, LIMIT, HOUR, HOUR * 24 * 365] {
            let mut now = Instant::now();
            let mut budget = TimeBudget::new(LIMIT, now);
            now += stop;
            assert!(!budget.elapse(now), "{stop:?}");
            assert_eq!(steps(&mut budget, &mut now, TICK), 95, "{stop:?}");
        }
    }

    #[test]
    fn a_process_that_is_stopped_again_and_again_still_reaches_its_limit() {
        let mut now = Instant::now();
        let mut budget = TimeBudget::new(LIMIT, now);
        assert_eq!(steps(&mut budget, &mut now, HOUR), 20);
    }

    /// The monotonic clock does not advance while a machine is suspended, and no clock is trusted
    /// never to go back.
    #[test]
    fn a_clock_that_does_not_advance_or_goes_back_costs_nothing() {
        let now = Instant::now();
        let mut budget = TimeBudget::new(LIMIT, now);
        for then in [now, now.checked_sub(TICK).unwrap(), now] {
            assert!(!budget.elapse(then));
        }
        assert!(budget.left >= LIMIT.checked_sub(TICK).unwrap());
    }
}
