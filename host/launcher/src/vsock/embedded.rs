//! The device of this process as a transport of sessions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vsock_device::{Listener, Stream};

use crate::session::{GuestConnection, GuestListener};

impl GuestConnection for Stream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Self::read(self, buf)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        Self::send(self, data)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

impl GuestListener for Listener {
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn GuestConnection>> {
        Ok(Arc::new(Self::accept(self, Some(timeout))?))
    }
}
