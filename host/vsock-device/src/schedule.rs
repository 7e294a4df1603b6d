//! Whose packet is next.
//!
//! Law: a connection is in each lane at most once, so the lanes are as bounded as the connections,
//! and a connection with data gets [`TURN`] bytes before it is the next one's turn. Control packets
//! go first: a connection owes at most one of each kind, so they cannot starve data, and data cannot
//! starve them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::channel::{Channel, Core};
use crate::connection::Intent;
use crate::packet::Header;

/// Resets to packets of unknown connections that wait for the guest to post buffers. Beyond this a
/// guest has to live without an answer, or it could make us remember any number of them.
const MAX_REFUSALS: usize = 256;

/// Bytes in a row for one connection. Linux posts buffers of one page, and a guest that has to
/// switch between readers for every page spends most of its time doing that.
const TURN: usize = 256 * 1024;

/// What waits for a descriptor of the guest.
#[derive(Debug, Default)]
pub(crate) struct Schedule(Mutex<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    refusals: VecDeque<Header>,
    urgent: VecDeque<Arc<Channel>>,
    ready: VecDeque<Arc<Channel>>,
}

/// Something that wants a descriptor.
pub(crate) enum Turn {
    /// This header, as it is.
    Refusal(Header),
    /// Whatever this connection wants to send.
    Channel(Arc<Channel>),
}

impl Schedule {
    /// Lines `channel` up if it has something to send. Returns whether it is new in a lane.
    pub(crate) fn offer(&self, channel: &Arc<Channel>, core: &mut Core) -> bool {
        let Some(intent) = core.connection.intent() else {
            return false;
        };
        let urgent = intent.is_urgent();
        let lined_up = if urgent {
            &mut core.in_urgent
        } else {
            &mut core.in_ready
        };
        if std::mem::replace(lined_up, true) {
            return false;
        }
        let mut lanes = self.lock();
        let lane = if urgent {
            &mut lanes.urgent
        } else {
            &mut lanes.ready
        };
        lane.push_back(Arc::clone(channel));
        true
    }

    /// Lines `channel` up after it sent `sent` bytes of data: in front again if its turn goes on.
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

    /// Lines a reset up. Returns whether there was room.
    pub(crate) fn refuse(&self, refusal: Header) -> bool {
        let mut lanes = self.lock();
        let room = lanes.refusals.len() < MAX_REFUSALS;
        if room {
            lanes.refusals.push_back(refusal);
        }
        room
    }

    /// Takes out what is next. A channel forgets that it was lined up.
    pub(crate) fn next(&self) -> Option<Turn> {
        let mut lanes = self.lock();
        if let Some(refusal) = lanes.refusals.pop_front() {
            return Some(Turn::Refusal(refusal));
        }
        let urgent = lanes.urgent.pop_front();
        let was_urgent = urgent.is_some();
        let channel = urgent.or_else(|| lanes.ready.pop_front())?;
        drop(lanes);
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
        let lanes = self.lock();
        lanes.refusals.is_empty() && lanes.urgent.is_empty() && lanes.ready.is_empty()
    }

    /// How much waits, of every kind.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        let lanes = self.lock();
        lanes.refusals.len() + lanes.urgent.len() + lanes.ready.len()
    }

    /// Forgets connections that are over.
    pub(crate) fn remove(&self, over: &[Arc<Channel>]) {
        let over: HashSet<_> = over.iter().map(Arc::as_ptr).collect();
        let mut lanes = self.lock();
        lanes
            .urgent
            .retain(|channel| !over.contains(&Arc::as_ptr(channel)));
        lanes
            .ready
            .retain(|channel| !over.contains(&Arc::as_ptr(channel)));
    }

    /// Forgets the resets.
    pub(crate) fn forget_refusals(&self) {
        self.lock().refusals.clear();
    }

    /// The same order, of other channels.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn copy(&self, mut other: impl FnMut(&Arc<Channel>) -> Arc<Channel>) -> Self {
        let lanes = self.lock();
        Self(Mutex::new(Lanes {
            refusals: lanes.refusals.clone(),
            urgent: lanes.urgent.iter().map(&mut other).collect(),
            ready: lanes.ready.iter().map(&mut other).collect(),
        }))
    }

    /// Who waits, in each lane.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn hash(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash as _;
        let lanes = self.lock();
        lanes.refusals.hash(state);
        for lane in [&lanes.urgent, &lanes.ready] {
            lane.len().hash(state);
            for channel in lane {
                channel.lock().connection.address().hash(state);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
