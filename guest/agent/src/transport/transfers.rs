//! Opening the connection of a transfer.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use wire::{Attach, message};

use super::{Connect, Connection, Incoming, Outgoing};

/// Opens the connections of transfers.
#[derive(Debug)]
pub(crate) struct Transfers {
    connect: Arc<dyn Connect>,
    nonce: [u8; 16],
}

impl Transfers {
    /// Transfers of the VM that has this nonce.
    pub(crate) fn new(connect: Arc<dyn Connect>, nonce: [u8; 16]) -> Self {
        Self { connect, nonce }
    }

    /// Attaches to a transfer in which the host sends `size` bytes.
    pub(crate) fn receive(&self, transfer: u64, size: u64) -> Result<Incoming> {
        Ok(Incoming::new(self.attach(transfer)?, transfer, size))
    }

    /// Attaches to a transfer in which the agent sends.
    pub(crate) fn send(&self, transfer: u64) -> Result<Outgoing> {
        Ok(Outgoing::new(self.attach(transfer)?, transfer))
    }

    /// Attaches to a transfer, and leaves what follows to the caller.
    pub(crate) fn attach(&self, transfer: u64) -> Result<Box<dyn Connection>> {
        let mut connection = self.connect.connect()?;
        let attach = message::encode(
            transfer,
            &Attach {
                nonce: self.nonce,
                transfer,
            },
        )?;
        connection
            .write_all(&attach)
            .context("cannot attach to a transfer")?;
        Ok(connection)
    }
}
