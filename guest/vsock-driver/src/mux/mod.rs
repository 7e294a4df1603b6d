//! All connections of an endpoint: packets from the peer in, packets for the peer out.
//!
//! This layer knows neither rings nor threads. Its owner gives it received packets with their
//! buffers, pulls packets to send with [`Mux::poll_packet`], and after each call takes out what the
//! call left: free buffers ([`Mux::take_received`], [`Mux::take_unsent`]) and [`Event`]s.
//!
//! Invariant: whatever a packet says, handling it takes bounded time and memory; and a connection
//! whose reader sleeps keeps its own slots and nothing else.

use std::collections::VecDeque;

use virtio_vsock::{HOST_CID, Header, Op, TYPE_STREAM};

use crate::connection::{Address, Cause, Connection, Outgoing, Received};
use crate::counters::Counters;
use crate::slots::Slots;
use crate::table::{Id, Table};

/// Resets that wait for the ring, in reply to packets of unknown connections. Further packets get no
/// reply, or the peer could make us queue any number of them.
const MAX_REFUSALS: usize = 64;

/// Which waiting threads should check again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// There is something to read.
    Readable(Id),
    /// There may be credit to send.
    Writable(Id),
    /// The connection has changed its state.
    Changed(Id),
    /// A connection waits to be accepted.
    Incoming,
}

/// See the module's description.
#[derive(Debug, Clone)]
pub(crate) struct Mux<B> {
    own_cid: u64,
    table: Table<B>,
    slots: Slots,
    ready: VecDeque<Id>,
    refusals: VecDeque<Header>,
    events: Vec<Event>,
    received: Vec<B>,
    unsent: Vec<B>,
    gone: bool,
    pub(crate) counters: Counters,
}

impl<B: AsRef<[u8]>> Mux<B> {
    pub(crate) fn new(own_cid: u64, slots: Slots, max_connections: usize) -> Self {
        Self {
            own_cid,
            table: Table::new(max_connections),
            slots,
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            events: Vec::new(),
            received: Vec::new(),
            unsent: Vec::new(),
            gone: false,
            counters: Counters::default(),
        }
    }

    // ---- From the peer -------------------------------------------------------------------------

    /// Handles a packet. Its payload is the first `header.len` bytes of `buffer`.
    pub(crate) fn handle_packet(&mut self, header: &Header, buffer: B) {
        self.counters.packets_received += 1;
        if header.src_cid != HOST_CID || header.dst_cid != self.own_cid {
            // A reply would go to the wrong address.
            self.counters.packets_refused += 1;
            return self.received.push(buffer);
        }
        let address = Address {
            own_port: header.dst_port,
            peer_port: header.src_port,
        };
        let found = self.table.find(&address);
        match (Op::from_wire(header.op), header.kind, found) {
            (Some(op), TYPE_STREAM, Some(id)) => self.deliver(id, op, header, buffer),
            (Some(Op::Request), TYPE_STREAM, None) => {
                self.received.push(buffer);
                self.admit(address, header);
            }
            _ => {
                self.received.push(buffer);
                self.refuse(header);
            }
        }
    }

    /// Drops an invalid packet.
    pub(crate) fn discard(&mut self, buffer: B) {
        self.counters.packets_refused += 1;
        self.received.push(buffer);
    }

    fn deliver(&mut self, id: Id, op: Op, header: &Header, buffer: B) {
        let Some(entry) = self.table.get_mut(id) else {
            return self.received.push(buffer);
        };
        if op == Op::Request && entry.connection.is_closing() {
            // The peer has already dropped the connection that this side is closing.
            let address = entry.connection.address();
            entry.connection.terminate();
            self.touch(id);
            self.received.push(buffer);
            return self.admit(address, header);
        }
        let (back, heard) = entry.connection.handle_packet(op, header, buffer);
        let event = match op {
            Op::Data => Event::Readable(id),
            Op::CreditUpdate => Event::Writable(id),
            Op::Request | Op::Response | Op::Reset | Op::Shutdown => Event::Changed(id),
            Op::CreditRequest => Event::Writable(id),
        };
        if op == Op::Data {
            self.counters.bytes_received += u64::from(header.len);
            self.counters.copies += u64::from(back.is_some());
        }
        self.received.extend(back);
        if let Err(violation) = heard {
            log::warn!("vsock: the host violated the protocol on a connection: {violation}");
            self.events.push(Event::Changed(id));
        }
        self.events.push(event);
        if op == Op::Data {
            // Each packet carries credit.
            self.events.push(Event::Writable(id));
        }
        self.touch(id);
    }

