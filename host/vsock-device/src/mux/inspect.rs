//! For the protocol model and for fuzzing: the whole state as a value, and checks of invariants.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher};
use std::sync::{Arc, Mutex, OnceLock};

use crossbeam_channel::Receiver;

use super::{LiveCounters, MAX_VIOLATIONS, Mux};
use crate::channel::Channel;
use crate::violation::Violation;

/// The backlogs of listeners, by port.
pub(crate) type Backlogs = HashMap<u32, Receiver<Arc<Channel>>>;

impl Mux {
    /// A copy of the state, and of the listeners, whose backlogs must be empty. `channels` are those
    /// that the application holds; they are replaced by those of the copy. The copy counts from zero.
    pub(crate) fn copy(&self, channels: &mut [Arc<Channel>]) -> (Self, Backlogs) {
        let mut made: HashMap<*const Channel, Arc<Channel>> = HashMap::new();
        let mut other = |channel: &Arc<Channel>| {
            let new = || Arc::new(Channel::copy(&channel.lock()));
            Arc::clone(made.entry(Arc::as_ptr(channel)).or_insert_with(new))
        };
        let (table, backlogs) = self.lock().copy(&mut other);
        let schedule = self.schedule.copy(&mut other);
        for channel in channels {
            *channel = other(channel);
        }
        let copy = Self {
            config: self.config,
            table: Mutex::new(table),
            schedule,
            notifier: Arc::clone(&self.notifier),
            counters: LiveCounters::default(),
            failure: OnceLock::new(),
        };
        (copy, backlogs)
    }

    /// Everything except the counters, which decide nothing and only grow.
    pub(crate) fn hash(&self, state: &mut impl Hasher) {
        for channel in self.lock().sorted() {
            channel.lock().hash(state);
        }
        self.schedule.hash(state);
    }

    /// Connections in the table.
    pub(crate) fn connections(&self) -> usize {
        self.lock().sorted().len()
    }

    /// A violation of the guest since this value was made.
    pub(crate) fn first_violation(&self) -> Option<Violation> {
        self.counters().violations.keys().next().copied()
    }

    /// An invariant of the device that does not hold. Nothing that the guest does may break one.
    pub(crate) fn broken_invariant(&self) -> Option<String> {
        let channels = self.lock().sorted();
        let limit = self.config.buf_alloc as usize;
        for channel in &channels {
            let buffered = channel.lock().connection.buffered();
            if buffered > limit {
                return Some(format!("{buffered} bytes are buffered, of {limit} allowed"));
            }
        }
        if channels.len() > self.config.max_connections {
            return Some(format!("there are {} connections", channels.len()));
        }
        // Each connection is in each queue at most once, and refusals are bounded.
        let waiting = self.schedule.len();
        if waiting > 256 + 2 * channels.len() {
            return Some(format!("{waiting} packets wait"));
        }
        let violations: u64 = self.counters().violations.values().sum();
        if violations >= MAX_VIOLATIONS && self.failure().is_none() {
            return Some(format!("{violations} violations, and the device goes on"));
        }
        None
    }
}
