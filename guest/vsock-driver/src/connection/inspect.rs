//! What a call would find, without making it.

use super::{Connection, Shutdown, State};

impl<B: AsRef<[u8]>> Connection<B> {
    /// Whether [`Self::begin_send`] would get credit, or say that there will be none.
    pub(crate) fn may_begin(&self, want: u32) -> bool {
        let mut tx = self.tx;
        self.may_send().is_err() || tx.take(want) > 0
    }

    /// Whether [`Self::receive`] would have something, or say that there will be nothing.
    pub(crate) fn is_readable(&self) -> bool {
        !self.inbox.is_empty()
            || self.ended_by_peer.contains(Shutdown::SEND)
            || matches!(self.state, State::Closed(_))
    }
}
