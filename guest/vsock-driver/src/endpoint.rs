//! One device at work, as the application sees it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_drivers::transport::Transport;

use crate::config::Config;
use crate::counters::Counters;
use crate::parts::{Interrupts, Parts};
use crate::shared::Shared;
use crate::start::{self, StartError};
use crate::stream::{Listener, Stream};
use crate::waits::{deadline, wait};

/// The vsock device of this guest, driven by this process.
///
/// Dropping it resets the device: streams fail from then on, and received chunks stay readable.
///
/// # Example
///
/// A guest that connects to port 1024 of the host, sends a request and reads the reply:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use vsock_driver::{Config, Endpoint, pci};
///
/// let config = Config::default();
/// let endpoint = Endpoint::start(pci::bind(&config)?, config)?;
/// let stream = endpoint.connect(1024, Duration::from_secs(10))?;
/// stream.write_all(b"hello")?;
/// stream.shutdown_write()?;
/// while let Some(chunk) = stream.recv(Some(Duration::from_secs(60)))? {
///     println!("{} bytes", chunk.len());
/// }
/// # Ok(()) }
/// ```
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
    /// If the configuration is invalid, there is not enough memory, or the device cannot be set up.
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
    /// If the host refuses or does not answer in time, there are too many connections, or the device
    /// is gone.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<Stream> {
        let deadline = deadline(Some(timeout));
        let mut state = self.shared.lock();
        let id = state.mux.connect(port).map_err(io::Error::from)?;
        let id = id.ok_or_else(|| io::Error::other("too many vsock connections"))?;
        let waiters = state.add_waiters(id);
        self.shared.settle(&mut state);
        // From here on, an early return drops the stream, which closes the connection.
        drop(state);
        let stream = Stream::new(&self.shared, id, Arc::clone(&waiters));
        let mut state = self.shared.lock();
        while state.mux.is_requesting(id).map_err(io::Error::from)? {
            state = wait(&waiters.readable, state, deadline)?;
        }
        drop(state);
        Ok(stream)
    }

    /// Accepts the connections that the host makes to `port`. At most 128 wait to be accepted; more
    /// are refused, and so is every connection to a port without a listener.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if the port has a listener, or an error if the device is gone.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let is_new = self
            .shared
            .lock()
            .mux
            .listen(port)
            .map_err(io::Error::from)?;
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
    fn drop(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.wake_worker();
        let worker = self.worker.take();
        if worker.is_some_and(|worker| worker.join().is_err()) {
            log::error!("the thread of a vsock endpoint panicked");
        }
        self.shared.end(&mut self.shared.lock(), None);
    }
}
