//! Connections through the kernel's vsock driver.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, VsockAddr};
use nix::sys::socket::{connect, shutdown, socket};

use super::{Connect, Connection, HOST_SLEEPS, patiently};
use crate::sys;

/// The host's context id.
const HOST: u32 = 2;

/// Kernel buffer of a connection. The default of 256 KiB halves the throughput; more than a data
/// frame brings nothing.
const SOCKET_BUFFER: u64 = 4 << 20;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket(File);

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self(File::from(socket))
    }
}

impl Connection for Socket {
    fn handle(&self) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Self(self.0.try_clone()?)))
    }

    fn finish(&self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Write).ok();
    }

    fn close(&self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
    }
}

impl Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.0.read(room)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects through the kernel.
#[derive(Debug)]
pub(crate) struct Vsock;

impl Connect for Vsock {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        patiently(|| Ok(Socket::from(connect_once()?)))
    }
}

fn connect_once() -> Result<OwnedFd, Errno> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    sys::set_vsock_buffer(socket.as_fd(), SOCKET_BUFFER)?;
    sys::set_vsock_connect_timeout(socket.as_fd(), HOST_SLEEPS)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, wire::PORT))?;
    Ok(socket)
}
