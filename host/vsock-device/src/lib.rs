//! The virtio-vsock device, served over vhost-user from inside this process.
//!
//! A [`Device`] is a Unix socket to which a monitor (QEMU with `vhost-user-vsock-pci`) connects.
//! The monitor hands over the guest's memory and the rings; from then on bytes go between
//! application and guest without the monitor, and without a copy in between on the way to the
//! guest.
//!
//! # Who is trusted
//!
//! The guest is hostile: every byte in its memory, every index, address, length and port. What it
//! can do is break its own connections, and in the end its own device: [`Device::failure`] then
//! says why. It cannot make this process panic, wait, or remember without bound; per connection
//! it gets [`Config::buf_alloc`] bytes of memory. The monitor is trusted not to truncate the
//! memory that it shares, since nobody can survive that.
//!
//! # Layers
//!
//! | module | knows |
//! |---|---|
//! | `packet`, `credit`, `buffer` | bytes of a header; counters of one direction; queues of bytes |
//! | `connection` | what the two sides of one connection have said |
//! | `bell`, `channel`, `table`, `schedule` | how the worker is woken; who waits for a connection; which there are; whose turn it is |
//! | `mux` | all connections: packets in, packets out |
//! | `chain`, `worker` | descriptors and rings |
//! | `backend`, `monitor` | vhost-user, threads, the socket |
//!
//! Up to `mux` nothing knows guest memory, and up to `connection` nothing knows threads.
//!
//! # Flow control
//!
//! vsock's own credit is the only flow control (virtio 1.2, 5.10.6.3). Towards the guest, at most
//! [`Config::send_window`] bytes of a connection wait here; towards the application, at most
//! [`Config::buf_alloc`]. Who is slow makes the other wait, and nothing else.
#![forbid(unsafe_code)]

mod backend;
mod bell;
mod buffer;
mod chain;
mod channel;
mod connection;
mod counters;
mod credit;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod model;
mod monitor;
mod mux;
mod packet;
mod schedule;
mod stream;
mod table;
mod worker;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

pub use bytes::Bytes;
pub use counters::{Counters, Violation};
pub use stream::{Listener, Stream};

use crate::connection::Cause;
use crate::monitor::Link;
use crate::mux::Mux;

/// The context id of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestCid(u32);

/// A context id that no guest may have (virtio 1.2, 5.10.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} is a reserved vsock context id")]
pub struct ReservedCid(pub u32);

impl GuestCid {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for GuestCid {
    type Error = ReservedCid;

    fn try_from(cid: u32) -> Result<Self, ReservedCid> {
        match cid {
            0..=2 | u32::MAX => Err(ReservedCid(cid)),
            cid => Ok(Self(cid)),
        }
    }
}

/// How a device is to be.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Who the guest is.
    pub guest_cid: GuestCid,
    /// Bytes of the guest that wait for the application, per connection.
    pub buf_alloc: u32,
    /// Bytes of the application that wait for the guest, per connection. A single larger buffer is
    /// taken too, when nothing else waits.
    pub send_window: usize,
    /// Connections at a time, those that nobody has accepted yet included.
    pub max_connections: usize,
}

impl Config {
    /// The usual sizes.
    #[must_use]
    pub fn new(guest_cid: GuestCid) -> Self {
        Self {
            guest_cid,
            buf_alloc: 1024 * 1024,
            send_window: 4 * 1024 * 1024,
            max_connections: 1024,
        }
    }
}

/// Why there is no device, or not the wanted part of it.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The socket cannot be made; it may exist already.
    #[error("cannot make the vhost-user socket")]
    Socket(#[source] io::Error),
    /// The host has no more of something.
    #[error("cannot start the threads of the vsock device")]
    Threads(#[source] io::Error),
    /// The vhost-user library cannot start.
    #[error("cannot set up the vhost-user backend: {0}")]
    Backend(String),
    /// Somebody listens on this port.
    #[error("vsock port {0} is in use")]
    PortInUse(u32),
    /// The guest is gone, or the device was shut down.
    #[error("the vsock device has ended")]
    Ended,
}

/// One virtio-vsock device, for one guest.
#[derive(Debug)]
pub struct Device {
    mux: Arc<Mux>,
    link: Arc<Link>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Device {
    /// Binds `socket`, which must not exist and which only this user can open, and serves the one
    /// monitor that connects to it. The name disappears when it has.
    ///
    /// # Errors
    /// If the socket or the threads cannot be made.
    pub fn start(socket: &Path, config: Config) -> Result<Self, DeviceError> {
        let mux = Arc::new(Mux::new(config).map_err(DeviceError::Threads)?);
        let link = Arc::new(Link::new().map_err(DeviceError::Threads)?);
        let thread = monitor::start(socket, &mux, &link)?;
        Ok(Self {
            mux,
            link,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Accepts the connections that the guest makes to `port`. At most 128 wait to be accepted;
    /// the guest is refused more, and every connection to a port where nobody listens.
    ///
    /// # Errors
    /// If somebody listens there, or the device has ended.
    pub fn listen(&self, port: u32) -> Result<Listener, DeviceError> {
        let backlog = self.mux.listen(port)?;
        Ok(Listener::new(Arc::clone(&self.mux), port, backlog))
    }

    /// Connects to `port` of the guest.
    ///
    /// # Errors
    /// If the guest refuses, has not answered in time, or has ended.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<Stream> {
        let channel = self.mux.connect(port, timeout)?;
        Ok(Stream::new(Arc::clone(&self.mux), channel))
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.mux.counters()
    }

    /// Why the device gave up on this guest or its monitor, if it did. That the monitor ended is
    /// no failure.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.mux.failure()
    }

    /// Ends everything: streams fail at once, listeners report [`io::ErrorKind::NotConnected`],
    /// threads end. Doing it again changes nothing.
    pub fn shutdown(&self) {
        self.mux.end(Cause::DeviceStopped);
        self.link.hang_up();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a vsock device panicked");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shutdown();
    }
}
