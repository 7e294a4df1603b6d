//! For the protocol model and for fuzzing: what a call would find, without making it.

use super::{Connection, Shutdown, State};

impl<B: AsRef<[u8]>> Connection<B> {
    /// Whether [`Self::begin_send`] would get credit, or fail.
    pub(crate) fn may_begin(&self, want: u32) -> bool {
        self.may_send().is_err() || self.tx.packet_len(want) > 0
    }

    /// Whether [`Self::receive`] would have something, or fail.
    pub(crate) fn is_readable(&self) -> bool {
        !self.inbox.is_empty()
            || self.ended_by_peer.contains(Shutdown::SEND)
            || matches!(self.state, State::Closed(_))
    }
}
