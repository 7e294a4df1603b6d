//! Is the guest still there? Heartbeats and the time for which none was answered.
//!
//! Waiting for a guest is bounded by its liveness, not by a fixed time. Only time in which this
//! process ran counts, as for every wait ([`counted`](crate::patience::counted)).

use std::time::Duration;

use wire::limits::{HEARTBEAT_LOST_MS, HEARTBEAT_MS};

/// The state of the heartbeat. It is fed with time and answers.
#[derive(Debug)]
pub(crate) struct Pulse {
    period: Duration,
    limit: Duration,
    /// Number of the next heartbeat.
    next: u64,
    /// The oldest heartbeat without an answer, if there is one, and for how long.
    waiting: Option<(u64, Duration)>,
    since_last: Duration,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing.
    Rest,
    /// Send the heartbeat with this number.
    Send(u64),
    /// The guest did not answer for this long: it counts as lost.
    Lost(Duration),
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new(
            Duration::from_millis(HEARTBEAT_MS),
            Duration::from_millis(HEARTBEAT_LOST_MS),
        )
    }
}

impl Pulse {
    /// Beats every `period`; a guest that answers nothing for `limit` is lost.
    pub(crate) fn new(period: Duration, limit: Duration) -> Self {
        Self {
            period,
            limit,
            next: 1,
            waiting: None,
            since_last: Duration::ZERO,
        }
    }

    /// Feeds the time that passed since the last call, as far as it counts.
    #[must_use]
    pub(crate) fn tick(&mut self, elapsed: Duration) -> Beat {
        if let Some((_, waited)) = &mut self.waiting {
            *waited += elapsed;
            if *waited >= self.limit {
                return Beat::Lost(*waited);
            }
        }
        self.since_last += elapsed;
        if self.since_last < self.period {
            return Beat::Rest;
        }
        self.since_last = Duration::ZERO;
        let number = self.next;
        self.next += 1;
        self.waiting.get_or_insert((number, Duration::ZERO));
        Beat::Send(number)
    }

    /// The guest answered the heartbeat `number`. Returns whether that one was ever sent.
    #[must_use]
    pub(crate) fn answered(&mut self, number: u64) -> bool {
        if self.waiting.is_some_and(|(oldest, _)| number >= oldest) {
            // Later ones may still be on their way; they count from their own sending.
            self.waiting = (number + 1 < self.next).then_some((number + 1, Duration::ZERO));
        }
        number < self.next && number > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::patience::counted;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets seconds pass; returns what was sent, or when the guest was lost.
    fn run(pulse: &mut Pulse, seconds: u64) -> Result<Vec<u64>, u64> {
        let mut sent = Vec::new();
        for second in 0..seconds {
            match pulse.tick(SECOND) {
                Beat::Rest => {}
                Beat::Send(number) => sent.push(number),
                Beat::Lost(_) => return Err(second),
            }
        }
        Ok(sent)
    }

    #[test]
    fn heartbeats_go_out_at_their_period() {
        assert_eq!(run(&mut Pulse::default(), 7), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn silence_is_loss_after_the_limit_counted_from_the_first_unanswered() {
        assert_eq!(run(&mut Pulse::default(), 1000), Err(2 + 60 - 1));
    }

    #[test]
    fn a_guest_that_answers_late_but_in_time_is_never_lost() {
        let mut pulse = Pulse::default();
        for _ in 0..100 {
            let sent = run(&mut pulse, 50).unwrap();
            assert!(pulse.answered(*sent.last().unwrap()));
        }
    }

    #[test]
    fn an_answer_to_an_old_heartbeat_does_not_cover_the_later_ones() {
        let mut pulse = Pulse::default();
        run(&mut pulse, 10).unwrap();
        assert!(pulse.answered(1));
        assert!(run(&mut pulse, 100).is_err());
    }

    #[test]
    fn time_in_which_this_process_was_stopped_is_not_held_against_the_guest() {
        let mut pulse = Pulse::default();
        run(&mut pulse, 10).unwrap();
        let now = Instant::now();
        let stopped = counted(now, now + Duration::from_secs(3600));
        assert_eq!(pulse.tick(stopped), Beat::Rest);
        assert!(run(&mut pulse, 20).is_ok());
    }

    #[test]
    fn an_answer_to_a_heartbeat_that_was_never_sent_is_told() {
        let mut pulse = Pulse::default();
        run(&mut pulse, 3).unwrap();
        assert!(!pulse.answered(9) && !pulse.answered(0) && pulse.answered(1));
    }
}
