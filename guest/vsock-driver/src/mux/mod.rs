//! All connections of an endpoint: packets of the peer in, packets for the peer out.
//!
//! This layer knows neither rings nor threads. Whoever owns it gives it packets with the buffers in
//! which they lie, pulls packets with [`Mux::poll_packet`], and after each call takes out what the
//! call left: buffers ([`Mux::take_received`], [`Mux::take_unsent`]) and [`Event`]s.
//!
//! Law: whatever a packet says, handling it takes bounded time and memory; and a connection whose
//! reader sleeps keeps its own slots and nothing else.

use std::collections::VecDeque;

use crate::connection::{Address, Cause, Connection, Outgoing, Received};
use crate::counters::Counters;
use crate::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::slots::Slots;
use crate::table::{Id, Table};

/// Resets to packets of unknown connections that wait for a place in the ring. Beyond this the peer
/// has to live without an answer, or it could make us remember any number of them.
const MAX_REFUSALS: usize = 64;

/// Who should look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// There is something to read.
    Readable(Id),
    /// There may be room to send.
    Writable(Id),
    /// The connection has changed its state.
    Changed(Id),
    /// Somebody waits to be accepted.
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

    /// Handles a packet, whose payload is the first `header.len` bytes of `buffer`.
    pub(crate) fn handle_packet(&mut self, header: &Header, buffer: B) {
        self.counters.packets_received += 1;
        if header.src_cid != HOST_CID || header.dst_cid != self.own_cid {
            // An answer would go to whom it names.
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

    /// Gives a packet back that makes no sense.
    pub(crate) fn discard(&mut self, buffer: B) {
        self.counters.packets_refused += 1;
        self.received.push(buffer);
    }

    fn deliver(&mut self, id: Id, op: Op, header: &Header, buffer: B) {
        let Some(known) = self.table.get_mut(id) else {
            return self.received.push(buffer);
        };
        if op == Op::Request && known.connection.is_leaving() {
            // The peer has forgotten the connection to which we said goodbye.
            let address = known.connection.address();
            known.connection.cut();
            self.touch(id);
            self.received.push(buffer);
            return self.admit(address, header);
        }
        let (back, heard) = known.connection.handle_packet(op, header, buffer);
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
            log::warn!("vsock: the host broke the rules of a connection: {violation}");
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
        if !self.table.has_place(address.own_port) || !self.make_room() {
            return self.refuse(request);
        }
        let grant = self.slots.grant();
        let connection = Connection::from_peer(address, self.own_cid, grant, request);
        let id = self.table.insert(address, connection);
        self.table.wait(address.own_port, id);
        self.events.push(Event::Incoming);
        self.touch(id);
    }

    fn refuse(&mut self, header: &Header) {
        let Some(refusal) = header.refusal() else {
            return;
        };
        self.counters.packets_refused += 1;
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.push_back(refusal);
        }
    }

    // ---- To the peer ---------------------------------------------------------------------------

    /// The next packet, if there is one. Connections take turns.
    #[must_use]
    pub(crate) fn poll_packet(&mut self) -> Option<Outgoing<B>> {
        if let Some(header) = self.refusals.pop_front() {
            self.counters.packets_sent += 1;
            return Some(Outgoing {
                header,
                payload: None,
            });
        }
        // Each round takes one out, and only a packet puts it back.
        loop {
            let id = self.ready.pop_front()?;
            let Some(known) = self.table.get_mut(id) else {
                continue;
            };
            known.lined_up = false;
            let packet = known.connection.poll_packet();
            self.touch(id);
            if let Some(packet) = packet {
                self.counters.packets_sent += 1;
                self.counters.bytes_sent += u64::from(packet.header.len);
                return Some(packet);
            }
        }
    }

    // ---- For the application -------------------------------------------------------------------

    /// Asks for a connection. `None` if there are too many.
    pub(crate) fn connect(&mut self, peer_port: u32) -> Result<Option<Id>, Cause> {
        if self.gone {
            return Err(Cause::DeviceGone);
        }
        if !self.make_room() {
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

    /// Begins to listen. `false` if somebody already does.
    pub(crate) fn listen(&mut self, port: u32) -> Result<bool, Cause> {
        if self.gone {
            return Err(Cause::DeviceGone);
        }
        Ok(self.table.listen(port))
    }

    /// Ends listening, and hangs up on those who were not accepted.
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

    /// Whether the peer has not answered our request yet, or why there will be no connection.
    pub(crate) fn is_requesting(&self, id: Id) -> Result<bool, Cause> {
        let known = self.table.get(id).ok_or(Cause::Finished)?;
        known.connection.is_requesting()
    }

    /// See [`Connection::may_send`].
    pub(crate) fn may_send(&self, id: Id) -> Result<(), Cause> {
        let known = self.table.get(id).ok_or(Cause::Finished)?;
        known.connection.may_send()
    }

    /// See [`Connection::begin_send`].
    pub(crate) fn begin_send(&mut self, id: Id, want: u32) -> Result<u32, Cause> {
        let known = self.table.get_mut(id).ok_or(Cause::Finished)?;
        known.connection.begin_send(want)
    }

    /// See [`Connection::send`].
    pub(crate) fn send(&mut self, id: Id, buffer: B, len: u32, unused: u32) -> Result<(), Cause> {
        let Some(known) = self.table.get_mut(id) else {
            self.unsent.push(buffer);
            return Err(Cause::Finished);
        };
        let (back, sent) = known.connection.send(buffer, len, unused);
        self.unsent.extend(back);
        self.touch(id);
        sent
    }

    /// See [`Connection::receive`].
    pub(crate) fn receive(&mut self, id: Id) -> Result<Received<B>, Cause> {
        let known = self.table.get_mut(id).ok_or(Cause::Finished)?;
        known.connection.receive()
    }

    /// A reader is done with a piece of `len` bytes and the buffer in which it lay.
    pub(crate) fn consumed(&mut self, id: Id, len: usize, buffer: Option<B>) {
        if let Some(known) = self.table.get_mut(id) {
            known.connection.consumed(len, buffer.is_some());
        }
        self.received.extend(buffer);
        self.touch(id);
    }

    /// See [`Connection::finish_sending`].
    pub(crate) fn finish_sending(&mut self, id: Id) -> Result<(), Cause> {
        let known = self.table.get_mut(id).ok_or(Cause::Finished)?;
        known.connection.finish_sending()?;
        // Other writers learn that they are too late.
        self.events.push(Event::Changed(id));
        self.touch(id);
        Ok(())
    }

    /// See [`Connection::hang_up`].
    pub(crate) fn hang_up(&mut self, id: Id) {
        if let Some(known) = self.table.get_mut(id) {
            known.has_owner = false;
            self.received.extend(known.connection.hang_up());
            self.touch(id);
        }
    }

    /// See [`Connection::reset`].
    pub(crate) fn reset(&mut self, id: Id) {
        if let Some(known) = self.table.get_mut(id) {
            known.connection.reset();
            self.received.extend(known.connection.forget_unread());
            self.events.push(Event::Changed(id));
            self.touch(id);
        }
    }

    /// There is no device any more.
    pub(crate) fn end(&mut self) {
        self.gone = true;
        self.refusals.clear();
        for id in self.table.ids() {
            if let Some(known) = self.table.get_mut(id) {
                known.connection.cut();
                self.events.push(Event::Changed(id));
                self.touch(id);
            }
        }
        self.events.push(Event::Incoming);
    }

    /// Whether there is no device any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.gone
    }

    // ---- What calls leave ----------------------------------------------------------------------

    /// A receive buffer that is free again.
    pub(crate) fn take_received(&mut self) -> Option<B> {
        self.received.pop()
    }

    /// A send buffer whose bytes nobody will get.
    pub(crate) fn take_unsent(&mut self) -> Option<B> {
        self.unsent.pop()
    }

    /// The next event.
    pub(crate) fn take_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Whether there is a place for one more connection. Who is leaving has to make room.
    fn make_room(&mut self) -> bool {
        if !self.table.is_full() {
            return true;
        }
        let leaving = |&id: &Id| {
            let known = self.table.get(id);
            known.is_some_and(|known| !known.has_owner && known.connection.is_leaving())
        };
        let Some(id) = self.table.ids().into_iter().find(leaving) else {
            return false;
        };
        if let Some(known) = self.table.get_mut(id) {
            known.connection.cut();
        }
        self.touch(id);
        !self.table.is_full()
    }

    /// To be called after every change to a connection.
    fn touch(&mut self, id: Id) {
        let Some(known) = self.table.get_mut(id) else {
            return;
        };
        let connection = &mut known.connection;
        self.unsent.extend(connection.take_unsent());
        if connection.has_packet() && !std::mem::replace(&mut known.lined_up, true) {
            self.ready.push_back(id);
        }
        let (is_over, is_idle) = (connection.is_over(), connection.is_idle());
        let address = connection.address();
        let forgotten = is_idle && !known.has_owner;
        if is_over {
            self.table.free_address(id, address);
        }
        if forgotten && let Some(known) = self.table.remove(id) {
            self.slots.release(known.connection.grant());
            if known.lined_up {
                // Only a packet would take it out of the line, and the peer may take none.
                self.ready.retain(|&waiting| waiting != id);
            }
        }
    }
}

#[cfg(feature = "fuzzing")]
mod inspect;
#[cfg(test)]
mod tests;
