//! Connections through our own vsock driver, which owns the device. It receives into slots of one
//! megabyte, where the kernel's driver has pages.

use std::io::{self, BufRead, IoSlice, Read, Write};

use anyhow::Result;
use vsock_driver::{Chunk, Config, Endpoint, SendBuffer, Stream, pci};

use super::{Connect, Connection, HOST_TIMEOUT, connect_with_retries};

/// The vsock device, driven by the agent itself.
#[derive(Debug)]
pub(crate) struct Ring(Endpoint);

impl Ring {
    /// Takes the device over from the kernel; returns it if that fails.
    pub(crate) fn start() -> Result<Self> {
        Self::take().inspect_err(|_| {
            if let Err(err) = pci::give_back() {
                log::debug!("the kernel did not get the vsock device back: {err}");
            }
        })
    }

    fn take() -> Result<Self> {
        let config = Config {
            device_timeout: HOST_TIMEOUT,
            ..Config::default()
        };
        let parts = pci::bind(&config)?;
        Ok(Self(Endpoint::start(parts, config)?))
    }
}

impl Connect for Ring {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        connect_with_retries(|| {
            let stream = self.0.connect(wire::PORT, HOST_TIMEOUT)?;
            Ok(Handle::from(stream))
        })
    }
}

/// A handle to a connection, with the parts of the device's memory that it holds.
#[derive(Debug)]
struct Handle {
    stream: Stream,
    received: Option<Chunk>,
    /// Bytes of that chunk that were consumed already.
    consumed: usize,
    buffer: Option<SendBuffer>,
}

impl From<Stream> for Handle {
    fn from(stream: Stream) -> Self {
        Self {
            stream,
            received: None,
            consumed: 0,
            buffer: None,
        }
    }
}

impl Connection for Handle {
    fn send_buffer(&mut self) -> io::Result<&mut [u8]> {
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.stream.lend(usize::MAX)?,
        };
        Ok(self.buffer.insert(buffer))
    }

    fn send(&mut self, n: usize) -> io::Result<()> {
        self.buffer.take().map_or(Ok(()), |buffer| buffer.send(n))
    }

    fn try_clone(&self) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Self::from(self.stream.clone())))
    }

    fn finish(&self) {
        self.stream.shutdown_write().ok();
    }

    fn close(&self) {
        self.stream.reset();
    }
}

impl BufRead for Handle {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.received.is_none() {
            self.received = self.stream.recv(None)?;
        }
        let chunk = self.received.as_deref();
        Ok(chunk
            .and_then(|chunk| chunk.get(self.consumed..))
            .unwrap_or_default())
    }

    /// A consumed chunk goes back to the device at once.
    fn consume(&mut self, n: usize) {
        self.consumed += n;
        if self
            .received
            .as_ref()
            .is_some_and(|chunk| chunk.len() <= self.consumed)
        {
            self.received = None;
            self.consumed = 0;
        }
    }
}

impl Read for Handle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
