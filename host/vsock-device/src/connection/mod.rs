//! One connection: what its two sides have said, without threads, clock or guest memory.
//!
//! Packets of the guest go in through [`Connection::handle_packet`], calls of the application through
//! methods of the same name, and packets for the guest are pulled with [`Connection::poll_packet`]
//! until there are none. What has to be sent is a set of flags and not a queue of packets, so
//! whatever the guest does, a connection owes it at most one packet of each kind.
//!
//! Invariant: every byte that the application sent goes out once and in order, or the application
//! gets an error; every byte of the guest is buffered within the granted credit, or the connection is
//! reset.
//!
//! ```text
//!   host connects                              guest connects
//!        │                                           │
//!        ▼          response                         ▼
//!   Requesting ──────────────────────────────────► Open ◄─┐ each direction is shut down
//!        │                                           │  ──┘ on its own (`Shutdown`)
//!        │ reset                   dropped here, and  │ both shut down, reset, violation,
//!        │                         everything sent ┌──┤ or the device ends
//!        ▼                                         ▼  ▼
//!     Closed(Refused)                      Closing ► Closed(Cause)
//! ```

mod cause;
mod outgoing;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use virtio_vsock::{CreditError, Header, Op, RxCredit, Shutdown, TxCredit};

pub(crate) use self::cause::Cause;

use crate::buffer::{Payload, ReceiveBuffer, SendQueue, Unreadable};
use crate::violation::Violation;

/// What identifies a connection: the guest's context id and both ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) guest_cid: u32,
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// The host asked for a connection, or does so with the next packet.
    Requesting { asked: bool },
    /// Bytes may flow in each direction that is not shut down.
    Open,
    /// The host has shut down both directions. The guest answers with a reset when it has read
    /// everything. What it sends before is ignored: a reset in reply could make the guest discard
    /// what it has not read.
    Closing,
    /// Nothing happens any more, except that a reset may still be owed.
    Closed(Cause),
}

/// The packet that a connection would send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Reset,
    Request,
    Response,
    Data(u32),
    CreditUpdate,
    Shutdown,
}

impl Intent {
    /// Whether it goes before the data of other connections.
    pub(crate) fn is_urgent(self) -> bool {
        !matches!(self, Self::Data(_))
    }
}

/// What went wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The guest violated the protocol.
    Violation(Violation),
    /// The payload could not be read.
    Unreadable,
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<CreditError> for Fault {
    fn from(error: CreditError) -> Self {
        Self::Violation(error.into())
    }
}

impl From<Unreadable> for Fault {
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// See the module's description.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Connection {
    address: Address,
    state: State,
    tx: TxCredit,
    rx: RxCredit,
    queue: SendQueue,
    inbox: ReceiveBuffer,
    /// What the application has shut down, what of it the guest was told, and what the guest has shut
    /// down.
    ended: Shutdown,
    announced: Shutdown,
    ended_by_guest: Shutdown,
    owes_reset: bool,
    owes_response: bool,
    owes_credit: bool,
    /// Whether some bytes that the application sent will never reach the guest.
    lost: bool,
    /// Payload bytes that fit into the last descriptor: a guess about the next one.
    capacity: u32,
}

impl Connection {
    /// A connection that the host opens.
    pub(crate) fn to_guest(address: Address, buf_alloc: u32) -> Self {
        Self::new(
            address,
            State::Requesting { asked: false },
            TxCredit::new(0),
            buf_alloc,
        )
    }

    /// A connection that the guest opened with `request`.
    pub(crate) fn from_guest(address: Address, buf_alloc: u32, request: &Header) -> Self {
        let mut made = Self::new(
            address,
            State::Open,
            TxCredit::new(request.buf_alloc),
            buf_alloc,
        );
        made.owes_response = true;
        made
    }

