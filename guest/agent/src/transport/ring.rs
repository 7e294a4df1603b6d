//! Connections through our own vsock driver, which owns the device and receives into slots of
//! a megabyte where the kernel's driver has pages.

use std::io::{self, BufRead, IoSlice, Read, Write};

use anyhow::Result;
use vsock_driver::{Chunk, Config, Endpoint, SendBuffer, Stream, pci};

use super::{Connect, Connection, HOST_SLEEPS, patiently};

/// The device, driven from here.
#[derive(Debug)]
pub(crate) struct Ring(Endpoint);

impl Ring {
    /// Takes the device over from the kernel, which has it again if that fails.
    pub(crate) fn start() -> Result<Self> {
        Self::take().inspect_err(|_| {
            if let Err(err) = pci::give_back() {
                log::debug!("the kernel did not get the vsock device back: {err}");
            }
        })
    }

    fn take() -> Result<Self> {
        let config = Config {
            device_timeout: HOST_SLEEPS,
            ..Config::default()
        };
        let parts = pci::bind(&config)?;
        Ok(Self(Endpoint::start(parts, config)?))
    }
}

impl Connect for Ring {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        patiently(|| {
            let stream = self.0.connect(wire::PORT, HOST_SLEEPS)?;
            Ok(Handle::from(stream))
        })
    }
}

/// A handle to a connection, with what it has of the device's memory.
#[derive(Debug)]
struct Handle {
    stream: Stream,
    received: Option<Chunk>,
    /// Bytes of that chunk that were consumed.
    consumed: usize,
    room: Option<SendBuffer>,
}

impl From<Stream> for Handle {
    fn from(stream: Stream) -> Self {
        Self {
            stream,
            received: None,
            consumed: 0,
            room: None,
        }
    }
}

impl Connection for Handle {
    fn room(&mut self) -> io::Result<&mut [u8]> {
        let room = match self.room.take() {
            Some(room) => room,
            None => self.stream.lend(usize::MAX)?,
        };
        Ok(self.room.insert(room))
    }

    fn send(&mut self, n: usize) -> io::Result<()> {
        self.room.take().map_or(Ok(()), |room| room.send(n))
    }

    fn handle(&self) -> io::Result<Box<dyn Connection>> {
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

    /// A chunk that was consumed goes back to the device at once.
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
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(room)?;
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
