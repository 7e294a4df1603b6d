//! The least that a server must send: one that sends a byte now and then would keep a build waiting
//! for as long as it likes, since each byte ends a time-out.
//!
//! The law: only waiting counts. A slow disk on this side is not the server's fault.

use std::time::Duration;

/// Longest single wait that counts. A wait looks around far more often, unless this process was
/// stopped or the machine was asleep.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// So many bytes in each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRate {
    /// The bytes.
    pub bytes: u64,
    /// How much waiting makes a window.
    pub window: Duration,
}

impl MinRate {
    /// 1 KiB per second over a minute: below that of the slowest telephone modem with four layers in
    /// parallel, and long enough for a server that stutters.
    pub const USUAL: Self = Self {
        bytes: 60 << 10,
        window: Duration::from_secs(60),
    };
}

/// The server sends too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server sent {received} bytes in {} seconds, less than the {least} it must send",
    .window.as_secs_f32()
)]
pub struct TooSlow {
    received: u64,
    least: u64,
    window: Duration,
}

/// Measures what one answer brings.
#[derive(Debug)]
pub(super) struct Pace {
    limit: MinRate,
    /// In the current window.
    waited: Duration,
    received: u64,
}

impl Pace {
    pub(super) fn new(limit: MinRate) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes as u64);
    }

    /// Time was spent waiting for bytes. At the end of a window, the next one begins.
    pub(super) fn waited(&mut self, time: Duration) -> Result<(), TooSlow> {
        self.waited = self.waited.saturating_add(time.min(MAX_WAIT));
        if self.waited < self.limit.window {
            return Ok(());
        }
        let received = self.received;
        *self = Self::new(self.limit);
        if received >= self.limit.bytes {
            return Ok(());
        }
        Err(TooSlow {
            received,
            least: self.limit.bytes,
            window: self.limit.window,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: MinRate = MinRate {
        bytes: 100,
        window: Duration::from_secs(10),
    };
    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds until a server that sends `bytes` each second is given up; `None` if it never is.
    fn given_up(bytes: usize) -> Option<usize> {
        let mut pace = Pace::new(LIMIT);
        (1..=1000).find(|_| {
            pace.received(bytes);
            pace.waited(SECOND).is_err()
        })
    }

    #[test]
    fn a_server_must_send_at_the_limit_and_need_not_send_faster() {
        assert_eq!(given_up(0), Some(10));
        assert_eq!(given_up(1), Some(10));
        assert_eq!(given_up(9), Some(10));
        assert_eq!(given_up(10), None);
        assert_eq!(given_up(1 << 20), None);
    }

    #[test]
    fn what_came_earlier_does_not_excuse_a_later_window() {
        let mut pace = Pace::new(LIMIT);
        pace.received(1 << 30);
        for _ in 0..19 {
            pace.waited(SECOND).unwrap();
        }
        let slow = pace.waited(SECOND).unwrap_err();
        assert_eq!(
            slow.to_string(),
            "the server sent 0 bytes in 10 seconds, less than the 100 it must send"
        );
    }

    #[test]
    fn a_machine_that_was_asleep_blames_no_server() {
        let mut pace = Pace::new(LIMIT);
        pace.waited(Duration::from_secs(3600)).unwrap();
        pace.received(100);
        for _ in 0..9 {
            pace.waited(SECOND).unwrap();
        }
    }
}
