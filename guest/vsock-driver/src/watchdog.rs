//! Whether the device still makes progress.
//!
//! Invariant: the clock is an argument, and a device with nothing to do is never late.

use std::time::{Duration, Instant};

/// The state of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has nothing to do.
    Idle,
    /// It has packets to handle, and time left for them.
    Busy,
    /// It has made no progress for too long.
    Dead,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limit: Duration,
    completed: u64,
    since: Option<Instant>,
}

impl Watchdog {
    /// A device may take up to `limit` for a packet.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            completed: 0,
            since: None,
        }
    }

    /// Checks a device that has completed `completed` packets so far and has `in_flight` to handle.
    pub(crate) fn check(&mut self, now: Instant, in_flight: usize, completed: u64) -> Verdict {
        if in_flight == 0 {
            self.since = None;
            return Verdict::Idle;
        }
        match self.since {
            Some(since) if completed == self.completed => {
                if now.saturating_duration_since(since) >= self.limit {
                    return Verdict::Dead;
                }
            }
            Some(_) | None => {
                self.since = Some(now);
                self.completed = completed;
            }
        }
        Verdict::Busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_without_progress_for_too_long_is_dead() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watchdog = Watchdog::new(Duration::from_secs(10));
        assert_eq!(watchdog.check(at(0), 0, 0), Verdict::Idle);
        assert_eq!(watchdog.check(at(100), 3, 0), Verdict::Busy);
        assert_eq!(watchdog.check(at(109), 3, 0), Verdict::Busy);
        assert_eq!(watchdog.check(at(110), 3, 1), Verdict::Busy);
        assert_eq!(watchdog.check(at(119), 3, 1), Verdict::Busy);
        assert_eq!(watchdog.check(at(120), 3, 1), Verdict::Dead);
        assert_eq!(watchdog.check(at(121), 0, 1), Verdict::Idle);
        assert_eq!(watchdog.check(at(200), 1, 1), Verdict::Busy);
    }
}
