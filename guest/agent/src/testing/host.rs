//! A host made of Unix sockets.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::transport::{Connect, Connection, Socket, Transfers};

/// Gives one end of each socket pair to the agent and the other to the test.
#[derive(Debug)]
struct FakeHost(Sender<UnixStream>);

impl Connect for FakeHost {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.send(theirs).context("the fake host is gone")?;
        Ok(Box::new(Socket::from(OwnedFd::from(ours))))
    }
}

/// Transfers to a fake host, and the connections in the order in which they arrive there.
pub(crate) fn host() -> (Transfers, Receiver<UnixStream>) {
    let (sender, receiver) = bounded(16);
    (
        Transfers::new(Arc::new(FakeHost(sender)), [7; 16]),
        receiver,
    )
}
