//! The side of the kernel's driver: `AF_VSOCK` sockets.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    Backlog, Shutdown, SockFlag, VsockAddr, accept4, bind, connect, listen, shutdown,
};
use nix::sys::time::TimeVal;
use vsock_guest::conformance::{self, ByteStream, Connection, Side, TIMEOUT};
use vsock_guest::init;

/// The host's context id, and any local one.
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// How long a connect may take, from `linux/vm_sockets.h`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: i32 = 6;

/// All sockets of the kernel's driver.
pub(crate) struct Kernel;

impl Side for Kernel {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        let socket = init::vsock_socket()?;
        let limit = TimeVal::new(
            timeout.as_secs().try_into().unwrap_or(i64::MAX),
            timeout.subsec_micros().into(),
        );
        init::set_vsock_option(&socket, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit)?;
        connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port))?;
        connection(socket)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn conformance::Listener>> {
        let socket = init::vsock_socket()?;
        bind(socket.as_raw_fd(), &VsockAddr::new(ANY, port))?;
        listen(&socket, Backlog::new(64)?)?;
        // Applies to accept as well.
        init::set_timeouts(&socket, TIMEOUT)?;
        Ok(Box::new(Listener(socket)))
    }
}

struct Listener(OwnedFd);

impl conformance::Listener for Listener {
    #[expect(unsafe_code, reason = "nix's accept returns a number")]
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: `accept4` has just opened this descriptor, and nothing else owns it.
        connection(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn connection(socket: OwnedFd) -> io::Result<Box<dyn Connection>> {
    init::set_timeouts(&socket, TIMEOUT)?;
    Ok(Box::new(Socket(socket.into())))
}

struct Socket(File);

impl ByteStream for Socket {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        { &self.0 }.read(buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        { &self.0 }.write_all(buf)
    }

    fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?)
    }

    /// An application cannot make the kernel send a reset.
    fn reset(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Both)?)
    }
}
