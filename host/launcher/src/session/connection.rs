//! What a session needs from the transport: connections that the guest opens, as traits.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use wire::frame::{self, Frame, FrameError, ReadError};

/// One connection of the guest. One thread may read while another one sends.
pub(crate) trait GuestConnection: Send + Sync + fmt::Debug {
    /// Waits for bytes; zero means that the guest finished sending.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Sends all of `data`. Blocks while too many bytes are in flight.
    fn send(&self, data: Vec<u8>) -> io::Result<()>;

    /// Ends our direction; what was sent before still arrives.
    fn finish(&self) -> io::Result<()>;

    /// Ends the connection at once: pending calls on it return an error. Never blocks.
    fn reset(&self);
}

/// Accepts the connections that the guest opens.
pub(crate) trait GuestListener: Send + Sync {
    /// The next connection; [`io::ErrorKind::TimedOut`] if none comes in time.
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn GuestConnection>>;
}

/// Reads the frames of one connection, each into the same buffer.
#[derive(Debug)]
pub(crate) struct Frames {
    connection: Arc<dyn GuestConnection>,
    buf: Vec<u8>,
    max_body: u32,
}

impl Frames {
    pub(crate) fn new(connection: Arc<dyn GuestConnection>) -> Self {
        Self {
            connection,
            buf: Vec::new(),
            max_body: u32::MAX,
        }
    }

    /// Refuses frames with a longer body, before any memory is allocated for them.
    pub(crate) fn up_to(mut self, max_body: u32) -> Self {
        self.max_body = max_body;
        self
    }

    pub(crate) fn connection(&self) -> &Arc<dyn GuestConnection> {
        &self.connection
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReadError<io::Error>> {
        let connection = &self.connection;
        let mut fill = |buf: &mut [u8]| loop {
            match connection.read(buf) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        };
        let Some(header) = frame::read_header(&mut fill)? else {
            return Ok(None);
        };
        let (kind, len) = (header.kind, header.len);
        if len > self.max_body {
            return Err(FrameError::TooLong { kind, len }.into());
        }
        frame::read_body(header, &mut self.buf, fill).map(Some)
    }
}
