//! All connections of a device: packets of the guest in, packets for the guest out.
//!
//! This layer knows neither rings nor guest memory. The worker gives it headers with a way to read
//! their payload, and asks for packets that fit a descriptor; the application's threads reach it
//! through [`crate::Stream`] and [`crate::Listener`].
//!
//! Law: whatever a packet says, handling it takes bounded time and memory; and everything that the
//! guest may keep us from sending is bounded too.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::bell::Bell;
use crate::buffer::Payload;
use crate::channel::{self, Channel, Core};
use crate::connection::{Address, Cause, Connection, Fault};
use crate::counters::{Counters, Tallies, Violation};
use crate::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::schedule::{Schedule, Turn};
use crate::table::Table;
use crate::{Config, DeviceError};

/// A guest that breaks the rules this often is not confused but hostile, or its driver is of no
/// use. The number leaves room for an honest guest with one broken program in it.
const MAX_VIOLATIONS: u64 = 1000;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Mux {
    config: Config,
    table: Mutex<Table>,
    schedule: Schedule,
    pub(crate) bell: Arc<Bell>,
    pub(crate) tallies: Tallies,
    failure: OnceLock<String>,
}

/// A packet on its way into guest memory.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) header: Header,
    channel: Option<Arc<Channel>>,
}

impl Mux {
    pub(crate) fn new(config: Config) -> io::Result<Self> {
        Ok(Self {
            table: Mutex::new(Table::new(config.max_connections)),
            config,
            schedule: Schedule::default(),
            bell: Arc::new(Bell::new()?),
            tallies: Tallies::default(),
            failure: OnceLock::new(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    // ---- From the guest ------------------------------------------------------------------------

    /// Handles a packet of the guest.
    pub(crate) fn handle_packet(&self, header: &Header, payload: &mut impl Payload) {
        self.tallies.packets_from_guest.add(1);
        if header.src_cid != u64::from(self.config.guest_cid.get()) {
            // An answer would go to whom it names.
            return self.violation(Violation::WrongSource);
        }
        let op = Op::from_wire(header.op);
        let (Some(op), TYPE_STREAM) = (op, header.kind) else {
            self.violation(Violation::UnknownPacket);
            return self.refuse(header);
        };
        if header.dst_cid != HOST_CID {
            // Any program in the guest may try to connect to anybody.
            return self.refuse(header);
        }
        let address = Address {
            guest_cid: self.config.guest_cid.get(),
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        let found = self.lock().find(&address);
        match found {
            // The guest has forgotten the connection to which we said goodbye.
            Some(channel) if op == Op::Request && channel.lock().connection.is_leaving() => {
                self.lock().remove(&address, &channel);
                self.silence(&channel);
                self.admit(address, header);
            }
            Some(channel) => self.deliver(&channel, op, header, payload),
            None if op == Op::Request => self.admit(address, header),
            None => self.refuse(header),
        }
    }

    fn deliver(&self, channel: &Arc<Channel>, op: Op, header: &Header, payload: &mut impl Payload) {
        let mut core = channel.lock();
        let heard = core.connection.handle_packet(op, header, payload);
        self.schedule.offer(channel, &mut core);
        self.forget_if_over(channel, core);
        match (heard, op) {
            (Ok(()), Op::Data) => {
                self.tallies.bytes_from_guest.add(header.len.into());
                channel.readable.notify_one();
            }
            (Ok(()), Op::CreditUpdate | Op::CreditRequest) => {}
            (Ok(()), Op::Request | Op::Response | Op::Reset | Op::Shutdown) => channel.wake_all(),
            (Err(fault), _) => {
                channel.wake_all();
                self.violation(match fault {
                    Fault::Violation(violation) => violation,
                    Fault::Unreadable => Violation::MalformedChain,
                });
            }
        }
    }

    fn admit(&self, address: Address, request: &Header) {
        let make = || {
            Channel::new(Connection::from_guest(
                address,
                self.config.buf_alloc,
                request,
            ))
        };
        let mut table = self.lock();
        let admitted = if self.has_room(&mut table) {
            table.admit(address, make)
        } else {
            None
        };
        drop(table);
        match admitted {
            Some(channel) => {
                self.tallies.connections.add(1);
                self.schedule.offer(&channel, &mut channel.lock());
            }
            None => self.refuse(request),
        }
    }

    fn refuse(&self, header: &Header) {
        let Some(refusal) = header.refusal() else {
            return;
        };
        self.tallies.refused.add(1);
        if !self.schedule.refuse(refusal) {
            self.tallies.refusals_dropped.add(1);
        }
    }

    /// Counts a violation, and gives up on a guest that has too many.
    pub(crate) fn violation(&self, violation: Violation) {
        if self.tallies.violation(violation) == MAX_VIOLATIONS {
            self.give_up(format!(
                "the guest broke the rules of vsock {MAX_VIOLATIONS} times, the last time by: {violation}"
            ));
        }
    }

    // ---- To the guest --------------------------------------------------------------------------

    /// Whether somebody might have a packet.
    pub(crate) fn has_packets(&self) -> bool {
        !self.schedule.is_empty()
    }

    /// The next packet for a descriptor with room for `capacity` bytes behind the header. Its
    /// payload is appended to `payload`. It has to be given back to [`Self::handed_over`].
    pub(crate) fn next_packet(&self, capacity: u32, payload: &mut Vec<Bytes>) -> Option<Outgoing> {
        // Each round takes something out of the schedule, and only a packet puts it back.
        loop {
            let channel = match self.schedule.next()? {
                Turn::Refusal(header) => {
                    return Some(Outgoing {
                        header,
                        channel: None,
                    });
                }
                Turn::Channel(channel) => channel,
            };
            let mut core = channel.lock();
            let Some(header) = core.connection.poll_packet(capacity, payload) else {
                continue;
            };
            core.in_copy = header.len as usize;
            let sent = core.in_copy;
            self.schedule.offer_again(&channel, &mut core, sent);
            self.forget_if_over(&channel, core);
            return Some(Outgoing {
                header,
                channel: Some(channel),
            });
        }
    }

    /// A packet is in guest memory.
    pub(crate) fn handed_over(&self, packet: &Outgoing) {
        self.tallies.packets_to_guest.add(1);
        let Some(channel) = &packet.channel else {
            return;
        };
        self.tallies.bytes_to_guest.add(packet.header.len.into());
        let mut core = channel.lock();
        core.in_copy = 0;
        let unsent = core.connection.unsent().unwrap_or(0);
        drop(core);
        // A writer is not worth waking for every packet.
        if unsent <= self.config.send_window / 2 {
            channel.writable.notify_all();
        }
    }

    // ---- For the application -------------------------------------------------------------------

    /// To be called after every change to a connection by the application.
    pub(crate) fn changed(&self, channel: &Arc<Channel>, mut core: MutexGuard<'_, Core>) {
        let lined_up = self.schedule.offer(channel, &mut core);
        self.forget_if_over(channel, core);
        if lined_up {
            self.bell.ring();
        }
    }

    /// Opens a connection to the guest's `guest_port`, and waits until the guest has answered.
    pub(crate) fn connect(&self, guest_port: u32, timeout: Duration) -> io::Result<Arc<Channel>> {
        let deadline = channel::deadline(Some(timeout));
        let channel = self.request(guest_port)?;
        let mut core = channel.lock();
        self.schedule.offer(&channel, &mut core);
        self.bell.ring();
        loop {
            match core.connection.is_requesting() {
                Ok(true) => {}
                Ok(false) => break,
                Err(cause) => return Err(channel::error(cause)),
            }
            core = match channel::wait(&channel.readable, core, deadline) {
                Ok(core) => core,
                Err(timed_out) => {
                    let mut core = channel.lock();
                    core.connection.reset();
                    self.changed(&channel, core);
                    return Err(timed_out);
                }
            };
        }
        drop(core);
        Ok(channel)
    }

    pub(crate) fn request(&self, guest_port: u32) -> io::Result<Arc<Channel>> {
        let guest_cid = self.config.guest_cid.get();
        let mut table = self.lock();
        if let Some(cause) = table.ended() {
            return Err(channel::error(cause));
        }
        if !self.has_room(&mut table) {
            return Err(io::Error::other("too many connections on the vsock device"));
        }
        let host_port = table.free_port(guest_cid, guest_port);
        let address = Address {
            guest_cid,
            guest_port,
            host_port,
        };
        let channel = Arc::new(Channel::new(Connection::to_guest(
            address,
            self.config.buf_alloc,
        )));
        table.insert(address, Arc::clone(&channel));
        self.tallies.connections.add(1);
        Ok(channel)
    }

    /// Begins to listen on `port`.
    pub(crate) fn listen(
        &self,
        port: u32,
    ) -> Result<crossbeam_channel::Receiver<Arc<Channel>>, DeviceError> {
        let mut table = self.lock();
        if table.ended().is_some() {
            return Err(DeviceError::Ended);
        }
        table.listen(port).ok_or(DeviceError::PortInUse(port))
    }

    /// Ends listening on `port`.
    pub(crate) fn unlisten(&self, port: u32) {
        self.lock().unlisten(port);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.tallies.snapshot()
    }

    // ---- The end -------------------------------------------------------------------------------

    /// Whether nothing is to be done any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended().is_some()
    }

    /// The guest has stopped: its connections end, but it may come back.
    pub(crate) fn guest_stopped(&self) {
        let channels = self.lock().take_all();
        self.cut(&channels, Cause::GuestStopped);
    }

    /// Ends everything for good.
    pub(crate) fn end(&self, cause: Cause) {
        let mut table = self.lock();
        table.end(cause);
        let channels = table.take_all();
        drop(table);
        self.cut(&channels, cause);
        self.bell.ring();
    }

    /// Ends everything because of the guest, and remembers why.
    pub(crate) fn give_up(&self, reason: String) {
        let mut table = self.lock();
        let first = table.ended().is_none();
        table.end(Cause::DeviceFailed);
        drop(table);
        if first {
            log::warn!(
                "vsock device of guest {}: {reason}",
                self.config.guest_cid.get()
            );
            self.failure.get_or_init(|| reason);
        }
        self.end(Cause::DeviceFailed);
    }

    /// Why the device gave up on the guest.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    fn cut(&self, channels: &[Arc<Channel>], cause: Cause) {
        for channel in channels {
            channel.lock().connection.cut(cause);
            channel.wake_all();
        }
        self.schedule.remove(channels);
        self.schedule.forget_refusals();
    }

    /// Whether there is a place for one more connection. Who is leaving has to make room.
    fn has_room(&self, table: &mut Table) -> bool {
        if !table.is_full() {
            return true;
        }
        let leaving = table.take_leaving();
        leaving.inspect(|channel| self.silence(channel)).is_some()
    }

    /// A connection that is not in the table any more has nothing more to say, whatever its
    /// application does to it: its address may be another one's.
    fn silence(&self, channel: &Arc<Channel>) {
        channel.lock().connection.cut(Cause::Finished);
        channel.wake_all();
        self.schedule.remove(std::slice::from_ref(channel));
    }

    fn forget_if_over(&self, channel: &Arc<Channel>, core: MutexGuard<'_, Core>) {
        if !core.connection.is_over() {
            return;
        }
        let address = core.connection.address();
        drop(core);
        self.forget(&address, channel);
    }

    fn forget(&self, address: &Address, channel: &Arc<Channel>) {
        self.lock().remove(address, channel);
        self.schedule.remove(std::slice::from_ref(channel));
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod inspect;
#[cfg(test)]
mod tests;
