//! All connections of a device: packets from the guest in, packets for the guest out.
//!
//! This layer knows neither rings nor guest memory. The worker gives it headers and a reader of their
//! payload, and asks for packets that fit a descriptor. The application's threads use it through
//! streams and listeners.
//!
//! Invariant: whatever a packet says, handling it takes bounded time and memory; and what waits for a
//! guest that accepts nothing is bounded too.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use virtio_vsock::{HOST_CID, Header, Op, TYPE_STREAM};

use crate::buffer::Payload;
use crate::channel::{self, Channel, Core};
use crate::config::Config;
use crate::connection::{Address, Cause, Connection, Fault};
use crate::counters::{Counters, LiveCounters};
use crate::error::DeviceError;
use crate::notifier::Notifier;
use crate::schedule::{Schedule, Turn};
use crate::table::Table;
use crate::violation::Violation;

/// A guest with this many violations is hostile, or its driver is useless. An honest guest with one
/// broken program in it stays below.
const MAX_VIOLATIONS: u64 = 1000;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Mux {
    config: Config,
    table: Mutex<Table>,
    schedule: Schedule,
    pub(crate) notifier: Arc<Notifier>,
    pub(crate) counters: LiveCounters,
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
            notifier: Arc::new(Notifier::new()?),
            counters: LiveCounters::default(),
            failure: OnceLock::new(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    // ---- From the guest ------------------------------------------------------------------------

    /// Handles a packet from the guest.
    pub(crate) fn handle_packet(&self, header: &Header, payload: &mut impl Payload) {
        self.counters.packets_from_guest.add(1);
        if header.src_cid != u64::from(self.config.guest_cid.get()) {
            // A reply would go to the wrong address.
            return self.violation(Violation::WrongSource);
        }
        let op = Op::from_wire(header.op);
        let (Some(op), TYPE_STREAM) = (op, header.kind) else {
            self.violation(Violation::UnknownPacket);
            return self.refuse(header);
        };
        if header.dst_cid != HOST_CID {
            // Any program in the guest may try to connect to any context id.
            return self.refuse(header);
        }
        let address = Address {
            guest_cid: self.config.guest_cid.get(),
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        let found = self.lock().find(&address);
        match found {
            // The guest has already dropped the connection that this side is closing.
            Some(channel) if op == Op::Request && channel.lock().connection.is_closing() => {
                self.lock().remove(&address, &channel);
                self.detach(&channel);
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
                self.counters.bytes_from_guest.add(header.len.into());
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
        let admitted = if self.ensure_capacity(&mut table) {
            table.admit(address, make)
        } else {
            None
        };
        drop(table);
        match admitted {
            Some(channel) => {
                self.counters.connections.add(1);
                self.schedule.offer(&channel, &mut channel.lock());
            }
            None => self.refuse(request),
        }
    }

    fn refuse(&self, header: &Header) {
        let Some(refusal) = header.reset_reply() else {
            return;
        };
        self.counters.refused.add(1);
        if !self.schedule.refuse(refusal) {
            self.counters.refusals_dropped.add(1);
        }
    }

    /// Counts a violation, and gives up on a guest with too many.
    pub(crate) fn violation(&self, violation: Violation) {
        if self.counters.violation(violation) == MAX_VIOLATIONS {
            self.give_up(format!(
                "the guest violated the vsock protocol {MAX_VIOLATIONS} times; the last time: {violation}"
            ));
        }
    }

    // ---- To the guest --------------------------------------------------------------------------

    /// Whether there may be a packet to send.
    pub(crate) fn has_packets(&self) -> bool {
        !self.schedule.is_empty()
    }

    /// The next packet for a descriptor with space for `capacity` bytes after the header. Its payload
    /// is appended to `payload`. [`Self::delivered`] has to follow.
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
    pub(crate) fn delivered(&self, packet: &Outgoing) {
        self.counters.packets_to_guest.add(1);
        let Some(channel) = &packet.channel else {
            return;
        };
        self.counters.bytes_to_guest.add(packet.header.len.into());
        let mut core = channel.lock();
        core.in_copy = 0;
        let unsent = core.connection.unsent().unwrap_or(0);
        drop(core);
        // Not for every packet: waking a writer costs more than that.
        if unsent <= self.config.send_window / 2 {
            channel.writable.notify_all();
        }
    }

    // ---- For the application -------------------------------------------------------------------

    /// To be called after every change to a connection by the application.
    pub(crate) fn changed(&self, channel: &Arc<Channel>, mut core: MutexGuard<'_, Core>) {
        let is_queued = self.schedule.offer(channel, &mut core);
        self.forget_if_over(channel, core);
        if is_queued {
            self.notifier.notify();
        }
    }

    /// Opens a connection to the guest's `guest_port`, and waits until the guest has answered.
    pub(crate) fn connect(&self, guest_port: u32, timeout: Duration) -> io::Result<Arc<Channel>> {
        let deadline = channel::deadline(Some(timeout));
        let channel = self.request(guest_port)?;
        let mut core = channel.lock();
        self.schedule.offer(&channel, &mut core);
        self.notifier.notify();
        loop {
            match core.connection.is_requesting() {
                Ok(true) => {}
                Ok(false) => break,
                Err(cause) => return Err(cause.into()),
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
            return Err(cause.into());
        }
        if !self.ensure_capacity(&mut table) {
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
        self.counters.connections.add(1);
        Ok(channel)
    }

    /// Adds a listener on `port`.
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

    /// Removes the listener on `port`.
    pub(crate) fn unlisten(&self, port: u32) {
        self.lock().unlisten(port);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters.snapshot()
    }

    // ---- The end -------------------------------------------------------------------------------

    /// Whether the device has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended().is_some()
    }

    /// The guest has stopped: its connections end, but it may come back.
    pub(crate) fn guest_stopped(&self) {
        let channels = self.lock().take_all();
        self.terminate_all(&channels, Cause::GuestStopped);
    }

    /// Ends the device.
    pub(crate) fn end(&self, cause: Cause) {
        let mut table = self.lock();
        table.end(cause);
        let channels = table.take_all();
        drop(table);
        self.terminate_all(&channels, cause);
        self.notifier.notify();
    }

    /// Ends the device because of the guest or the monitor, and records why.
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

    /// Why the device gave up.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    fn terminate_all(&self, channels: &[Arc<Channel>], cause: Cause) {
        for channel in channels {
            channel.lock().connection.terminate(cause);
            channel.wake_all();
        }
        self.schedule.remove(channels);
        self.schedule.forget_refusals();
    }

    /// Whether there may be one more connection. If not, evicts one that is closing.
    fn ensure_capacity(&self, table: &mut Table) -> bool {
        if !table.is_full() {
            return true;
        }
        let closing = table.take_closing();
        closing.inspect(|channel| self.detach(channel)).is_some()
    }

    /// A connection that has left the table sends nothing more, whatever its application does: another
    /// one may use its address.
    fn detach(&self, channel: &Arc<Channel>) {
        channel.lock().connection.terminate(Cause::Finished);
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
