//! For the protocol model and for fuzzing: the whole state as a value, and checks of invariants.

use std::hash::{Hash, Hasher};

use super::{Id, Mux, Slots};
use crate::connection::{Cause, Connection};
use crate::violation::Violation;

impl<B: Hash> Hash for Mux<B> {
    /// Everything except the counters, which decide nothing and only grow.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.table, &self.slots, &self.ready, &self.refusals).hash(state);
        (&self.events, &self.received, &self.unsent, self.gone).hash(state);
    }
}

impl<B: AsRef<[u8]>> Mux<B> {
    /// For each connection, how many slots it holds and how many it may hold.
    pub(crate) fn holdings(&self) -> Vec<(usize, usize)> {
        let ids = self.table.ids().into_iter();
        ids.filter_map(|id| self.table.get(id))
            .map(|entry| {
                let grant = entry.connection.grant();
                (grant.held(), grant.slots())
            })
            .collect()
    }

    /// The connection with this id.
    pub(crate) fn connection(&self, id: Id) -> Option<&Connection<B>> {
        Some(&self.table.get(id)?.connection)
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// A violation of the peer on a connection that still exists.
    pub(crate) fn violation(&self) -> Option<Violation> {
        let closed = |id: Id| self.table.get(id)?.connection.is_requesting().err();
        self.table
            .ids()
            .into_iter()
            .find_map(|id| match closed(id)? {
                Cause::Violation(violation) => Some(violation),
                Cause::Finished
                | Cause::Refused
                | Cause::ResetByPeer
                | Cause::ResetHere
                | Cause::DeviceGone => None,
            })
    }

    /// Queued answers to the peer, which must stay bounded.
    pub(crate) fn backlog(&self) -> usize {
        self.refusals.len() + self.ready.len()
    }
}
