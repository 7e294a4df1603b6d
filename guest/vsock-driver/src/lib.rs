//! A userspace virtio-vsock driver for the guest.
//!
//! The kernel's driver posts receive buffers of one page, so each packet carries less than 4 KiB
//! whatever the host does. This one owns the device: the host writes into slots of a
//! megabyte in hugepages, and a reader gets these bytes where they arrived, as a [`Chunk`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! let config = vsock_driver::Config::default();
//! let endpoint = vsock_driver::Endpoint::start(vsock_driver::pci::bind(&config)?, config)?;
//! let stream = endpoint.connect(1024, Duration::from_secs(10))?;
//! stream.write_all(b"hello")?;
//! while let Some(chunk) = stream.recv(Some(Duration::from_secs(60)))? {
//!     println!("{} bytes", chunk.len());
//! }
//! # Ok(()) }
//! ```
//!
//! # Layers
//!
//! | module | knows |
//! |---|---|
//! | `packet`, `credit`, `slots`, `inbox` | bytes of a header; counters of one direction; who may hold slots; received bytes |
//! | `connection`, `table` | what the two sides of one connection have said; which connections there are |
//! | `mux` | all connections: packets in, packets out |
//! | `arena`, `hal`, `rings` | memory for the device; virtqueues whose buffers change hands |
//! | `shared`, `watchdog`, `worker` | lock and waiting; whether the device is alive; interrupts |
//! | `stream`, [`pci`] | what the application holds; the device as the kernel shows it |
//!
//! Up to `mux` everything is memory and arithmetic: no clock, no thread, no device.
//!
//! # Flow control
//!
//! vsock's own credit is the only flow control (virtio 1.2, 5.10.6.3). A connection is granted some
//! of the receive slots, and announces their size as its buffer; `slots` says why that alone is not
//! enough and what is done about it. A reader that sleeps stops its own connection and no other.
//!
//! # Trust
//!
//! The host owns the machine, so the driver does not defend its memory against it. But nothing that
//! the host writes makes it panic, wait without bound, or remember without bound.

#[expect(unsafe_code, reason = "it maps memory and gives out parts of it")]
mod arena;
mod connection;
mod counters;
mod credit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[expect(
    unsafe_code,
    reason = "virtio-drivers' trait for memory is unsafe to implement"
)]
mod hal;
mod inbox;
mod mux;
mod packet;
#[expect(unsafe_code, reason = "it maps the registers of the device")]
pub mod pci;
#[expect(unsafe_code, reason = "virtio-drivers' queues are unsafe to use")]
mod rings;
mod shared;
mod slots;
mod start;
mod stream;
mod table;
mod watchdog;
mod worker;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use virtio_drivers::transport::Transport;

pub use crate::arena::Arena;
pub use crate::counters::Counters;
pub use crate::stream::{Chunk, Listener, SendBuffer, Stream};
pub use crate::worker::Interrupts;

use crate::shared::{Shared, deadline};

/// How an endpoint is to be.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of a slot, a power of two of at least 4 KiB. Smaller if memory is short.
    pub slot_size: usize,
    /// Slots to receive into, at most 64.
    pub slots: usize,
    /// Bytes of a buffer to send from, a power of two of at least 4 KiB. A slot's, if that is smaller.
    pub send_buffer_size: usize,
    /// Buffers to send from, at most 32.
    pub send_buffers: usize,
    /// Slots that one connection may have filled and not read. It gets fewer when there are many
    /// connections.
    pub window: usize,
    /// Connections at a time, those that nobody has accepted yet included.
    pub max_connections: usize,
    /// How long the device may do nothing with a packet before it is given up.
    pub device_timeout: Duration,
}

impl Default for Config {
    /// The usual sizes: they fill twelve hugepages.
    ///
    /// A received packet costs an interrupt and two changes of thread, so slots are large. Who sends
    /// writes a buffer before the host can read it, so these are small and many: the two overlap.
    fn default() -> Self {
        Self {
            slot_size: 1024 * 1024,
            slots: 20,
            send_buffer_size: 128 * 1024,
            send_buffers: 28,
            window: 3,
            max_connections: 256,
            device_timeout: Duration::from_secs(30),
        }
    }
}

/// A device that nobody drives yet, and memory for it.
#[derive(Debug)]
pub struct Parts<T, I> {
    /// How to talk to the device.
    pub transport: T,
    /// How it interrupts.
    pub interrupts: I,
    /// Memory that it can reach. It is used up by one start.
    pub arena: Arc<Arena>,
}

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("a vsock endpoint cannot have {0}")]
    Config(&'static str),
    /// The arena has no room for the smallest slots.
    #[error("the arena is too small for a vsock endpoint")]
    TooSmall,
    /// The device cannot be set up.
    #[error("cannot set up the vsock device: {0}")]
    Device(virtio_drivers::Error),
    /// The kernel has no more of something.
    #[error("cannot start the thread of the vsock endpoint")]
    Thread(#[source] io::Error),
}

/// One device at work.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    cid: u64,
    worker: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Takes over a device.
    ///
    /// # Errors
    /// If the configuration makes no sense, memory is too short, or the device cannot be set up.
    pub fn start<T, I>(parts: Parts<T, I>, config: Config) -> Result<Self, StartError>
    where
        T: Transport + Send + 'static,
        I: Interrupts,
    {
        let (shared, cid, worker) = start::start(parts, config)?;
        Ok(Self {
            shared,
            cid,
            worker: Some(worker),
        })
    }

    /// The context id of this guest.
    #[must_use]
    pub fn cid(&self) -> u64 {
        self.cid
    }

    /// Connects to `port` of the host.
    ///
    /// # Errors
    /// If the host refuses or has not answered in time, there are too many connections, or the
    /// device is gone.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<Stream> {
        let deadline = deadline(Some(timeout));
        let mut state = self.shared.lock();
        let id = state.mux.connect(port).map_err(shared::error)?;
        let id = id.ok_or_else(|| io::Error::other("too many vsock connections"))?;
        let line = state.open_line(id);
        self.shared.settle(&mut state);
        // From here on, an early return hangs up.
        drop(state);
        let stream = Stream::new(&self.shared, id, Arc::clone(&line));
        let mut state = self.shared.lock();
        while state.mux.is_requesting(id).map_err(shared::error)? {
            state = shared::wait(&line.readable, state, deadline)?;
        }
        drop(state);
        Ok(stream)
    }

    /// Accepts the connections that the host makes to `port`. At most 128 wait to be accepted; the
    /// host is refused more, and every connection to a port where nobody listens.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody listens there, or if the device is gone.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let is_new = self.shared.lock().mux.listen(port).map_err(shared::error)?;
        if is_new {
            Ok(Listener::new(&self.shared, port))
        } else {
            Err(io::ErrorKind::AddrInUse.into())
        }
    }

    /// What the endpoint has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.lock().mux.counters
    }
}

impl Drop for Endpoint {
    /// Resets the device. Streams fail from now on; chunks stay readable.
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.ring();
        let worker = self.worker.take();
        if worker.is_some_and(|worker| worker.join().is_err()) {
            log::error!("the thread of a vsock endpoint panicked");
        }
        self.shared.end(&mut self.shared.lock(), None);
    }
}
