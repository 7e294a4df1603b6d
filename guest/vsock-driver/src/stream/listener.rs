//! Connections that the host makes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Stream;
use crate::shared::Shared;
use crate::waits::{deadline, wait};

/// Accepts the connections that the host makes to one port. Dropping it closes the port and the
/// connections that were not accepted.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    port: u32,
}

impl Listener {
    pub(crate) fn new(shared: &Arc<Shared>, port: u32) -> Self {
        Self {
            shared: Arc::clone(shared),
            port,
        }
    }

    /// Waits for the next connection, at most for `timeout` if there is one.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or [`io::ErrorKind::NotConnected`] once the device is gone.
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<Stream> {
        let deadline = deadline(timeout);
        let shared = &self.shared;
        let mut state = shared.lock();
        loop {
            if let Some(id) = state.mux.accept(self.port).map_err(io::Error::from)? {
                let waiters = state.add_waiters(id);
                return Ok(Stream::new(shared, id, waiters));
            }
            state = wait(&shared.incoming, state, deadline)?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.mux.unlisten(self.port);
        self.shared.settle(&mut state);
    }
}
