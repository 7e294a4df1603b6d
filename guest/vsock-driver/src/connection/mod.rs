//! One connection: what its two sides have said, without threads, clock or device.
//!
//! Packets of the peer go in through [`Connection::handle_packet`], the application's wishes
//! through methods named after them, and packets for the peer are pulled with
//! [`Connection::poll_packet`] until there are none. Apart from data, what has to be sent is never a
//! queue of packets but a set of intentions, so a connection owes its peer at most one packet of
//! each kind. Data waits in buffers that the application had to get first; there are few of these.
//!
//! `B` is a buffer of the device, in which bytes stay where they arrived.
//!
//! Law: every byte of the peer is buffered within the granted credit, or the connection is reset; a
//! buffer that is not kept is given back by the same call.
//!
//! ```text
//!   we connect                                  the peer connects
//!        │                                           │
//!        ▼          response                         ▼
//!   Requesting ──────────────────────────────────► Open ◄─┐ each direction ends by itself
//!        │                                           │  ──┘ (`Shutdown`)
//!        │ reset                   we hung up and     │ both ended, reset, violation,
//!        │                         have sent all  ┌───┤ or the device is gone
//!        ▼                                        ▼   ▼
//!     Closed(Refused)                      Leaving ► Closed(Cause)
//! ```

use std::collections::VecDeque;

use crate::credit::{RxCredit, TxCredit, Violation};
use crate::inbox::{Inbox, Piece};
use crate::packet::{HOST_CID, Header, Op, Shutdown, TYPE_STREAM};
use crate::slots::Grant;

/// Both ports of a connection. The peer is always the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) own_port: u32,
    pub(crate) peer_port: u32,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Both sides were done, or this side hung up.
    Finished,
    /// The peer did not want the connection.
    Refused,
    /// The peer reset it.
    ResetByPeer,
    /// The application reset it.
    ResetHere,
    /// The peer broke the rules on it.
    Violation(Violation),
    /// There is no device any more.
    DeviceGone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// We asked for a connection, or shall do so with the next packet.
    Requesting { asked: bool },
    /// Bytes may flow in each direction that nobody has ended.
    Open,
    /// We have said goodbye, and the peer answers with a reset when it has read everything.
    Leaving,
    /// Nothing will happen any more, save that a reset may still be owed.
    Closed(Cause),
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Received<B> {
    /// The next bytes. [`Connection::consumed`] is to be told when the reader is done with them.
    Piece(Piece<B>),
    /// Nothing yet.
    Nothing,
    /// The peer has finished, and everything was read.
    End,
}

/// A packet for the peer, and the buffer with its `header.len` bytes of payload if it has some.
#[derive(Debug)]
pub(crate) struct Outgoing<B> {
    pub(crate) header: Header,
    pub(crate) payload: Option<B>,
}

/// See the module's description.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Connection<B> {
    address: Address,
    own_cid: u64,
    state: State,
    tx: TxCredit,
    rx: RxCredit,
    grant: Grant,
    inbox: Inbox<B>,
    /// Data that has credit already.
    outbox: VecDeque<(B, u32)>,
    /// Packets that have credit and that the application is still filling.
    filling: usize,
    /// What the application has ended, what of it the peer knows, and what the peer has ended.
    ended: Shutdown,
    announced: Shutdown,
    ended_by_peer: Shutdown,
    owes_reset: bool,
    owes_response: bool,
    owes_credit: bool,
}

impl<B: AsRef<[u8]>> Connection<B> {
    /// A connection that we ask for.
    pub(crate) fn to_peer(address: Address, own_cid: u64, grant: Grant) -> Self {
        let requesting = State::Requesting { asked: false };
        Self::new(address, own_cid, grant, requesting, TxCredit::new(0))
    }

    /// A connection that the peer asked for with `request`, and gets.
    pub(crate) fn from_peer(
        address: Address,
        own_cid: u64,
        grant: Grant,
        request: &Header,
    ) -> Self {
        let tx = TxCredit::new(request.buf_alloc);
        Self {
            owes_response: true,
            ..Self::new(address, own_cid, grant, State::Open, tx)
        }
    }

    fn new(address: Address, own_cid: u64, grant: Grant, state: State, tx: TxCredit) -> Self {
        Self {
            address,
            own_cid,
            state,
            tx,
            rx: RxCredit::new(grant.bytes()),
            grant,
            inbox: Inbox::default(),
            outbox: VecDeque::new(),
            filling: 0,
            ended: Shutdown::default(),
            announced: Shutdown::default(),
            ended_by_peer: Shutdown::default(),
            owes_reset: false,
            owes_response: false,
            owes_credit: false,
        }
    }

