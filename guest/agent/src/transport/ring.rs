//! Connections through our own vsock driver, which owns the device and receives into slots of
//! hundreds of kilobytes where the kernel's driver has pages.

use std::io;
use std::thread;

use anyhow::{Context as _, Result};
use vsock_ring::{Config, Endpoint, Stream, pci};

use super::{ATTEMPT_PAUSE, CONNECT_ATTEMPTS, CONNECT_TIMEOUT, Connect, Connection};

/// The device, driven from here.
#[derive(Debug)]
pub(crate) struct Ring(Endpoint);

impl Ring {
    /// Takes the device over from the kernel.
    pub(crate) fn start() -> Result<Self> {
        let config = Config::default();
        let parts = pci::bind(&config)?;
        Ok(Self(Endpoint::start(parts, config)?))
    }
}

impl Connect for Ring {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        let mut attempt = 1;
        loop {
            match self.0.connect(wire::PORT, CONNECT_TIMEOUT) {
                // Nobody listens there yet.
                Err(err) if is_refusal(&err) && attempt < CONNECT_ATTEMPTS => {
                    attempt += 1;
                    thread::sleep(ATTEMPT_PAUSE);
                }
                Ok(stream) => return Ok(Box::new(stream)),
                Err(err) => return Err(err).context("cannot connect to the host"),
            }
        }
    }
}

fn is_refusal(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

impl Connection for Stream {
    fn handle(&self) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(self.clone()))
    }

    fn finish(&self) {
        self.shutdown_write().ok();
    }

    fn close(&self) {
        self.reset();
    }
}