    fn new(address: Address, state: State, tx: TxCredit, buf_alloc: u32) -> Self {
        Self {
            address,
            state,
            tx,
            rx: RxCredit::new(buf_alloc),
            queue: SendQueue::default(),
            inbox: ReceiveBuffer::default(),
            ended: Shutdown::default(),
            announced: Shutdown::default(),
            ended_by_guest: Shutdown::default(),
            owes_reset: false,
            owes_response: false,
            owes_credit: false,
            lost: false,
            capacity: 1,
        }
    }

    // ---- What the guest says -------------------------------------------------------------------

    /// Handles a packet of this connection. A fault has closed the connection already.
    pub(crate) fn handle_packet(
        &mut self,
        op: Op,
        header: &Header,
        payload: &mut impl Payload,
    ) -> Result<(), Fault> {
        let heard = self.on_packet(op, header, payload);
        match heard {
            Ok(()) => {}
            Err(Fault::Violation(violation)) => self.abort(Cause::Violation(violation)),
            Err(Fault::Unreadable) => self.abort(Cause::Violation(Violation::MalformedChain)),
        }
        heard
    }

    fn on_packet(
        &mut self,
        op: Op,
        header: &Header,
        payload: &mut impl Payload,
    ) -> Result<(), Fault> {
        // A reset need not carry counters: its sender may have no connection to take them from.
        if op != Op::Reset && !matches!(self.state, State::Closed(_)) {
            self.tx.on_packet(header.buf_alloc, header.fwd_cnt)?;
        }
        match (self.state, op) {
            (State::Requesting { asked: true }, Op::Response) => self.state = State::Open,
            (State::Requesting { .. }, Op::Reset) => self.close(Cause::Refused),
            (State::Open, Op::Data) => self.on_data(header.len, payload)?,
            (State::Open, Op::Shutdown) => self.on_shutdown(Shutdown::from_wire(header.flags)),
            (State::Open, Op::Reset) => self.close(Cause::ResetByGuest),
            (State::Open, Op::CreditUpdate) => {}
            (State::Open, Op::CreditRequest) => self.owes_credit = true,
            (State::Closing, Op::Reset) => self.close(Cause::Finished),
            (State::Closing, Op::Shutdown) => self.on_shutdown(Shutdown::from_wire(header.flags)),
            (State::Closing, Op::Data | Op::CreditUpdate | Op::CreditRequest) => {}
            (State::Requesting { asked: false }, Op::Response)
            | (
                State::Requesting { .. },
                Op::Request | Op::Data | Op::Shutdown | Op::CreditUpdate | Op::CreditRequest,
            )
            | (State::Open | State::Closing, Op::Request | Op::Response) => {
                return Err(Violation::UnexpectedOperation.into());
            }
            // The guest sent these before it saw the reset.
            (
                State::Closed(_),
                Op::Request
                | Op::Response
                | Op::Data
                | Op::Shutdown
                | Op::CreditUpdate
                | Op::CreditRequest,
            ) => {}
            // Both sides closed at the same time: a reply would reach nobody.
            (State::Closed(_), Op::Reset) => self.owes_reset = false,
        }
        Ok(())
    }

    fn on_data(&mut self, len: u32, payload: &mut impl Payload) -> Result<(), Fault> {
        if self.ended_by_guest.contains(Shutdown::SEND) {
            return Err(Violation::DataAfterShutdown.into());
        }
        self.rx.accept(len)?;
        if self.ended.contains(Shutdown::RECEIVE) {
            // The application has closed the connection, but what it sent before is on its way.
            self.rx.consume(len);
        } else {
            self.inbox.push(len as usize, payload)?;
        }
        Ok(())
    }

    fn on_shutdown(&mut self, ended: Shutdown) {
        self.ended_by_guest.insert(ended);
        if self.ended_by_guest.contains(Shutdown::RECEIVE) {
            self.drop_queue();
        }
        if self.ended_by_guest.contains(Shutdown::BOTH) {
            // The guest drops the connection when it sees the reset.
            self.abort(Cause::Finished);
        }
    }

    // ---- Calls of the application --------------------------------------------------------------

    /// Queues bytes. The caller has checked [`Self::may_send`].
    pub(crate) fn send(&mut self, data: Bytes) {
        self.queue.push(data);
    }