    // ---- What the peer says --------------------------------------------------------------------

    /// Takes a packet of this connection, and gives its buffer back unless it is kept. A violation
    /// has closed the connection already.
    pub(crate) fn handle_packet(
        &mut self,
        op: Op,
        header: &Header,
        buffer: B,
    ) -> (Option<B>, Result<(), Violation>) {
        let mut buffer = Some(buffer);
        let heard = self.on_packet(op, header, &mut buffer);
        if let Err(violation) = heard {
            self.abort(Cause::Violation(violation));
        }
        (buffer, heard)
    }

    fn on_packet(
        &mut self,
        op: Op,
        header: &Header,
        buffer: &mut Option<B>,
    ) -> Result<(), Violation> {
        // A reset need not carry counters: its sender may have no connection to take them from.
        if op != Op::Reset && !matches!(self.state, State::Closed(_)) {
            self.tx.on_packet(header.buf_alloc, header.fwd_cnt)?;
        }
        match (self.state, op) {
            (State::Requesting { asked: true }, Op::Response) => self.state = State::Open,
            (State::Requesting { .. }, Op::Reset) => self.close(Cause::Refused),
            (State::Open, Op::Data) => self.on_data(header.len, buffer)?,
            (State::Open | State::Leaving, Op::Shutdown) => {
                self.on_shutdown(Shutdown::from_wire(header.flags));
            }
            (State::Open, Op::Reset) => self.close(Cause::ResetByPeer),
            (State::Open, Op::CreditRequest) => self.owes_credit = true,
            (State::Leaving, Op::Reset) => self.close(Cause::Finished),
            (State::Open, Op::CreditUpdate)
            | (State::Leaving, Op::Data | Op::CreditUpdate | Op::CreditRequest) => {}
            (State::Requesting { asked: false }, Op::Response)
            | (
                State::Requesting { .. },
                Op::Request | Op::Data | Op::Shutdown | Op::CreditUpdate | Op::CreditRequest,
            )
            | (State::Open | State::Leaving, Op::Request | Op::Response) => {
                return Err(Violation::UnexpectedOperation);
            }
            // Both sides gave up at once: an answer would reach nobody.
            (State::Closed(_), Op::Reset) => self.owes_reset = false,
            // The peer hears our reset only after these, whatever they are.
            (State::Closed(_), _) => {}
        }
        Ok(())
    }

    fn on_data(&mut self, len: u32, buffer: &mut Option<B>) -> Result<(), Violation> {
        if self.ended_by_peer.contains(Shutdown::SEND) {
            return Err(Violation::DataAfterShutdown);
        }
        self.rx.accept(len)?;
        if self.ended.contains(Shutdown::RECEIVE) {
            // The application has hung up, but what it sent before is still on its way.
            self.rx.consume(len);
            return Ok(());
        }
        let n = len as usize;
        if self.grant.hold(n) {
            self.inbox.keep(buffer.take(), n);
        } else if let Some(bytes) = buffer.as_ref().and_then(|it| it.as_ref().get(..n)) {
            self.inbox.copy(bytes);
        }
        Ok(())
    }

    fn on_shutdown(&mut self, ended: Shutdown) {
        self.ended_by_peer.insert(ended);
        if self.ended_by_peer.contains(Shutdown::BOTH) {
            // The peer forgets the connection when it sees our reset. What it sent stays readable.
            self.abort(Cause::Finished);
        }
    }

    // ---- What the application wants ------------------------------------------------------------

