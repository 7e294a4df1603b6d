//! One device, as the application sees it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::Config;
use crate::connection::Cause;
use crate::counters::Counters;
use crate::error::DeviceError;
use crate::monitor;
use crate::monitor_connection::MonitorConnection;
use crate::mux::Mux;
use crate::stream::{Listener, Stream};

/// One virtio-vsock device, for one guest.
///
/// Dropping it is [`Self::shutdown`].
///
/// # Example
///
/// A host that answers one connection of its guest:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
/// use std::time::Duration;
/// use vsock_device::{Config, Device, GuestCid};
///
/// let config = Config::new(GuestCid::try_from(3)?);
/// let device = Device::start(Path::new("/run/user/1000/vsock"), config)?;
/// let listener = device.listen(1024)?;
/// // Start QEMU now, with `-chardev socket,id=vsock,path=/run/user/1000/vsock`,
/// // `-device vhost-user-vsock-pci,chardev=vsock`, and shared memory.
/// let stream = listener.accept(Some(Duration::from_secs(60)))?;
/// let mut request = [0; 4096];
/// let n = stream.read(&mut request)?;
/// stream.write_all(&request[..n])?;
/// stream.shutdown_write()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Device {
    mux: Arc<Mux>,
    monitor: Arc<MonitorConnection>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Device {
    /// Binds `socket`, which must not exist and which only this user can open, and serves the one
    /// monitor that connects to it. The name is removed when the monitor has connected.
    ///
    /// # Errors
    /// If the socket or the threads cannot be made.
    pub fn start(socket: &Path, config: Config) -> Result<Self, DeviceError> {
        let mux = Arc::new(Mux::new(config).map_err(DeviceError::Threads)?);
        let monitor = Arc::new(MonitorConnection::new().map_err(DeviceError::Threads)?);
        let thread = monitor::start(socket, &mux, &monitor)?;
        Ok(Self {
            mux,
            monitor,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Accepts the connections that the guest makes to `port`. At most 128 wait to be accepted; more
    /// are refused, and so is every connection to a port without a listener.
    ///
    /// # Errors
    /// If the port has a listener already, or the device has ended.
    pub fn listen(&self, port: u32) -> Result<Listener, DeviceError> {
        let backlog = self.mux.listen(port)?;
        Ok(Listener::new(Arc::clone(&self.mux), port, backlog))
    }

    /// Connects to `port` of the guest.
    ///
    /// # Errors
    /// If the guest refuses, does not answer in time, or has ended.
    pub fn connect(&self, port: u32, timeout: Duration) -> io::Result<Stream> {
        let channel = self.mux.connect(port, timeout)?;
        Ok(Stream::new(Arc::clone(&self.mux), channel))
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.mux.counters()
    }

    /// Why the device gave up on this guest or its monitor, if it did. The end of the monitor is not a
    /// failure.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.mux.failure()
    }

    /// Ends everything: streams fail at once, listeners report [`io::ErrorKind::NotConnected`],
    /// threads end. A second call does nothing.
    pub fn shutdown(&self) {
        self.mux.end(Cause::DeviceStopped);
        self.monitor.close();
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
