//! One connection: what its two sides have said, without threads, clock or device.
//!
//! Packets of the peer go in through [`Connection::handle_packet`], calls of the application through
//! methods of the same name, and packets for the peer are pulled with [`Connection::poll_packet`]
//! until there are none. Apart from data, what has to be sent is a set of flags and not a queue of
//! packets, so a connection owes its peer at most one packet of each kind. Data waits in send
//! buffers, of which there are few.
//!
//! `B` is a buffer of the device; bytes stay in it where they arrived.
//!
//! Invariant: every byte of the peer is buffered within the granted credit, or the connection is
//! reset; a buffer that is not kept is returned by the same call.
//!
//! ```text
//!   this side connects                          the peer connects
//!        │                                           │
//!        ▼          response                         ▼
//!   Requesting ──────────────────────────────────► Open ◄─┐ each direction is shut down
//!        │                                           │  ──┘ on its own (`Shutdown`)
//!        │ reset                   dropped here, and  │ both shut down, reset, violation,
//!        │                         everything sent ┌──┤ or the device is gone
//!        ▼                                         ▼  ▼
//!     Closed(Refused)                      Closing ► Closed(Cause)
//! ```

mod cause;
#[cfg(feature = "fuzzing")]
mod inspect;
mod outgoing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use virtio_vsock::{HOST_CID, Header, Op, RxCredit, Shutdown, TYPE_STREAM, TxCredit};

pub(crate) use self::cause::Cause;

use crate::inbox::{Inbox, Piece};
use crate::slots::Grant;
use crate::violation::Violation;

/// Both ports of a connection. The peer is always the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) own_port: u32,
    pub(crate) peer_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// This side asked for a connection, or does so with the next packet.
    Requesting { asked: bool },
    /// Bytes may flow in each direction that is not shut down.
    Open,
    /// This side has shut down both directions. The peer answers with a reset when it has read
    /// everything.
    Closing,
    /// Nothing happens any more, except that a reset may still be owed.
    Closed(Cause),
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Received<B> {
    /// The next bytes. The reader calls [`Connection::consumed`] when it is done with them.
    Piece(Piece<B>),
    /// Nothing yet.
    Nothing,
    /// The peer has shut down sending, and everything was read.
    End,
}

/// A packet for the peer, and the buffer with its `header.len` bytes of payload if it has any.
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
    /// What the application has shut down, what of it the peer was told, and what the peer has shut
    /// down.
    ended: Shutdown,
    announced: Shutdown,
    ended_by_peer: Shutdown,
    owes_reset: bool,
    owes_response: bool,
    owes_credit: bool,
}

impl<B: AsRef<[u8]>> Connection<B> {
    /// A connection that this side opens.
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

    /// Handles a packet of this connection, and returns its buffer unless it is kept. A violation has
    /// closed the connection already.
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
            (State::Open | State::Closing, Op::Shutdown) => {
                self.on_shutdown(Shutdown::from_wire(header.flags));
            }
            (State::Open, Op::Reset) => self.close(Cause::ResetByPeer),
            (State::Open, Op::CreditRequest) => self.owes_credit = true,
            (State::Closing, Op::Reset) => self.close(Cause::Finished),
            (State::Open, Op::CreditUpdate)
            | (State::Closing, Op::Data | Op::CreditUpdate | Op::CreditRequest) => {}
            (State::Requesting { asked: false }, Op::Response)
            | (
                State::Requesting { .. },
                Op::Request | Op::Data | Op::Shutdown | Op::CreditUpdate | Op::CreditRequest,
            )
            | (State::Open | State::Closing, Op::Request | Op::Response) => {
                return Err(Violation::UnexpectedOperation);
            }
            // Both sides closed at the same time: a reply would reach nobody.
            (State::Closed(_), Op::Reset) => self.owes_reset = false,
            // The peer sent these before it saw the reset.
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
            // The application has closed the connection, but what it sent before is on its way.
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
            // The peer drops the connection when it sees the reset. What it sent stays readable.
            self.abort(Cause::Finished);
        }
    }

    // ---- Calls of the application --------------------------------------------------------------

    /// Whether bytes can still reach the peer.
    pub(crate) fn may_send(&self) -> Result<(), Cause> {
        match self.state {
            State::Closed(cause) => Err(cause),
            State::Closing => Err(Cause::Finished),
            State::Requesting { .. } | State::Open => {
                let is_unwanted = self.ended_by_peer.contains(Shutdown::RECEIVE);
                let is_finished = self.ended.contains(Shutdown::SEND);
                if is_unwanted || is_finished {
                    Err(Cause::Finished)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Takes credit for a packet of up to `want` bytes; [`Self::send`] has to follow. Zero means that
    /// the peer has no free space.
    pub(crate) fn begin_send(&mut self, want: u32) -> Result<u32, Cause> {
        self.may_send()?;
        let taken = self.tx.take(want);
        self.filling += usize::from(taken > 0);
        Ok(taken)
    }

    /// Queues the first `len` bytes of `buffer`. Returns the buffer if `len` is zero, or if the peer
    /// will not get the bytes. `unused` of the credit that was taken is given back.
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
            State::Requesting { .. } | State::Open | State::Closing => Cause::Finished,
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
            State::Requesting { .. } | State::Open | State::Closing => Ok(Received::Nothing),
        }
    }

    /// The reader is done with a piece of `len` bytes, which was in a slot or a copy.
    pub(crate) fn consumed(&mut self, len: usize, was_slot: bool) {
        self.rx.consume(u32::try_from(len).unwrap_or(u32::MAX));
        if was_slot {
            self.grant.release_one();
        }
    }

    /// The application will not send any more; the peer is told after the last byte.
    pub(crate) fn finish_sending(&mut self) -> Result<(), Cause> {
        match self.state {
            State::Closed(cause) if cause != Cause::Finished => return Err(cause),
            State::Requesting { .. } | State::Open | State::Closing | State::Closed(_) => {}
        }
        self.ended.insert(Shutdown::SEND);
        Ok(())
    }

    /// The application has dropped the connection. What it sent is still delivered, and the buffers
    /// with what it did not read are returned.
    pub(crate) fn hang_up(&mut self) -> Vec<B> {
        self.ended.insert(Shutdown::BOTH);
        if matches!(self.state, State::Requesting { .. }) {
            self.reset();
        }
        self.forget_unread()
    }

    /// The application closes the connection at once.
    pub(crate) fn reset(&mut self) {
        match self.state {
            State::Requesting { asked: false } => self.close(Cause::ResetHere),
            State::Requesting { asked: true } | State::Open | State::Closing => {
                self.abort(Cause::ResetHere);
            }
            State::Closed(_) => {}
        }
    }

    /// Closes without telling the peer: the device is gone, or the peer has dropped the connection.
    pub(crate) fn terminate(&mut self) {
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
        let is_unwanted = self.ended_by_peer.contains(Shutdown::RECEIVE);
        if is_unwanted || matches!(self.state, State::Closed(_)) {
            self.outbox.drain(..).map(|(buffer, _)| buffer).collect()
        } else {
            Vec::new()
        }
    }

    /// Closes, and resets the peer.
    fn abort(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.close(cause);
            self.owes_reset = true;
        }
    }

    /// Closes without telling the peer. The first cause stays.
    fn close(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.state = State::Closed(cause);
        }
    }
}
