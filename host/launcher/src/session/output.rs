//! The output of a step, on its way from the guest to its consumer.
//!
//! The law: a step that is dead or being killed ends within a limit, or its guest is lost; but the
//! guest does not pay for a slow host. While the host is slow to consume output (its disk is busy),
//! the guest has to wait as well: it can end neither the output nor the step before the host has
//! consumed what precedes the end. So the limits of the guest are measured by a clock that stops
//! while the host consumes ([`OutputClock`]).

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use exec::Stream;

use super::Session;
use super::connection::GuestConnection;
use super::error::Lost;
use super::flows::SharedOutput;
use super::shared::lock;
use super::transfer::ReceiveError;
use crate::time_budget::{Clock, TimeBudget};

/// Bit of a data frame's flags: standard error, not standard output.
const STDERR: u8 = 1;

/// A clock that stops while the host consumes a piece of output. One thread consumes, another one
/// reads the clock.
#[derive(Debug, Default)]
pub(super) struct OutputClock {
    clock: Clock,
    consumption: Mutex<Consumption>,
}

#[derive(Debug, Default)]
struct Consumption {
    pieces: u64,
    /// The time that all pieces took, except the current one.
    time: Duration,
    /// Since when the current piece is being consumed.
    since: Option<Instant>,
}

impl OutputClock {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            consumption: Mutex::default(),
        }
    }

    /// Consumes a piece.
    fn piece(&self, consume: impl FnOnce()) {
        {
            let mut consumption = lock(&self.consumption);
            consumption.pieces += 1;
            consumption.since = Some(self.clock.now());
        }
        consume();
        let mut consumption = lock(&self.consumption);
        if let Some(since) = consumption.since.take() {
            consumption.time += self.clock.now().saturating_duration_since(since);
        }
    }

    /// The number of pieces so far, the current one included.
    fn pieces(&self) -> u64 {
        lock(&self.consumption).pieces
    }

    /// The time as it counts for the guest.
    pub(super) fn guest_time(&self) -> Instant {
        // The clock is read under the lock, so this never goes back.
        let consumption = lock(&self.consumption);
        let now = self.clock.now();
        let current = consumption
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        now.checked_sub(consumption.time + current).unwrap_or(now)
    }
}

impl Session {
    /// Passes on the output of a step until its end.
    pub(super) fn pump(
        &self,
        connection: &Arc<dyn GuestConnection>,
        id: u64,
        output: &SharedOutput<'_>,
        clock: &OutputClock,
    ) -> Result<(), ReceiveError> {
        let shared = &self.shared;
        shared.receive_all(connection, id, None, None, |flags, bytes| {
            let stream = if flags & STDERR == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            clock.piece(|| lock(output).write(stream, bytes));
            Ok(())
        })?;
        Ok(())
    }

    /// Waits for the rest of the output of a dead step. A guest that neither sends it nor ends it is
    /// lost, which ends the pump too.
    pub(super) fn wait_for_output(&self, clock: &OutputClock, finished: impl Fn() -> bool) {
        let limit = self.shared.limits.output;
        let renewed = || TimeBudget::new(limit, clock.guest_time());
        let (mut pieces, mut budget, mut grace) = (clock.pieces(), renewed(), None);
        // Short, because it delays the end of each step; the pump has nearly always ended already.
        while !finished() && self.lost().is_none() {
            thread::sleep(Duration::from_millis(1));
            let now = clock.pieces();
            if now != pieces {
                (pieces, budget) = (now, renewed());
            }
            if self
                .shared
                .is_out_of_patience(&mut grace, clock.guest_time())
            {
                self.lose(Lost::Ended);
            }
            if budget.elapse(clock.guest_time()) {
                self.lose(Lost::TooLate {
                    what: "close the output of an exited step",
                    limit,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_guests_time_stops_only_while_a_piece_is_consumed() {
        let clock = Clock::default();
        let output = OutputClock::new(clock.clone());
        let passed = |since: Instant| output.guest_time().duration_since(since);
        let began = output.guest_time();
        clock.stop_for(HOUR);
        assert!(passed(began) >= HOUR);
        for _ in 0..3 {
            let before = output.guest_time();
            output.piece(|| {
                clock.stop_for(HOUR);
                assert!(passed(before) < HOUR);
            });
            assert!(passed(before) < HOUR);
        }
        assert!(passed(began) < 2 * HOUR);
        assert_eq!(output.pieces(), 3);
    }
}
