//! The side of our device.

use std::io;
use std::time::Duration;

use super::side::{Door, End, PATIENCE, Side, Stream};

impl Side for vsock_device::Device {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn End>> {
        Self::connect(self, port, timeout).map(patient)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Door>> {
        let door = Self::listen(self, port).map_err(io::Error::other)?;
        Ok(Box::new(door))
    }
}

impl Door for vsock_device::Listener {
    fn accept(&self) -> io::Result<Box<dyn End>> {
        Self::accept(self, Some(PATIENCE)).map(patient)
    }
}

fn patient(stream: vsock_device::Stream) -> Box<dyn End> {
    stream.set_read_timeout(Some(PATIENCE));
    stream.set_write_timeout(Some(PATIENCE));
    Box::new(stream)
}

impl Stream for vsock_device::Stream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Self::read(self, buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        Self::write_all(self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn reset(&self) -> io::Result<()> {
        Self::reset(self);
        Ok(())
    }
}
