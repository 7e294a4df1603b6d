//! What a model of the protocol and fuzzing have to see: the whole state as a value, and what must
//! never be.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher};
use std::sync::{Arc, Mutex, OnceLock};

use crossbeam_channel::Receiver;

use super::{MAX_VIOLATIONS, Mux, Tallies};
use crate::channel::Channel;
use crate::counters::Violation;

/// The channels of listeners, by port.
pub(crate) type Backlogs = HashMap<u32, Receiver<Arc<Channel>>>;

impl Mux {
    /// A device in the same state, and its listeners, at which nobody may wait. `channels` are what
    /// the application holds; they become those of the copy. The copy counts from zero.
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
            bell: Arc::clone(&self.bell),
            tallies: Tallies::default(),
            failure: OnceLock::new(),
        };
        (copy, backlogs)
    }

    /// Everything but the counters, which decide nothing and only grow.
    pub(crate) fn hash(&self, state: &mut impl Hasher) {
        for channel in self.lock().sorted() {
            channel.lock().hash(state);
        }
        self.schedule.hash(state);
    }

    /// Connections that are remembered.
    pub(crate) fn connections(&self) -> usize {
        self.lock().sorted().len()
    }

    /// A rule that the guest broke since this was made.
    pub(crate) fn first_violation(&self) -> Option<Violation> {
        self.counters().violations.keys().next().copied()
    }

    /// A law of the device that does not hold, whatever the guest does.
    pub(crate) fn broken_law(&self) -> Option<String> {
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
        // Each connection is in each lane at most once, and refusals are bounded.
        let waiting = self.schedule.len();
        if waiting > 256 + 2 * channels.len() {
            return Some(format!("{waiting} packets wait"));
        }
        let violations: u64 = self.counters().violations.values().sum();
        if violations >= MAX_VIOLATIONS && self.failure().is_none() {
            return Some(format!("{violations} violations are still borne"));
        }
        None
    }
}
