//! The host's side of our device.

use std::io;
use std::time::Duration;

use vsock_device::Device;
use vsock_guest::conformance::{ByteStream, Connection, Listener, Side, TIMEOUT};

/// A device, as the side of the host.
pub(crate) struct DeviceHost<'a>(pub(crate) &'a Device);

impl Side for DeviceHost<'_> {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        self.0.connect(port, timeout).map(with_timeouts)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Listener>> {
        let listener = self.0.listen(port).map_err(io::Error::other)?;
        Ok(Box::new(DeviceListener(listener)))
    }
}

struct DeviceListener(vsock_device::Listener);

impl Listener for DeviceListener {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        self.0.accept(Some(TIMEOUT)).map(with_timeouts)
    }
}

fn with_timeouts(stream: vsock_device::Stream) -> Box<dyn Connection> {
    stream.set_read_timeout(Some(TIMEOUT));
    stream.set_write_timeout(Some(TIMEOUT));
    Box::new(DeviceStream(stream))
}

struct DeviceStream(vsock_device::Stream);

impl ByteStream for DeviceStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        self.0.write_all(buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    fn reset(&self) -> io::Result<()> {
        self.0.reset();
        Ok(())
    }
}
