//! Listening sockets and what they accept, of either family.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr, bind,
    getpeername, listen, shutdown, socket,
};
use nix::sys::stat::{Mode, fchmod};

use crate::session::{GuestConnection, GuestListener};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket on which the guest's connections arrive.
#[derive(Debug)]
pub(crate) struct SocketListener {
    listener: OwnedFd,
    /// The only guest whose connections are accepted. A Unix socket accepts whoever may open it:
    /// this user.
    cid: Option<u32>,
    name: Option<Name>,
}

impl SocketListener {
    /// Listens on a Unix socket with this name. Replaces a socket that a killed process left behind;
    /// fails if another process listens on it.
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let listener = open(AddressFamily::Unix)?;
        // On Linux the file gets the mode of the socket, so it is never open to other users.
        fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
        if is_abandoned(path) {
            std::fs::remove_file(path)?;
        }
        let mut listener = Self::bound(listener, &address, None)?;
        listener.name = Some(Name(path.to_owned()));
        Ok(listener)
    }

    /// Listens on the agent's port of the host, for the guest with this context id.
    pub(crate) fn vsock(cid: u32) -> io::Result<Self> {
        let any = VsockAddr::new(u32::MAX, wire::PORT);
        Self::bound(open(AddressFamily::Vsock)?, &any, Some(cid))
    }

    fn bound(listener: OwnedFd, at: &dyn SockaddrLike, cid: Option<u32>) -> io::Result<Self> {
        bind(listener.as_raw_fd(), at)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(Self {
            listener,
            cid,
            name: None,
        })
    }

    /// Whether this connection is from the guest.
    fn is_from_guest(&self, caller: &OwnedFd) -> bool {
        let Some(cid) = self.cid else {
            return true;
        };
        let address = getpeername::<VsockAddr>(caller.as_raw_fd());
        address.is_ok_and(|address| address.cid() == cid)
    }
}

/// Whether this is the name of a socket on which nobody listens any more. Probed with a socket of
/// another type, which a live listener refuses for its type, without accepting a connection.
fn is_abandoned(path: &Path) -> bool {
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    probe.is_err_and(|err| err.kind() == io::ErrorKind::ConnectionRefused)
        && path
            .symlink_metadata()
            .is_ok_and(|found| found.file_type().is_socket())
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

impl GuestListener for SocketListener {
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn GuestConnection>> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut caller = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut caller, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Accepted connections block, though the listener does not.
        let flags = rustix::net::SocketFlags::CLOEXEC;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(caller) if self.is_from_guest(&caller) => Ok(Arc::new(Socket(caller.into()))),
            Ok(_) => {
                log::warn!("refused a connection from an unexpected VM");
                Err(io::ErrorKind::TimedOut.into())
            }
            // The peer has gone already.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(failed) => Err(failed.into()),
        }
    }
}

/// A name in the file system that is removed with its socket.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        if let Err(failed) = std::fs::remove_file(&self.0) {
            log::warn!("cannot remove the socket {}: {failed}", self.0.display());
        }
    }
}

/// A connection.
struct Socket(File);

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.0.as_raw_fd())
    }
}

impl GuestConnection for Socket {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        { &self.0 }.read(buf)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        { &self.0 }.write_all(&data)
    }

    fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?)
    }

    fn reset(&self) {
        // Fails only if it is gone already, and then nobody waits on it.
        shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
    }
}
