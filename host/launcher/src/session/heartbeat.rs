//! The heartbeat: whether the guest is still alive.
//!
//! A wait for the guest is bounded by its liveness, not by a fixed time. Only time in which this
//! process ran counts, as for every wait ([`active_time`](crate::time_budget::active_time)).

use std::time::Duration;

use wire::limits::{HEARTBEAT_LOST_MS, HEARTBEAT_MS};

/// The state of the heartbeat. Its inputs are elapsed time and answers; it reads no clock.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    period: Duration,
    limit: Duration,
    /// Number of the next heartbeat.
    next: u64,
    /// The oldest unanswered heartbeat, if there is one, and for how long it has been unanswered.
    unanswered: Option<(u64, Duration)>,
    since_last: Duration,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeartbeatAction {
    /// Nothing.
    Wait,
    /// Send the heartbeat with this number.
    Send(u64),
    /// The guest did not answer for this long: it counts as lost.
    Lost(Duration),
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new(
            Duration::from_millis(HEARTBEAT_MS),
            Duration::from_millis(HEARTBEAT_LOST_MS),
        )
    }
}

impl Heartbeat {
    /// Sends one every `period`; a guest that answers nothing for `limit` is lost.
    pub(crate) fn new(period: Duration, limit: Duration) -> Self {
        Self {
            period,
            limit,
            next: 1,
            unanswered: None,
            since_last: Duration::ZERO,
        }
    }

    /// Feeds the active time that passed since the last call.
    #[must_use]
    pub(crate) fn tick(&mut self, elapsed: Duration) -> HeartbeatAction {
        if let Some((_, waited)) = &mut self.unanswered {
            *waited += elapsed;
            if *waited >= self.limit {
                return HeartbeatAction::Lost(*waited);
            }
        }
        self.since_last += elapsed;
        if self.since_last < self.period {
            return HeartbeatAction::Wait;
        }
        self.since_last = Duration::ZERO;
        let number = self.next;
        self.next += 1;
        self.unanswered.get_or_insert((number, Duration::ZERO));
        HeartbeatAction::Send(number)
    }

    /// For how long the oldest unanswered heartbeat has been unanswered.
    pub(super) fn silence(&self) -> Duration {
        self.unanswered.map_or(Duration::ZERO, |(_, waited)| waited)
    }

    /// The guest answered the heartbeat `number`. Returns whether that one was ever sent.
    #[must_use]
    pub(crate) fn on_answer(&mut self, number: u64) -> bool {
        if self.unanswered.is_some_and(|(oldest, _)| number >= oldest) {
            // Later ones may still be on their way; they count from when they were sent.
            self.unanswered = (number + 1 < self.next).then_some((number + 1, Duration::ZERO));
        }
        number < self.next && number > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::time_budget::active_time;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets seconds pass; returns the heartbeats sent, or the second in which the guest was lost.
    fn run(heartbeat: &mut Heartbeat, seconds: u64) -> Result<Vec<u64>, u64> {
        let mut sent = Vec::new();
        for second in 0..seconds {
            match heartbeat.tick(SECOND) {
                HeartbeatAction::Wait => {}
                HeartbeatAction::Send(number) => sent.push(number),
                HeartbeatAction::Lost(_) => return Err(second),
            }
        }
        Ok(sent)
    }

    #[test]
    fn heartbeats_go_out_at_their_period() {
        assert_eq!(run(&mut Heartbeat::default(), 7), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn a_guest_is_lost_when_its_oldest_unanswered_heartbeat_reaches_the_limit() {
        assert_eq!(run(&mut Heartbeat::default(), 1000), Err(2 + 60 - 1));
    }

    #[test]
    fn a_guest_that_answers_late_but_in_time_is_never_lost() {
        let mut heartbeat = Heartbeat::default();
        for _ in 0..100 {
            let sent = run(&mut heartbeat, 50).unwrap();
            assert!(heartbeat.on_answer(*sent.last().unwrap()));
        }
    }

    #[test]
    fn an_answer_to_an_old_heartbeat_does_not_cover_the_later_ones() {
        let mut heartbeat = Heartbeat::default();
        run(&mut heartbeat, 10).unwrap();
        assert!(heartbeat.on_answer(1));
        assert!(run(&mut heartbeat, 100).is_err());
    }

    #[test]
    fn time_in_which_this_process_was_stopped_does_not_count_against_the_guest() {
        let mut heartbeat = Heartbeat::default();
        run(&mut heartbeat, 10).unwrap();
        let now = Instant::now();
        let stopped = active_time(now, now + Duration::from_secs(3600));
        assert_eq!(heartbeat.tick(stopped), HeartbeatAction::Wait);
        assert!(run(&mut heartbeat, 20).is_ok());
    }

    #[test]
    fn an_answer_to_a_heartbeat_that_was_never_sent_is_detected() {
        let mut heartbeat = Heartbeat::default();
        run(&mut heartbeat, 3).unwrap();
        assert!(!heartbeat.on_answer(9) && !heartbeat.on_answer(0) && heartbeat.on_answer(1));
    }
}
