//! The driver without memory, rings and threads: for a model of the protocol and for fuzzing.
//!
//! Not part of the API. [`Driver`] is the multiplexer with everything below it, as a value that can
//! be cloned, hashed, and checked for broken invariants.

use virtio_vsock::{HEADER_LEN, Header};

use crate::connection::Received;
use crate::inbox;
use crate::mux::Mux;
use crate::slots::Slots;
use crate::table;

/// Payloads up to this size are copied out of their slot.
pub const COPYBREAK: usize = crate::slots::COPYBREAK;

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(table::Id);

/// The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// Received bytes that a reader holds.
#[derive(Debug, Clone, Hash)]
pub struct Piece<B>(inbox::Piece<B>);

impl<B: AsRef<[u8]>> Piece<B> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Whether they are in a slot, and not a copy.
    pub fn is_slot(&self) -> bool {
        matches!(self.0, inbox::Piece::Slot(..))
    }
}

/// What a reader finds.
#[derive(Debug)]
pub enum Read<B> {
    /// Bytes, to be returned with [`Driver::drop_piece`].
    Piece(Piece<B>),
    /// Nothing yet.
    Nothing,
    /// The end of the stream.
    End,
}

/// A packet for the device: its header, and a buffer with its payload if it has any.
pub type Packet<B> = ([u8; HEADER_LEN], Option<B>);

/// See the module's description.
#[derive(Debug, Clone, Hash)]
pub struct Driver<B>(Mux<B>);

impl<B: AsRef<[u8]>> Driver<B> {
    /// A driver of the guest `cid` with `slots` slots of `slot_bytes`, of which a connection gets up
    /// to `window`.
    pub fn new(
        cid: u64,
        slots: usize,
        slot_bytes: u32,
        window: usize,
        max_connections: usize,
    ) -> Self {
        let slots = Slots::new(slots, slot_bytes, window);
        Self(Mux::new(cid, slots, max_connections))
    }

    /// Takes what the device wrote into a slot, as `shared` does: `header`, and `len` bytes of
    /// payload.
    pub fn receive(&mut self, header: &[u8], slot: B, len: usize) {
        match Header::decode_prefix(header).filter(|header| header.len as usize == len) {
            Some(header) => self.0.handle_packet(&header, slot),
            None => self.0.discard(slot),
        }
    }

    /// The next packet for the device.
    pub fn poll_packet(&mut self) -> Option<Packet<B>> {
        let packet = self.0.poll_packet()?;
        Some((packet.header.encode(), packet.payload))
    }

    /// A slot that returns to the device.
    pub fn take_received(&mut self) -> Option<B> {
        self.0.take_received()
    }

    /// A send buffer whose bytes will not be sent.
    pub fn take_unsent(&mut self) -> Option<B> {
        self.0.take_unsent()
    }

    /// Discards the wake-up events. Returns how many there were.
    pub fn forget_events(&mut self) -> usize {
        std::iter::from_fn(|| self.0.take_event()).count()
    }

    /// Opens a connection.
    pub fn connect(&mut self, port: u32) -> Option<Id> {
        self.0.connect(port).ok().flatten().map(Id)
    }

    /// Adds a listener.
    pub fn listen(&mut self, port: u32) -> bool {
        self.0.listen(port).unwrap_or(false)
    }

    /// Removes a listener.
    pub fn unlisten(&mut self, port: u32) {
        self.0.unlisten(port);
    }

    /// The next connection from the host.
    pub fn accept(&mut self, port: u32) -> Option<Id> {
        self.0.accept(port).ok().flatten().map(Id)
    }

    /// Whether the host has accepted the connection.
    pub fn is_open(&self, Id(id): Id) -> Result<bool, Closed> {
        let is_requesting = self.0.is_requesting(id).map_err(|_| Closed)?;
        Ok(!is_requesting)
    }

    /// Whether [`Self::begin_send`] would get credit, or fail.
    pub fn may_begin(&self, Id(id): Id, want: u32) -> bool {
        let connection = self.0.connection(id);
        connection.is_none_or(|connection| connection.may_begin(want))
    }

    /// Whether [`Self::read`] would find something, or fail.
    pub fn is_readable(&self, Id(id): Id) -> bool {
        let connection = self.0.connection(id);
        connection.is_none_or(|connection| connection.is_readable())
    }

    /// Takes credit for up to `want` bytes; zero means that there is none.
    pub fn begin_send(&mut self, Id(id): Id, want: u32) -> Result<u32, Closed> {
        self.0.begin_send(id, want).map_err(|_| Closed)
    }

    /// Sends `len` bytes for which credit was taken, and gives back `unused`.
    pub fn send(&mut self, Id(id): Id, buffer: B, len: u32, unused: u32) -> Result<(), Closed> {
        self.0.send(id, buffer, len, unused).map_err(|_| Closed)
    }

    /// Takes the next received bytes.
    pub fn read(&mut self, Id(id): Id) -> Result<Read<B>, Closed> {
        match self.0.receive(id) {
            Ok(Received::Piece(piece)) => Ok(Read::Piece(Piece(piece))),
            Ok(Received::Nothing) => Ok(Read::Nothing),
            Ok(Received::End) => Ok(Read::End),
            Err(_) => Err(Closed),
        }
    }

    /// A reader is done with a piece.
    pub fn drop_piece(&mut self, Id(id): Id, piece: Piece<B>) {
        let (len, buffer) = piece.0.into_parts();
        self.0.consumed(id, len, buffer);
    }

    /// Shuts down sending.
    pub fn finish_sending(&mut self, Id(id): Id) -> Result<(), Closed> {
        self.0.finish_sending(id).map_err(|_| Closed)
    }

    /// Drops the connection.
    pub fn hang_up(&mut self, Id(id): Id) {
        self.0.hang_up(id);
    }

    /// Resets the connection.
    pub fn reset(&mut self, Id(id): Id) {
        self.0.reset(id);
    }

    /// The device is gone.
    pub fn end(&mut self) {
        self.0.end();
    }

    /// Connections in the table.
    pub fn connections(&self) -> usize {
        self.0.holdings().len()
    }

    /// Slots that connections hold.
    pub fn held(&self) -> usize {
        self.0.holdings().iter().map(|(held, _)| held).sum()
    }

    /// A broken invariant of the driver, or a violation of the device.
    pub fn broken(&self) -> Option<String> {
        if let Some(violation) = self.0.violation() {
            return Some(format!("the device violated the protocol: {violation}"));
        }
        self.broken_invariant().map(str::to_owned)
    }

    /// An invariant of the driver that does not hold. Nothing that the device does may break one.
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let holdings = self.0.holdings();
        let (granted, total) = self.0.slots().granted();
        let shares: usize = holdings.iter().map(|(_, share)| share).sum();
        if holdings.iter().any(|(held, share)| held > share) {
            return Some("a connection holds more slots than it was granted");
        }
        if shares != granted {
            return Some("the grants do not add up");
        }
        if granted + self.0.slots().reserve() > total.max(1) {
            return Some("the reserve was granted");
        }
        // One packet per connection, and a bounded number of resets to unknown connections.
        if self.0.backlog() > 64 + 2 * holdings.len() + 64 {
            return Some("too many packets are queued");
        }
        None
    }
}
