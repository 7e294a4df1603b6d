//! What a connection sends to its peer, and when.

use super::{Address, Cause, Connection, HOST_CID, Header, Op, Outgoing, Shutdown, State};
use super::{Grant, TYPE_STREAM};

impl<B: AsRef<[u8]>> Connection<B> {
    /// The next packet. `None` until something changes; extra calls are harmless.
    #[must_use]
    pub(crate) fn poll_packet(&mut self) -> Option<Outgoing<B>> {
        if std::mem::take(&mut self.owes_reset) {
            return Some(self.control(Op::Reset, Shutdown::default()));
        }
        match self.state {
            State::Closing | State::Closed(_) | State::Requesting { asked: true } => return None,
            State::Requesting { asked: false } => {
                self.state = State::Requesting { asked: true };
                return Some(self.control(Op::Request, Shutdown::default()));
            }
            State::Open => {}
        }
        if std::mem::take(&mut self.owes_response) {
            return Some(self.control(Op::Response, Shutdown::default()));
        }
        // A peer that asks waits for this packet. The counters on data are not enough:
        // vhost-device-vsock 0.3.0 sends nothing more until it has arrived.
        if std::mem::take(&mut self.owes_credit) {
            return Some(self.control(Op::CreditUpdate, Shutdown::default()));
        }
        // Data before a credit update that was not requested: it carries the counters too.
        if let Some((buffer, len)) = self.outbox.pop_front() {
            return Some(Outgoing {
                header: self.header(Op::Data, len, Shutdown::default()),
                payload: Some(buffer),
            });
        }
        if self.rx.owes_update(self.tx.peer_buf_alloc()) {
            return Some(self.control(Op::CreditUpdate, Shutdown::default()));
        }
        if self.filling > 0 || self.announced.contains(self.ended) {
            return None;
        }
        self.announced = self.ended;
        if self.announced.contains(Shutdown::BOTH) {
            self.state = State::Closing;
        }
        Some(self.control(Op::Shutdown, self.announced))
    }

    /// Whether [`Self::poll_packet`] has a packet.
    #[must_use]
    pub(crate) fn has_packet(&self) -> bool {
        if self.owes_reset {
            return true;
        }
        match self.state {
            State::Closing | State::Closed(_) | State::Requesting { asked: true } => false,
            State::Requesting { asked: false } => true,
            State::Open => {
                self.owes_response
                    || self.owes_credit
                    || !self.outbox.is_empty()
                    || self.rx.owes_update(self.tx.peer_buf_alloc())
                    || (self.filling == 0 && !self.announced.contains(self.ended))
            }
        }
    }

    /// Whether the connection is closed and owes no packet: its address may be used again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Closed(_)) && !self.owes_reset
    }

    /// Whether the application holds nothing of it either: it can be removed.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_over() && self.grant.held() == 0 && self.filling == 0
    }

    /// Whether the connection only waits for the peer's reset: it can be evicted.
    pub(crate) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether the peer has not answered the request yet, or why there will be no answer.
    pub(crate) fn is_requesting(&self) -> Result<bool, Cause> {
        match self.state {
            State::Requesting { .. } => Ok(true),
            State::Open | State::Closing => Ok(false),
            State::Closed(cause) => Err(cause),
        }
    }

    /// Its two ports.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Its share of slots.
    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    fn control(&mut self, op: Op, flags: Shutdown) -> Outgoing<B> {
        Outgoing {
            header: self.header(op, 0, flags),
            payload: None,
        }
    }

    fn header(&mut self, op: Op, len: u32, flags: Shutdown) -> Header {
        let (buf_alloc, fwd_cnt) = self.rx.announce();
        Header {
            src_cid: self.own_cid,
            dst_cid: HOST_CID,
            src_port: self.address.own_port,
            dst_port: self.address.peer_port,
            len,
            kind: TYPE_STREAM,
            op: op.to_wire(),
            flags: flags.to_wire(),
            buf_alloc,
            fwd_cnt,
        }
    }
}
