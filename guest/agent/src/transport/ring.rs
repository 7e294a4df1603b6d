//! Connections through our own vsock driver, which owns the device and receives into slots of
//! hundreds of kilobytes where the kernel's driver has pages.

use std::io;

use anyhow::Result;
use vsock_ring::{Config, Endpoint, Stream, pci};

use super::{Connect, Connection, HOST_SLEEPS, patiently};

/// The device, driven from here.
#[derive(Debug)]
pub(crate) struct Ring(Endpoint);

impl Ring {
    /// Takes the device over from the kernel.
    pub(crate) fn start() -> Result<Self> {
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
        patiently(|| self.0.connect(wire::PORT, HOST_SLEEPS))
    }
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
