//! What a connection sends to the guest, and when.

use bytes::Bytes;
use virtio_vsock::{HOST_CID, Header, Op, Shutdown, TYPE_STREAM};

use super::{Address, Cause, Connection, Intent, State};

impl Connection {
    /// What the next packet would be, if the next descriptor is as large as the last one.
    #[must_use]
    pub(crate) fn intent(&self) -> Option<Intent> {
        self.intent_for(self.capacity)
    }

    /// Makes the next packet for a descriptor with space for `capacity` bytes after the header, and
    /// appends its payload to `payload`. `None` until something changes; extra calls are harmless.
    #[must_use]
    pub(crate) fn poll_packet(
        &mut self,
        capacity: u32,
        payload: &mut Vec<Bytes>,
    ) -> Option<Header> {
        self.capacity = capacity;
        let header = match self.intent_for(capacity)? {
            Intent::Reset => {
                self.owes_reset = false;
                self.header(Op::Reset, 0, 0)
            }
            Intent::Request => {
                self.state = State::Requesting { asked: true };
                self.header(Op::Request, 0, 0)
            }
            Intent::Response => {
                self.owes_response = false;
                self.header(Op::Response, 0, 0)
            }
            Intent::Data(want) => {
                let len = self.tx.take(want);
                self.queue.take(len as usize, payload);
                self.header(Op::Data, len, 0)
            }
            Intent::CreditUpdate => {
                self.owes_credit = false;
                self.header(Op::CreditUpdate, 0, 0)
            }
            Intent::Shutdown => self.announce_end(),
        };
        Some(header)
    }

    /// Whether the connection is closed and owes no packet: it can be removed.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Closed(_)) && !self.owes_reset
    }

    /// Whether the connection only waits for the guest's reset: it can be evicted.
    pub(crate) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether the guest has not answered the request yet, or why there will be no answer.
    pub(crate) fn is_requesting(&self) -> Result<bool, Cause> {
        match self.state {
            State::Requesting { .. } => Ok(true),
            State::Open | State::Closing => Ok(false),
            State::Closed(cause) => Err(cause),
        }
    }

    /// What identifies it.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    fn intent_for(&self, capacity: u32) -> Option<Intent> {
        if self.owes_reset {
            return Some(Intent::Reset);
        }
        match self.state {
            State::Closing | State::Closed(_) | State::Requesting { asked: true } => return None,
            State::Requesting { asked: false } => return Some(Intent::Request),
            State::Open => {}
        }
        if self.owes_response {
            return Some(Intent::Response);
        }
        // A guest that asks waits for this packet, not for the counters on another one.
        if self.owes_credit {
            return Some(Intent::CreditUpdate);
        }
        // Data before a credit update that was not requested: it carries the counters too.
        if let Some(len) = self.sendable(capacity) {
            return Some(Intent::Data(len));
        }
        if self.rx.owes_update(self.tx.peer_buf_alloc()) {
            return Some(Intent::CreditUpdate);
        }
        let all_sent = self.queue.is_empty();
        (all_sent && !self.announced.contains(self.ended)).then_some(Intent::Shutdown)
    }

    /// How many bytes the next packet should carry, if any: as many as are queued, fit, and have
    /// credit.
    fn sendable(&self, capacity: u32) -> Option<u32> {
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let len = self.tx.packet_len(queued.min(capacity));
        (len > 0).then_some(len)
    }

    fn announce_end(&mut self) -> Header {
        self.announced = self.ended;
        let header = self.header(Op::Shutdown, 0, self.ended.to_wire());
        if self.announced.contains(Shutdown::BOTH) {
            self.state = State::Closing;
        }
        header
    }

    fn header(&mut self, op: Op, len: u32, flags: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.rx.announce();
        Header {
            src_cid: HOST_CID,
            dst_cid: self.address.guest_cid.into(),
            src_port: self.address.host_port,
            dst_port: self.address.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op.to_wire(),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}
