//! Connections through the kernel's vsock driver.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, VsockAddr};
use nix::sys::socket::{connect, shutdown, socket};

use super::{Connect, Connection, HOST_SLEEPS, patiently, retry};
use crate::sys;

/// The host's context id.
const HOST: u32 = 2;

/// Kernel buffer of a connection. The default of 256 KiB halves the throughput; more than a data
/// frame brings nothing.
const SOCKET_BUFFER: u64 = 4 << 20;

/// What is read from a socket at a time, and lent: more brings nothing.
const READ: usize = 256 << 10;

/// What is collected before it is sent: large enough that headers of data frames cost nothing,
/// small enough that several transfers fit into the agent's memory.
pub(super) const ROOM: usize = 1 << 20;

/// A handle to a connected socket.
#[derive(Debug)]
pub(crate) struct Socket {
    reader: BufReader<File>,
    /// Grows when it is first used: most handles never are.
    room: Vec<u8>,
}

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self {
            reader: BufReader::with_capacity(READ, File::from(socket)),
            room: Vec::new(),
        }
    }
}

impl Socket {
    fn file(&self) -> &File {
        self.reader.get_ref()
    }
}

impl Connection for Socket {
    fn room(&mut self) -> io::Result<&mut [u8]> {
        self.room.resize(ROOM, 0);
        Ok(&mut self.room)
    }

    fn send(&mut self, n: usize) -> io::Result<()> {
        self.reader
            .get_ref()
            .write_all(self.room.get(..n).unwrap_or(&self.room))
    }

    fn handle(&self) -> io::Result<Box<dyn Connection>> {
        let socket = self.file().try_clone()?;
        Ok(Box::new(Self::from(OwnedFd::from(socket))))
    }

    fn finish(&self) {
        shutdown(self.file().as_raw_fd(), Shutdown::Write).ok();
    }

    fn close(&self) {
        shutdown(self.file().as_raw_fd(), Shutdown::Both).ok();
    }
}

impl BufRead for Socket {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // The second call only lends what the first has read.
        retry(|| self.reader.fill_buf().map(drop))?;
        self.reader.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }
}

impl Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.reader.read(room)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.file().write_vectored(bytes)
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