    /// Whether bytes can still reach the peer.
    pub(crate) fn may_send(&self) -> Result<(), Cause> {
        match self.state {
            State::Closed(cause) => Err(cause),
            State::Leaving => Err(Cause::Finished),
            State::Requesting { .. } | State::Open => {
                let deaf = self.ended_by_peer.contains(Shutdown::RECEIVE);
                let done = self.ended.contains(Shutdown::SEND);
                if deaf || done {
                    Err(Cause::Finished)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Takes credit for a packet of up to `want` bytes, which [`Self::send`] has to get then. Zero
    /// means that the peer has no room.
    pub(crate) fn begin_send(&mut self, want: u32) -> Result<u32, Cause> {
        self.may_send()?;
        let taken = self.tx.take(want);
        self.filling += usize::from(taken > 0);
        Ok(taken)
    }

    /// Queues the first `len` bytes of `buffer`. Gives the buffer back if there are none, or if the
    /// peer will not get them. Of the credit that was taken for it, `unused` is given back.
    pub(crate) fn send(
        &mut self,
        buffer: B,
        len: u32,
        unused: u32,
    ) -> (Option<B>, Result<(), Cause>) {
        self.filling = self.filling.saturating_sub(1);
        self.tx.give_back(unused);
        let cause = match self.state {
            State::Closed(cause) => cause,
            State::Requesting { .. } | State::Open
                if !self.ended_by_peer.contains(Shutdown::RECEIVE) =>
            {
                if len == 0 {
                    return (Some(buffer), Ok(()));
                }
                self.outbox.push_back((buffer, len));
                return (None, Ok(()));
            }
            State::Requesting { .. } | State::Open | State::Leaving => Cause::Finished,
        };
        (Some(buffer), Err(cause))
    }

    /// Takes the next received bytes.
    pub(crate) fn receive(&mut self) -> Result<Received<B>, Cause> {
        if self.state == State::Closed(Cause::ResetHere) {
            return Err(Cause::ResetHere);
        }
        if let Some(piece) = self.inbox.pop() {
            return Ok(Received::Piece(piece));
        }
        if self.ended_by_peer.contains(Shutdown::SEND) {
            return Ok(Received::End);
        }
        match self.state {
            State::Closed(cause) => Err(cause),
            State::Requesting { .. } | State::Open | State::Leaving => Ok(Received::Nothing),
        }
    }

    /// The reader is done with a piece of `len` bytes, which lay in a slot or was copied.
    pub(crate) fn consumed(&mut self, len: usize, was_slot: bool) {
        self.rx.consume(u32::try_from(len).unwrap_or(u32::MAX));
        if was_slot {
            self.grant.let_go();
        }
    }

    /// The application will not send any more; the peer learns it behind the last byte.
    pub(crate) fn finish_sending(&mut self) -> Result<(), Cause> {
        match self.state {
            State::Closed(cause) if cause != Cause::Finished => return Err(cause),
            State::Requesting { .. } | State::Open | State::Leaving | State::Closed(_) => {}
        }
        self.ended.insert(Shutdown::SEND);
        Ok(())
    }

    /// The application has forgotten the connection. What it sent is still delivered, and the
    /// buffers with what it did not read are given back.
    pub(crate) fn hang_up(&mut self) -> Vec<B> {
        self.ended.insert(Shutdown::BOTH);
        if matches!(self.state, State::Requesting { .. }) {
            self.reset();
        }
        self.forget_unread()
    }

    /// The application wants the connection dead at once.
    pub(crate) fn reset(&mut self) {
        match self.state {
            State::Requesting { asked: false } => self.close(Cause::ResetHere),
            State::Requesting { asked: true } | State::Open | State::Leaving => {
                self.abort(Cause::ResetHere);
            }
            State::Closed(_) => {}
        }
    }

    /// The device is gone, and with it everybody to whom something was owed.
    pub(crate) fn cut(&mut self) {
        self.close(Cause::DeviceGone);
        self.owes_reset = false;
    }

    /// Takes out what was received and not read.
    pub(crate) fn forget_unread(&mut self) -> Vec<B> {
        let mut buffers = Vec::new();
        while let Some(piece) = self.inbox.pop() {
            let (len, buffer) = piece.into_parts();
            self.consumed(len, buffer.is_some());
            buffers.extend(buffer);
        }
        buffers
    }

    /// Takes out the data that a closed connection will not send any more.
    pub(crate) fn take_unsent(&mut self) -> Vec<B> {
        let deaf = self.ended_by_peer.contains(Shutdown::RECEIVE);
        if deaf || matches!(self.state, State::Closed(_)) {
            self.outbox.drain(..).map(|(buffer, _)| buffer).collect()
        } else {
            Vec::new()
        }
    }

    /// Closes, and tells the peer.
    fn abort(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.close(cause);
            self.owes_reset = true;
        }
    }

    /// Closes without a word. The first cause stays.
    fn close(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.state = State::Closed(cause);
        }
    }
}

#[cfg(feature = "fuzzing")]
mod inspect;
mod outgoing;
#[cfg(test)]
mod tests;
