//! The monitor's end of the device: the socket, and the thread that waits for it to go away.
//!
//! Law: everything here that waits can be woken by [`Link::hang_up`], whether a monitor never
//! connected, hangs, or is gone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::DeviceError;
use crate::backend::{BELL, Backend};
use crate::connection::Cause;
use crate::mux::Mux;

type Daemon = VhostUserDaemon<Arc<Backend>>;

/// The connection to the monitor, as far as ending it goes.
pub(crate) struct Link {
    state: Mutex<State>,
    hung_up: EventFd,
}

#[derive(Default)]
struct State {
    ended: bool,
    monitor: Option<ShutdownHandle>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("ended", &self.lock().ended)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let hung_up = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            state: Mutex::default(),
            hung_up,
        })
    }

    /// Ends the connection to the monitor, or the wait for it.
    pub(crate) fn hang_up(&self) {
        let mut state = self.lock();
        state.ended = true;
        if let Some(monitor) = state.monitor.take() {
            monitor.shutdown();
        }
        // Fails only if it is about to overflow, and then everybody is awake.
        self.hung_up.write(1).ok();
    }

    /// Remembers how to end the connection that has just been made.
    fn attach(&self, monitor: Option<ShutdownHandle>) {
        let mut state = self.lock();
        match monitor {
            Some(monitor) if state.ended => monitor.shutdown(),
            monitor => state.monitor = monitor,
        }
    }

    /// Waits for somebody at `listener`. `false` if the wait was ended instead.
    fn wait_for_monitor(&self, listener: &UnixListener) -> io::Result<bool> {
        while !self.lock().ended {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.hung_up.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(failed) => return Err(failed.into()),
            }
            let [caller, hung_up] = fds.map(|fd| fd.any().unwrap_or(false));
            if caller && !hung_up {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds the socket, and starts the threads of the device.
pub(crate) fn start(
    path: &Path,
    mux: &Arc<Mux>,
    link: &Arc<Link>,
) -> Result<JoinHandle<()>, DeviceError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Backend::new(Arc::clone(mux), Arc::clone(link), memory.clone());
    let backend = Arc::new(backend);
    let socket = Socket::bind(path).map_err(DeviceError::Socket)?;
    let name = "vsock-monitor".to_owned();
    let daemon = Daemon::new(name, Arc::clone(&backend), memory)
        .map_err(|failed| DeviceError::Backend(failed.to_string()))?;
    if let Err(failed) = hang_bell(&daemon, mux) {
        // Its worker cannot be told to end, and dropping it would wait for that.
        std::mem::forget(daemon);
        return Err(DeviceError::Threads(failed));
    }
    let served = Served {
        mux: Arc::clone(mux),
        link: Arc::clone(link),
        backend,
        daemon,
    };
    let thread = thread::Builder::new().name("vsock-device".to_owned());
    thread
        .spawn(move || served.run(socket))
        .map_err(DeviceError::Threads)
}

/// Lets the vring worker hear our bell.
fn hang_bell(daemon: &Daemon, mux: &Mux) -> io::Result<()> {
    let bell = mux.bell.event().as_fd().as_raw_fd();
    let workers = daemon.get_epoll_handlers();
    workers
        .iter()
        .try_for_each(|worker| worker.register_listener(bell, EventSet::IN, u64::from(BELL)))
}

/// What the device's own thread owns.
struct Served {
    mux: Arc<Mux>,
    link: Arc<Link>,
    backend: Arc<Backend>,
    daemon: Daemon,
}

/// However it ends, also when its thread could not be started: dropping the daemon waits for the
/// vring worker, and only this makes it end.
impl Drop for Served {
    fn drop(&mut self) {
        self.mux.end(Cause::MonitorGone);
    }
}

impl Served {
    fn run(mut self, socket: Socket) {
        if let Err(reason) = self.serve(socket) {
            self.mux.give_up(reason);
        }
        self.backend.hear_last_words();
    }

    /// Serves one monitor until it goes away, which is no error.
    fn serve(&mut self, socket: Socket) -> Result<(), String> {
        let called = self.link.wait_for_monitor(&socket.listener);
        if !called.map_err(|failed| format!("cannot wait for the monitor: {failed}"))? {
            return Ok(());
        }
        let mut listener = Listener::from(socket.into_listener());
        let started = self.daemon.start(&mut listener);
        drop(listener);
        started.map_err(|failed| format!("cannot serve the monitor: {failed}"))?;
        self.link.attach(self.daemon.shutdown_handle());
        match self.daemon.wait() {
            Ok(()) => Ok(()),
            Err(DaemonError::HandleRequest(
                VhostError::Disconnected
                | VhostError::PartialMessage
                | VhostError::SocketBroken(_)
                | VhostError::SocketError(_),
            )) => Ok(()),
            Err(failed) => Err(format!(
                "the monitor broke the vhost-user protocol: {failed}"
            )),
        }
    }
}

/// A listening socket and its name, which disappears with it.
struct Socket {
    listener: UnixListener,
    name: Name,
}

/// Removes a socket's name in the end.
struct Name(PathBuf);

impl Socket {
    /// Fails if `path` exists: it may be the socket of another device.
    fn bind(path: &Path) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // On Linux the name gets the mode that the socket has, so it is never open to others.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(fd.as_raw_fd(), &address)?;
        let name = Name(path.to_owned());
        listen(&fd, Backlog::new(1)?)?;
        Ok(Self {
            listener: fd.into(),
            name,
        })
    }

    /// Gives up the name: nobody shall connect but the caller who waits already.
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
