//! What a connection sends to the guest, and when.

use bytes::Bytes;

use super::{Address, Cause, Connection, Intent, State};
use crate::packet::{HOST_CID, Header, Op, Shutdown, TYPE_STREAM};

/// Room at the peer that always justifies a packet. Peers tell about room in steps of this at the
/// latest (Linux announces credit when less than 64 KiB of the last grant is left), so waiting for
/// more could be waiting for ever.
const WORTHWHILE: u32 = 64 * 1024;

impl Connection {
    /// What the next packet would be, judged by the last descriptor's size.
    #[must_use]
    pub(crate) fn intent(&self) -> Option<Intent> {
        self.intent_for(self.capacity)
    }

    /// Makes the next packet for a descriptor that has room for `capacity` bytes behind the header,
    /// and puts its payload at the end of `payload`. `None` until something happens; asking too
    /// often is harmless.
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

    /// Whether the connection is closed and owes nothing: it can be forgotten.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Closed(_)) && !self.owes_reset
    }

    /// Whether the connection only waits for the guest's goodbye: it can be forgotten if its place
    /// is needed.
    pub(crate) fn is_leaving(&self) -> bool {
        self.state == State::Leaving
    }

    /// Whether the guest has not answered our request yet, or why there will be no answer.
    pub(crate) fn is_requesting(&self) -> Result<bool, Cause> {
        match self.state {
            State::Requesting { .. } => Ok(true),
            State::Open | State::Leaving => Ok(false),
            State::Closed(cause) => Err(cause),
        }
    }

    /// Whose connection it is.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    fn intent_for(&self, capacity: u32) -> Option<Intent> {
        if self.owes_reset {
            return Some(Intent::Reset);
        }
        match self.state {
            State::Leaving | State::Closed(_) | State::Requesting { asked: true } => return None,
            State::Requesting { asked: false } => return Some(Intent::Request),
            State::Open => {}
        }
        if self.owes_response {
            return Some(Intent::Response);
        }
        // Who asks waits for this packet, not for the counters on another one.
        if self.owes_credit {
            return Some(Intent::CreditUpdate);
        }
        // Data before unasked credit: it carries the counters too.
        if let Some(len) = self.sendable(capacity) {
            return Some(Intent::Data(len));
        }
        if self.rx.owes_update(self.tx.buf_alloc()) {
            return Some(Intent::CreditUpdate);
        }
        let all_sent = self.queue.is_empty();
        (all_sent && !self.announced.contains(self.ended)).then_some(Intent::Shutdown)
    }

    /// How many bytes the next packet should carry, if any.
    ///
    /// As much as there is or fits. When the peer has less room than that, a sliver of credit is
    /// not worth a packet and a descriptor; but see [`WORTHWHILE`]. Half of the peer's buffer is
    /// worth one too: a peer that has taken all has announced at least that much.
    fn sendable(&self, capacity: u32) -> Option<u32> {
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let want = queued.min(capacity);
        let room = self.tx.room();
        let enough = want.min(WORTHWHILE).min((self.tx.buf_alloc() / 2).max(1));
        (want > 0 && room >= enough).then_some(want.min(room))
    }

    fn announce_end(&mut self) -> Header {
        self.announced = self.ended;
        let header = self.header(Op::Shutdown, 0, self.ended.to_wire());
        if self.announced.contains(Shutdown::BOTH) {
            self.state = State::Leaving;
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
