//! The clock of waits, beside [`exec::TimeBudget`].

#[cfg(test)]
use std::time::Duration;
use std::time::Instant;

pub(crate) use exec::{TimeBudget, active_time};

/// Tells the time. A test can make it jump for everybody who shares it.
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

    /// Jumps ahead, as the clock does for a process that was stopped.
    #[cfg(test)]
    pub(crate) fn stop_for(&self, time: Duration) {
        *self.stopped.lock().unwrap() += time;
    }
}
