//! The output of a step, on its way from the guest to whoever keeps it.
//!
//! A dead step and one that is being killed end in bound, or their guest is lost. But the host may be
//! slow to take output, when its disk is busy, and then the guest has to wait as well: it can end
//! neither output nor step before the host has taken what comes first. So the guest's waits are
//! bounded by a clock that stands still while the host is at it ([`Taking`]).

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use exec::{Output, Stream};

use super::stream::ReceiveError;
use super::{Link, Lost, Session, lock};
use crate::patience::{Clock, Patience};

/// How the host takes the pieces of one output. Written by the thread that does, read by the one
/// that waits for the guest.
#[derive(Debug, Default)]
pub(super) struct Taking {
    clock: Clock,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    pieces: u64,
    /// The time that all of them took, save the current one.
    time: Duration,
    /// Since when the current one is being taken.
    since: Option<Instant>,
}

impl Taking {
    pub(super) fn new(clock: Clock) -> Self {
        let taken = Mutex::default();
        Self { clock, taken }
    }

    /// Takes a piece.
    fn piece(&self, take: impl FnOnce()) {
        {
            let mut taken = lock(&self.taken);
            taken.pieces += 1;
            taken.since = Some(self.clock.now());
        }
        take();
        let mut taken = lock(&self.taken);
        if let Some(since) = taken.since.take() {
            taken.time += self.clock.now().saturating_duration_since(since);
        }
    }

    /// The pieces so far, the current one included.
    fn pieces(&self) -> u64 {
        lock(&self.taken).pieces
    }

    /// What time it is for the guest: while a piece is being taken, time stands still.
    pub(super) fn guests_time(&self) -> Instant {
        // The clock is read under the lock, so this never goes back.
        let taken = lock(&self.taken);
        let now = self.clock.now();
        let current = taken
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        now.checked_sub(taken.time + current).unwrap_or(now)
    }
}

impl Session {
    /// Hands on the output of a step until its end.
    pub(super) fn pump(
        &self,
        link: &Arc<dyn Link>,
        id: u64,
        output: &mut dyn Output,
        taking: &Taking,
    ) -> Result<(), ReceiveError> {
        let shared = &self.shared;
        shared.receive_all(link, id, None, None, |flags, bytes| {
            let stream = if flags & 1 == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            taking.piece(|| output.write(stream, bytes));
            Ok(())
        })?;
        Ok(())
    }

    /// The step is dead, so its output ends soon. A guest that neither sends nor ends it is lost:
    /// then the pump ends as well.
    pub(super) fn wait_for_output(&self, taking: &Taking, finished: impl Fn() -> bool) {
        let limit = self.shared.limits.output;
        let renewed = || Patience::new(limit, taking.guests_time());
        let (mut pieces, mut patience) = (taking.pieces(), renewed());
        // Short, because it delays the end of each step; the pump is nearly always done already.
        while !finished() && self.lost().is_none() {
            thread::sleep(Duration::from_millis(1));
            let now = taking.pieces();
            if now != pieces {
                (pieces, patience) = (now, renewed());
            }
            if patience.ends(taking.guests_time()) {
                self.lose(Lost::TooLate {
                    what: "end the output of a dead step",
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
    fn the_guests_time_stands_still_only_while_a_piece_is_taken() {
        let clock = Clock::default();
        let taking = Taking::new(clock.clone());
        let passed = |since: Instant| taking.guests_time().duration_since(since);
        let began = taking.guests_time();
        clock.stop_for(HOUR);
        assert!(passed(began) >= HOUR);
        for _ in 0..3 {
            let before = taking.guests_time();
            taking.piece(|| {
                clock.stop_for(HOUR);
                assert!(passed(before) < HOUR);
            });
            assert!(passed(before) < HOUR);
        }
        assert!(passed(began) < 2 * HOUR);
        assert_eq!(taking.pieces(), 3);
    }
}
