//! Which connection sends the next packet.
//!
//! Invariant: a connection is in each queue at most once, so the queues are bounded by the number of
//! connections. A connection with data sends [`TURN`] bytes before the next one's turn. Control
//! packets go first: a connection owes at most one of each kind, so they cannot starve data, and data
//! cannot starve them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_vsock::Header;

use crate::channel::{Channel, Core};
use crate::connection::Intent;

/// Resets that wait for the guest to post buffers, in reply to packets of unknown connections.
/// Further packets get no reply, or a guest could make us queue any number of them.
const MAX_REFUSALS: usize = 256;

/// Bytes in a row for one connection. Linux posts buffers of one page, and a guest that switches
/// between readers for every page spends most of its time on that.
const TURN: usize = 256 * 1024;

/// The packets that wait for a descriptor of the guest.
#[derive(Debug, Default)]
pub(crate) struct Schedule(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    refusals: VecDeque<Header>,
    urgent: VecDeque<Arc<Channel>>,
    ready: VecDeque<Arc<Channel>>,
}

/// What gets the next descriptor.
pub(crate) enum Turn {
    /// A reset that belongs to no connection.
    Refusal(Header),
    /// The next packet of a connection.
    Channel(Arc<Channel>),
}

impl Schedule {
    /// Queues `channel` if it has something to send. Returns whether it was not queued before.
    pub(crate) fn offer(&self, channel: &Arc<Channel>, core: &mut Core) -> bool {
        let Some(intent) = core.connection.intent() else {
            return false;
        };
        let urgent = intent.is_urgent();
        let is_queued = if urgent {
            &mut core.in_urgent
        } else {
            &mut core.in_ready
        };
        if std::mem::replace(is_queued, true) {
            return false;
        }
        let mut queues = self.lock();
        let queue = if urgent {
            &mut queues.urgent
        } else {
            &mut queues.ready
        };
        queue.push_back(Arc::clone(channel));
        true
    }

    /// Queues `channel` after it sent `sent` bytes of data: in front if its turn goes on.
    pub(crate) fn offer_again(&self, channel: &Arc<Channel>, core: &mut Core, sent: usize) {
        core.turn += sent;
        let goes_on = sent > 0 && core.turn < TURN;
        let has_data = matches!(core.connection.intent(), Some(Intent::Data(_)));
        if !goes_on || !has_data {
            core.turn = 0;
            self.offer(channel, core);
        } else if !std::mem::replace(&mut core.in_ready, true) {
            self.lock().ready.push_front(Arc::clone(channel));
        }
    }

    /// Queues a reset that belongs to no connection. `false` if there are too many.
    pub(crate) fn refuse(&self, refusal: Header) -> bool {
        let mut queues = self.lock();
        let has_space = queues.refusals.len() < MAX_REFUSALS;
        if has_space {
            queues.refusals.push_back(refusal);
        }
        has_space
    }

    /// Takes the next one out.
    pub(crate) fn next(&self) -> Option<Turn> {
        let mut queues = self.lock();
        if let Some(refusal) = queues.refusals.pop_front() {
            return Some(Turn::Refusal(refusal));
        }
        let urgent = queues.urgent.pop_front();
        let was_urgent = urgent.is_some();
        let channel = urgent.or_else(|| queues.ready.pop_front())?;
        drop(queues);
        let mut core = channel.lock();
        if was_urgent {
            core.in_urgent = false;
        } else {
            core.in_ready = false;
        }
        drop(core);
        Some(Turn::Channel(channel))
    }

    pub(crate) fn is_empty(&self) -> bool {
        let queues = self.lock();
        queues.refusals.is_empty() && queues.urgent.is_empty() && queues.ready.is_empty()
    }

    /// Entries of all queues.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        let queues = self.lock();
        queues.refusals.len() + queues.urgent.len() + queues.ready.len()
    }

    /// Removes connections that are over.
    pub(crate) fn remove(&self, over: &[Arc<Channel>]) {
        let over: HashSet<_> = over.iter().map(Arc::as_ptr).collect();
        let mut queues = self.lock();
        queues
            .urgent
            .retain(|channel| !over.contains(&Arc::as_ptr(channel)));
        queues
            .ready
            .retain(|channel| !over.contains(&Arc::as_ptr(channel)));
    }

    /// Discards the resets.
    pub(crate) fn forget_refusals(&self) {
        self.lock().refusals.clear();
    }

    /// A copy with other channels in the same order.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn copy(&self, mut other: impl FnMut(&Arc<Channel>) -> Arc<Channel>) -> Self {
        let queues = self.lock();
        Self(Mutex::new(Queues {
            refusals: queues.refusals.clone(),
            urgent: queues.urgent.iter().map(&mut other).collect(),
            ready: queues.ready.iter().map(&mut other).collect(),
        }))
    }

    /// The order in each queue.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn hash(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let queues = self.lock();
        queues.refusals.hash(state);
        for queue in [&queues.urgent, &queues.ready] {
            queue.len().hash(state);
            for channel in queue {
                channel.lock().connection.address().hash(state);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
