//! Connections through the kernel's vsock driver.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, VsockAddr};
use nix::sys::socket::{connect, shutdown, socket};

use super::{Connect, Connection, HOST_TIMEOUT, connect_with_retries, retry};
use crate::sys;

/// The host's context id.
const HOST: u32 = 2;

/// Size of the kernel's buffer for a connection, in bytes. The default of 256 KiB halves the
/// throughput; more than a data frame gains nothing.
const SOCKET_BUFFER: u64 = 4 << 20;

/// Size of the receive buffer in bytes: more gains nothing.
const RECEIVE_BUFFER: usize = 256 << 10;

/// Size of the send buffer in bytes: large enough that headers of data frames cost nothing, small
/// enough that several transfers fit into the agent's memory.
pub(super) const SEND_BUFFER: usize = 1 << 20;

/// A handle to a connected socket.
#[derive(Debug)]
pub(crate) struct Socket {
    reader: BufReader<File>,
    /// Empty until its first use, since most handles never send from it.
    buffer: Vec<u8>,
}

impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self {
            reader: BufReader::with_capacity(RECEIVE_BUFFER, File::from(socket)),
            buffer: Vec::new(),
        }
    }
}

impl Socket {
    fn file(&self) -> &File {
        self.reader.get_ref()
    }
}

impl Connection for Socket {
    fn send_buffer(&mut self) -> io::Result<&mut [u8]> {
        self.buffer.resize(SEND_BUFFER, 0);
        Ok(&mut self.buffer)
    }

    fn send(&mut self, n: usize) -> io::Result<()> {
        self.reader
            .get_ref()
            .write_all(self.buffer.get(..n).unwrap_or(&self.buffer))
    }

    fn try_clone(&self) -> io::Result<Box<dyn Connection>> {
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
        // The second call only lends what the first one read.
        retry(|| self.reader.fill_buf().map(drop))?;
        self.reader.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
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
        connect_with_retries(|| Ok(Socket::from(connect_once()?)))
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
    sys::set_vsock_connect_timeout(socket.as_fd(), HOST_TIMEOUT)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, wire::PORT))?;
    Ok(socket)
}
