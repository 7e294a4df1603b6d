//! The multiplexer as a value.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use virtio_vsock::{HEADER_LEN, Header};

use crate::buffer::{Payload, Unreadable};
use crate::channel::Channel;
use crate::config::Config;
use crate::connection::Connection;
use crate::mux::Mux;
use crate::mux::inspect::Backlogs;

/// The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// The multiplexer as a value. Incoming connections are accepted at once; connections of both origins
/// are numbered in the order in which they were made.
#[derive(Debug)]
pub struct Device {
    mux: Arc<Mux>,
    backlogs: Backlogs,
    channels: Vec<Arc<Channel>>,
}

impl Clone for Device {
    fn clone(&self) -> Self {
        let mut channels = self.channels.clone();
        let (mux, backlogs) = self.mux.copy(&mut channels);
        Self {
            mux: Arc::new(mux),
            backlogs,
            channels,
        }
    }
}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.mux.hash(state);
        for channel in &self.channels {
            channel.lock().hash(state);
        }
    }
}

/// Payload in a slice.
struct Slice<'a>(&'a [u8]);

impl Payload for Slice<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<(), Unreadable> {
        let (now, later) = self.0.split_at_checked(to.len()).ok_or(Unreadable)?;
        to.copy_from_slice(now);
        self.0 = later;
        Ok(())
    }
}

impl Device {
    /// A device that listens on `ports`.
    ///
    /// # Panics
    /// If the system has no file descriptors left.
    pub fn new(config: Config, ports: &[u32]) -> Self {
        Self::around(Arc::new(Mux::new(config).expect("an eventfd")), ports)
    }

    /// The same for a shared multiplexer.
    pub(super) fn around(mux: Arc<Mux>, ports: &[u32]) -> Self {
        let listen = |&port| Some((port, mux.listen(port).ok()?));
        let backlogs = ports.iter().filter_map(listen).collect();
        Self {
            mux,
            backlogs,
            channels: Vec::new(),
        }
    }

    /// Handles a packet from the guest, as the worker does. `false` if it is invalid.
    pub fn receive(&mut self, header: &[u8; HEADER_LEN], payload: &[u8]) -> bool {
        let header = Header::decode(header);
        if header.len as usize > payload.len() {
            return false;
        }
        self.mux.handle_packet(&header, &mut Slice(payload));
        self.accept();
        true
    }

    /// Accepts all waiting connections.
    pub fn accept(&mut self) {
        for backlog in self.backlogs.values() {
            self.channels.extend(backlog.try_iter());
        }
    }

    /// The next packet for a descriptor with space for `capacity` bytes after the header.
    pub fn poll_packet(&mut self, capacity: u32) -> Option<([u8; HEADER_LEN], Vec<Bytes>)> {
        let mut payload = Vec::new();
        let packet = self.mux.next_packet(capacity, &mut payload)?;
        self.mux.delivered(&packet);
        Some((packet.header.encode(), payload))
    }

    /// Whether there may be a packet to send.
    pub fn has_packets(&self) -> bool {
        self.mux.has_packets()
    }

    /// Opens a connection to the guest's `port`. Returns its number.
    pub fn connect(&mut self, port: u32) -> Option<usize> {
        let channel = self.mux.request(port).ok()?;
        self.mux.changed(&channel, channel.lock());
        self.channels.push(channel);
        Some(self.channels.len() - 1)
    }

    /// How many connections there were.
    pub fn accepted(&self) -> usize {
        self.channels.len()
    }

    /// The host's port of a connection.
    pub fn host_port(&self, n: usize) -> Option<u32> {
        let channel = self.channels.get(n)?;
        Some(channel.lock().connection.address().host_port)
    }

    /// Whether the guest has accepted the connection.
    pub fn is_open(&self, n: usize) -> Result<bool, Closed> {
        let channel = self.channels.get(n).ok_or(Closed)?;
        let is_requesting = channel.lock().connection.is_requesting();
        is_requesting.map(|it| !it).map_err(|_| Closed)
    }

    /// Queues bytes.
    pub fn send(&mut self, n: usize, data: Bytes) -> Result<(), Closed> {
        self.change(n, |connection| {
            connection.may_send().map_err(|_| Closed)?;
            connection.send(data);
            Ok(())
        })
    }

    /// Reads at most `to.len()` bytes. `None` means that there is nothing yet.
    pub fn read(&mut self, n: usize, to: &mut [u8]) -> Result<Option<usize>, Closed> {
        self.change(n, |connection| connection.receive(to).map_err(|_| Closed))
    }

    /// Whether a read would find something, or fail.
    pub fn is_readable(&self, n: usize) -> bool {
        let Some(channel) = self.channels.get(n) else {
            return false;
        };
        let mut connection = channel.lock().connection.clone();
        !matches!(connection.receive(&mut [0]), Ok(None))
    }

    /// Shuts down sending.
    pub fn finish_sending(&mut self, n: usize) {
        self.change(n, |connection| {
            connection.finish_sending();
            Ok(())
        })
        .ok();
    }

    /// Drops the connection.
    pub fn hang_up(&mut self, n: usize) {
        self.change(n, |connection| {
            connection.hang_up();
            Ok(())
        })
        .ok();
    }

    /// Resets the connection.
    pub fn reset(&mut self, n: usize) {
        self.change(n, |connection| {
            connection.reset();
            Ok(())
        })
        .ok();
    }

    /// The guest has stopped its driver.
    pub fn guest_stopped(&mut self) {
        self.mux.guest_stopped();
    }

    /// Connections in the table.
    pub fn connections(&self) -> usize {
        self.mux.connections()
    }

    /// Why the device gave up.
    pub fn failure(&self) -> Option<String> {
        self.mux.failure()
    }

    /// A broken invariant of the device, or a violation of the guest.
    pub fn broken(&self) -> Option<String> {
        match self.mux.first_violation() {
            Some(violation) => Some(format!("the guest violated the protocol: {violation}")),
            None => self.broken_invariant(),
        }
    }

    /// An invariant of the device that does not hold. Nothing that the guest does may break one.
    pub fn broken_invariant(&self) -> Option<String> {
        self.mux.broken_invariant()
    }

    fn change<T>(
        &mut self,
        n: usize,
        change: impl FnOnce(&mut Connection) -> Result<T, Closed>,
    ) -> Result<T, Closed> {
        let channel = self.channels.get(n).ok_or(Closed)?;
        let mut core = channel.lock();
        let done = change(&mut core.connection);
        self.mux.changed(channel, core);
        done
    }
}
