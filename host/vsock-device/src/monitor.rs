//! The monitor's end of the device: the socket, and the thread that serves it.
//!
//! Invariant: everything here that waits can be woken by [`MonitorConnection::close`], whether a
//! monitor never connected, hangs, or has ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::backend::{Backend, NOTIFIER};
use crate::connection::Cause;
use crate::error::DeviceError;
use crate::monitor_connection::MonitorConnection;
use crate::mux::Mux;

type Daemon = VhostUserDaemon<Arc<Backend>>;

/// Binds the socket, and starts the threads of the device.
pub(crate) fn start(
    path: &Path,
    mux: &Arc<Mux>,
    connection: &Arc<MonitorConnection>,
) -> Result<JoinHandle<()>, DeviceError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend::new(Arc::clone(mux), Arc::clone(connection), memory.clone());
    let backend = Arc::new(backend);
    let socket = Socket::bind(path).map_err(DeviceError::Socket)?;
    let name = "vsock-monitor".to_owned();
    let daemon = Daemon::new(name, Arc::clone(&backend), memory)
        .map_err(|failed| DeviceError::Backend(failed.to_string()))?;
    if let Err(failed) = register_notifier(&daemon, mux) {
        // Nothing can end its worker, and dropping it would wait for that.
        std::mem::forget(daemon);
        return Err(DeviceError::Threads(failed));
    }
    let thread_state = MonitorThread {
        mux: Arc::clone(mux),
        connection: Arc::clone(connection),
        backend,
        daemon,
    };
    let thread = thread::Builder::new().name("vsock-device".to_owned());
    thread
        .spawn(move || thread_state.run(socket))
        .map_err(DeviceError::Threads)
}

/// Lets the vring worker poll the notifier.
fn register_notifier(daemon: &Daemon, mux: &Mux) -> io::Result<()> {
    let notifier = mux.notifier.event().as_fd().as_raw_fd();
    let workers = daemon.get_epoll_handlers();
    workers.iter().try_for_each(|worker| {
        worker.register_listener(notifier, EventSet::IN, u64::from(NOTIFIER))
    })
}

/// What the device's own thread owns.
struct MonitorThread {
    mux: Arc<Mux>,
    connection: Arc<MonitorConnection>,
    backend: Arc<Backend>,
    daemon: Daemon,
}

/// Ends the device, also when the thread could not be started: dropping the daemon waits for the vring
/// worker, and only this makes it end.
impl Drop for MonitorThread {
    fn drop(&mut self) {
        self.mux.end(Cause::MonitorGone);
    }
}

impl MonitorThread {
    fn run(mut self, socket: Socket) {
        if let Err(reason) = self.serve(socket) {
            self.mux.give_up(reason);
        }
        self.backend.drain_final_packets();
    }

    /// Serves one monitor until it disconnects, which is not an error.
    fn serve(&mut self, socket: Socket) -> Result<(), String> {
        let connected = self.connection.wait_for_monitor(&socket.listener);
        if !connected.map_err(|failed| format!("cannot wait for the monitor: {failed}"))? {
            return Ok(());
        }
        let mut listener = Listener::from(socket.into_listener());
        let started = self.daemon.start(&mut listener);
        drop(listener);
        started.map_err(|failed| format!("cannot serve the monitor: {failed}"))?;
        self.connection.attach(self.daemon.shutdown_handle());
        match self.daemon.wait() {
            Ok(()) => Ok(()),
            Err(DaemonError::HandleRequest(
                VhostError::Disconnected
                | VhostError::PartialMessage
                | VhostError::SocketBroken(_)
                | VhostError::SocketError(_),
            )) => Ok(()),
            Err(failed) => Err(format!(
                "the monitor violated the vhost-user protocol: {failed}"
            )),
        }
    }
}

/// A listening socket and its name, which is removed with it.
struct Socket {
    listener: UnixListener,
    name: Name,
}

/// Removes the name of a socket when dropped.
struct Name(PathBuf);

impl Socket {
    /// Fails if `path` exists: it may be the socket of another device.
    fn bind(path: &Path) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // On Linux the name gets the mode of the socket, so other users can never open it.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(fd.as_raw_fd(), &address)?;
        let name = Name(path.to_owned());
        listen(&fd, Backlog::new(1)?)?;
        Ok(Self {
            listener: fd.into(),
            name,
        })
    }

    /// Removes the name: only the monitor that is connecting already may connect.
    fn into_listener(self) -> UnixListener {
        drop(self.name);
        self.listener
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if let Err(failed) = std::fs::remove_file(&self.0) {
            log::warn!("cannot remove the socket {}: {failed}", self.0.display());
        }
    }
}