    /// Queues a copy of bytes. The caller has checked [`Self::may_send`].
    pub(crate) fn send_copy(&mut self, data: &[u8]) {
        self.queue.push_copy(data);
    }

    /// Whether bytes can still reach the guest.
    pub(crate) fn may_send(&self) -> Result<(), Cause> {
        match self.state {
            State::Closed(cause) => Err(cause),
            State::Closing => Err(Cause::Finished),
            State::Requesting { .. } | State::Open => {
                let is_unwanted = self.ended_by_guest.contains(Shutdown::RECEIVE);
                let is_finished = self.ended.contains(Shutdown::SEND);
                if is_unwanted || is_finished {
                    Err(Cause::Finished)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Bytes that are not in a packet yet, or an error if some will never be.
    pub(crate) fn unsent(&self) -> Result<usize, Cause> {
        match (self.state, self.lost) {
            (_, false) => Ok(self.queue.len()),
            (State::Closed(cause), true) => Err(cause),
            (State::Requesting { .. } | State::Open | State::Closing, true) => Err(Cause::Finished),
        }
    }

    /// Moves received bytes into `to`. `Ok(None)` means that there are none yet, `Ok(Some(0))` is the
    /// end of the stream.
    pub(crate) fn receive(&mut self, to: &mut [u8]) -> Result<Option<usize>, Cause> {
        if let State::Closed(cause @ (Cause::DeviceStopped | Cause::ResetByHost)) = self.state {
            return Err(cause);
        }
        let n = self.inbox.pop(to);
        if n > 0 || to.is_empty() {
            self.rx.consume(u32::try_from(n).unwrap_or(u32::MAX));
            return Ok(Some(n));
        }
        if self.ended_by_guest.contains(Shutdown::SEND) {
            return Ok(Some(0));
        }
        match self.state {
            State::Closed(cause) => Err(cause),
            State::Requesting { .. } | State::Open | State::Closing => Ok(None),
        }
    }

    /// The application will not send any more; the guest is told after the last byte.
    pub(crate) fn finish_sending(&mut self) {
        self.ended.insert(Shutdown::SEND);
    }

    /// The application has dropped the connection. What it sent is still delivered.
    pub(crate) fn hang_up(&mut self) {
        self.ended.insert(Shutdown::BOTH);
        let unread = u32::try_from(self.inbox.len()).unwrap_or(u32::MAX);
        self.rx.consume(unread);
        self.inbox.clear();
        if matches!(self.state, State::Requesting { .. }) {
            self.reset();
        }
    }

    /// The application closes the connection at once, and discards what the guest sent.
    pub(crate) fn reset(&mut self) {
        self.inbox.clear();
        match self.state {
            State::Requesting { asked: false } => self.close(Cause::ResetByHost),
            State::Requesting { asked: true } | State::Open | State::Closing => {
                self.abort(Cause::ResetByHost);
            }
            State::Closed(_) => {}
        }
    }

    /// Closes without telling the guest: nothing is sent any more. What was received stays readable,
    /// since a guest may send something important before it powers off, unless the application itself
    /// ended the device.
    pub(crate) fn terminate(&mut self, cause: Cause) {
        self.close(cause);
        self.owes_reset = false;
        if cause == Cause::DeviceStopped {
            self.state = State::Closed(cause);
            self.inbox.clear();
        }
    }

    /// Bytes from the guest that wait for the application.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn buffered(&self) -> usize {
        self.inbox.len()
    }

    /// Closes, and resets the guest.
    fn abort(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.close(cause);
            self.owes_reset = true;
        }
    }

    /// Closes without telling the guest. The first cause stays.
    fn close(&mut self, cause: Cause) {
        if !matches!(self.state, State::Closed(_)) {
            self.state = State::Closed(cause);
            self.drop_queue();
        }
    }

    fn drop_queue(&mut self) {
        self.lost |= !self.queue.is_empty();
        self.queue.clear();
    }
}
