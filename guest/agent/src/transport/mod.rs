//! Connections to the host, and the transfers on them.
//!
//! **Law:** the agent only connects; it never listens. Each transfer has a connection of its own, so
//! that vsock's credit is the only flow control: a slow reader makes the other end wait.
//!
//! | module | content |
//! |---|---|
//! | [`ring`] | connections through our own vsock driver |
//! | [`socket`] | connections through the kernel's vsock driver |
//! | [`transfers`] | opens the connection of a transfer |
//! | [`incoming`], [`outgoing`] | the receiving and the sending end of a transfer |
//! | [`fill`] | sinks that lend their buffer |

mod fill;
mod incoming;
mod outgoing;
mod ring;
mod socket;
mod transfers;

use std::fmt;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::modules::Modules;

pub(crate) use fill::{Fill, copy};
pub(crate) use incoming::Incoming;
pub(crate) use outgoing::Outgoing;
pub(crate) use ring::Ring;
#[cfg(test)]
pub(crate) use socket::Socket;
pub(crate) use socket::Vsock;
pub(crate) use transfers::Transfers;

/// How long the host may do nothing: not accept a connection, or not take a packet. Longer than
/// anybody suspends a build: a host that was stopped continues where it was, and so must we. A host
/// that died takes the monitor with it, and one that lives has time limits of its own.
const HOST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a refused connection is tried: at boot, the host may be later than the agent.
const CONNECT_ATTEMPTS: u32 = 100;

/// Pause after each refusal.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection to the host: a stream of bytes, on which reading and writing block. It lends the
/// memory that it receives into and sends from, so that nothing is copied in between.
pub(crate) trait Connection: BufRead + Write + Send + fmt::Debug {
    /// The buffer whose first bytes [`Self::send`] sends. Until then it stays the same, and nothing
    /// else may be written to this connection.
    fn send_buffer(&mut self) -> io::Result<&mut [u8]>;

    /// Sends the first `n` bytes of [`Self::send_buffer`]. Zero returns the buffer unsent.
    fn send(&mut self, n: usize) -> io::Result<()>;

    /// A second handle, to write or close while another thread reads. Bytes that this handle has
    /// received but not consumed stay with it.
    fn try_clone(&self) -> io::Result<Box<dyn Connection>>;

    /// Ends our direction. If the connection is gone already, the host knows.
    fn finish(&self);

    /// Ends both directions, which wakes threads that block on other handles.
    fn close(&self);
}

/// Makes connections to the host.
pub(crate) trait Connect: Send + Sync + fmt::Debug {
    /// A new connection.
    fn connect(&self) -> Result<Box<dyn Connection>>;
}

/// Connects by `attempt`, and tries again as long as the host does not listen yet.
fn connect_with_retries<C: Connection + 'static>(
    mut attempt: impl FnMut() -> io::Result<C>,
) -> Result<Box<dyn Connection>> {
    let refused = |err: &io::Error| {
        matches!(
            err.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
        )
    };
    let mut attempts = 1;
    loop {
        match attempt() {
            Err(err) if refused(&err) && attempts < CONNECT_ATTEMPTS => {
                attempts += 1;
                thread::sleep(ATTEMPT_PAUSE);
            }
            Ok(connection) => return Ok(Box::new(connection)),
            Err(err) => return Err(err).context("cannot connect to the host"),
        }
    }
}

/// Loads the modules of the chosen driver and returns it with the features that [`wire::Hello`]
/// reports.
pub(crate) fn choose(
    choice: DriverChoice,
    ring: Modules,
    kernel: Modules,
) -> Result<(Arc<dyn Connect>, u64)> {
    if choice != DriverChoice::Kernel {
        match ring.load().and_then(|()| Ring::start()) {
            Ok(ring) => return Ok((Arc::new(ring), wire::FEATURE_RING)),
            Err(err) if choice == DriverChoice::Ring => {
                return Err(err.context("cannot drive the vsock device"));
            }
            Err(err) => log::warn!("falling back to the kernel's vsock driver: {err:#}"),
        }
    }
    kernel.load()?;
    Ok((Arc::new(Vsock), 0))
}

/// Which driver of the vsock device the host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverChoice {
    /// Our own if it can have the device, else the kernel's.
    Best,
    /// Our own or none.
    Ring,
    /// The kernel's.
    Kernel,
}

impl DriverChoice {
    /// Reads the kernel command line.
    pub(crate) fn from_cmdline(cmdline: &str) -> Self {
        let word = cmdline
            .split_whitespace()
            .find_map(|word| word.strip_prefix("cofferdam.transport="));
        match word {
            Some("ring") => Self::Ring,
            Some("kernel") => Self::Kernel,
            Some(_) | None => Self::Best,
        }
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests;