    fn admit(&mut self, address: Address, request: &Header) {
        if !self.table.has_backlog_space(address.own_port) || !self.ensure_capacity() {
            return self.refuse(request);
        }
        let grant = self.slots.grant();
        let connection = Connection::from_peer(address, self.own_cid, grant, request);
        let id = self.table.insert(address, connection);
        self.table.enqueue(address.own_port, id);
        self.events.push(Event::Incoming);
        self.touch(id);
    }

    fn refuse(&mut self, header: &Header) {
        let Some(refusal) = header.reset_reply() else {
            return;
        };
        self.counters.packets_refused += 1;
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.push_back(refusal);
        }
    }

    // ---- To the peer ---------------------------------------------------------------------------

    /// The next packet to send. Connections take turns.
    #[must_use]
    pub(crate) fn poll_packet(&mut self) -> Option<Outgoing<B>> {
        if let Some(header) = self.refusals.pop_front() {
            self.counters.packets_sent += 1;
            return Some(Outgoing {
                header,
                payload: None,
            });
        }
        // Each round takes a connection out, and only a packet puts it back.
        loop {
            let id = self.ready.pop_front()?;
            let Some(entry) = self.table.get_mut(id) else {
                continue;
            };
            entry.is_queued = false;
            let packet = entry.connection.poll_packet();
            self.touch(id);
            if let Some(packet) = packet {
                self.counters.packets_sent += 1;
                self.counters.bytes_sent += u64::from(packet.header.len);
                return Some(packet);
            }
        }
    }

    // ---- For the application -------------------------------------------------------------------

    /// Opens a connection. `None` if there are too many.
    pub(crate) fn connect(&mut self, peer_port: u32) -> Result<Option<Id>, Cause> {
        if self.gone {
            return Err(Cause::DeviceGone);
        }
        if !self.ensure_capacity() {
            return Ok(None);
        }
        let address = Address {
            own_port: self.table.free_port(peer_port),
            peer_port,
        };
        let grant = self.slots.grant();
        let connection = Connection::to_peer(address, self.own_cid, grant);
        let id = self.table.insert(address, connection);
        self.touch(id);
        Ok(Some(id))
    }

    /// Adds a listener. `false` if the port already has one.
    pub(crate) fn listen(&mut self, port: u32) -> Result<bool, Cause> {
        if self.gone {
            return Err(Cause::DeviceGone);
        }
        Ok(self.table.listen(port))
    }

    /// Removes a listener, and closes the connections that were not accepted.
    pub(crate) fn unlisten(&mut self, port: u32) {
        for id in self.table.unlisten(port) {
            self.hang_up(id);
        }
    }

    /// The next connection that the peer has made to `port`.
    pub(crate) fn accept(&mut self, port: u32) -> Result<Option<Id>, Cause> {
        match self.table.accept(port) {
            None if self.gone => Err(Cause::DeviceGone),
            next => Ok(next),
        }
    }

    /// Whether the peer has not answered the request yet, or why there will be no connection.
    pub(crate) fn is_requesting(&self, id: Id) -> Result<bool, Cause> {
        let entry = self.table.get(id).ok_or(Cause::Finished)?;
        entry.connection.is_requesting()
    }

    /// See [`Connection::may_send`].
    pub(crate) fn may_send(&self, id: Id) -> Result<(), Cause> {
        let entry = self.table.get(id).ok_or(Cause::Finished)?;
        entry.connection.may_send()
    }

    /// See [`Connection::begin_send`].
    pub(crate) fn begin_send(&mut self, id: Id, want: u32) -> Result<u32, Cause> {
        let entry = self.table.get_mut(id).ok_or(Cause::Finished)?;
        entry.connection.begin_send(want)
    }

    /// See [`Connection::send`].
    pub(crate) fn send(&mut self, id: Id, buffer: B, len: u32, unused: u32) -> Result<(), Cause> {
        let Some(entry) = self.table.get_mut(id) else {
            self.unsent.push(buffer);
            return Err(Cause::Finished);
        };
        let (back, sent) = entry.connection.send(buffer, len, unused);
        self.unsent.extend(back);
        self.touch(id);
        sent
    }

    /// See [`Connection::receive`].
    pub(crate) fn receive(&mut self, id: Id) -> Result<Received<B>, Cause> {
        let entry = self.table.get_mut(id).ok_or(Cause::Finished)?;
        entry.connection.receive()
    }

    /// A reader is done with a piece of `len` bytes and with its buffer.
    pub(crate) fn consumed(&mut self, id: Id, len: usize, buffer: Option<B>) {
        if let Some(entry) = self.table.get_mut(id) {
            entry.connection.consumed(len, buffer.is_some());
        }
        self.received.extend(buffer);
        self.touch(id);
    }

    /// See [`Connection::finish_sending`].
    pub(crate) fn finish_sending(&mut self, id: Id) -> Result<(), Cause> {
        let entry = self.table.get_mut(id).ok_or(Cause::Finished)?;
        entry.connection.finish_sending()?;
        // Wakes other writers, which fail from now on.
        self.events.push(Event::Changed(id));
        self.touch(id);
        Ok(())
    }

    /// See [`Connection::hang_up`].
    pub(crate) fn hang_up(&mut self, id: Id) {
        if let Some(entry) = self.table.get_mut(id) {
            entry.has_owner = false;
            self.received.extend(entry.connection.hang_up());
            self.touch(id);
        }
    }

    /// See [`Connection::reset`].
    pub(crate) fn reset(&mut self, id: Id) {
        if let Some(entry) = self.table.get_mut(id) {
            entry.connection.reset();
            self.received.extend(entry.connection.forget_unread());
            self.events.push(Event::Changed(id));
            self.touch(id);
        }
    }

    /// The device is gone.
    pub(crate) fn end(&mut self) {
        self.gone = true;
        self.refusals.clear();
        for id in self.table.ids() {
            if let Some(entry) = self.table.get_mut(id) {
                entry.connection.terminate();
                self.events.push(Event::Changed(id));
                self.touch(id);
            }
        }
        self.events.push(Event::Incoming);
    }

    /// Whether the device is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.gone
    }

    // ---- What calls leave ----------------------------------------------------------------------

    /// A receive buffer that is free again.
    pub(crate) fn take_received(&mut self) -> Option<B> {
        self.received.pop()
    }

    /// A send buffer whose bytes will not be sent.
    pub(crate) fn take_unsent(&mut self) -> Option<B> {
        self.unsent.pop()
    }

    /// The next event.
    pub(crate) fn take_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Whether there may be one more connection. If not, evicts one that is closing.
    fn ensure_capacity(&mut self) -> bool {
        if !self.table.is_full() {
            return true;
        }
        let is_closing = |&id: &Id| {
            let entry = self.table.get(id);
            entry.is_some_and(|entry| !entry.has_owner && entry.connection.is_closing())
        };
        let Some(id) = self.table.ids().into_iter().find(is_closing) else {
            return false;
        };
        if let Some(entry) = self.table.get_mut(id) {
            entry.connection.terminate();
        }
        self.touch(id);
        !self.table.is_full()
    }

    /// To be called after every change to a connection.
    fn touch(&mut self, id: Id) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let connection = &mut entry.connection;
        self.unsent.extend(connection.take_unsent());
        if connection.has_packet() && !std::mem::replace(&mut entry.is_queued, true) {
            self.ready.push_back(id);
        }
        let (is_over, is_idle) = (connection.is_over(), connection.is_idle());
        let address = connection.address();
        let is_unused = is_idle && !entry.has_owner;
        if is_over {
            self.table.free_address(id, address);
        }
        if is_unused && let Some(entry) = self.table.remove(id) {
            self.slots.release(entry.connection.grant());
            if entry.is_queued {
                // Only a packet would take it out of the queue, and the peer may accept none.
                self.ready.retain(|&waiting| waiting != id);
            }
        }
    }
}

#[cfg(feature = "fuzzing")]
mod inspect;
#[cfg(test)]
mod tests;
