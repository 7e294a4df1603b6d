//! What a model of the protocol has to see: the whole state as a value, and what must never be.

use std::hash::{Hash, Hasher};

use super::{Id, Mux, Slots};
use crate::connection::{Cause, Connection};
use crate::credit::Violation;

impl<B: Hash> Hash for Mux<B> {
    /// Everything but the counters, which decide nothing and only grow.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.table, &self.slots, &self.ready, &self.refusals).hash(state);
        (&self.events, &self.received, &self.unsent, self.gone).hash(state);
    }
}

impl<B: AsRef<[u8]>> Mux<B> {
    /// Who holds slots with data: how many, and how many each may.
    pub(crate) fn holdings(&self) -> Vec<(usize, usize)> {
        let known = self.table.ids().into_iter();
        known
            .filter_map(|id| self.table.get(id))
            .map(|known| {
                let grant = known.connection.grant();
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

    /// A rule that the peer broke, on a connection that is still known.
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

    /// Answers that wait because of the peer, which must not make us remember any number of them.
    pub(crate) fn backlog(&self) -> usize {
        self.refusals.len() + self.ready.len()
    }
}
