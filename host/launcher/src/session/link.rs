//! The seam between a session and the transport below it: connections that the guest makes.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use wire::frame::{self, Frame, FrameError, ReadError};

/// One connection of the guest. One thread may read while another one sends.
pub(crate) trait Link: Send + Sync + fmt::Debug {
    /// Waits for bytes; zero means that the guest finished sending.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Hands bytes over. Waits while too many are on their way already.
    fn send(&self, data: Vec<u8>) -> io::Result<()>;

    /// Nothing more will be sent; what was, still arrives.
    fn finish(&self) -> io::Result<()>;

    /// Ends the connection at once; whoever waits on it wakes with an error. Never blocks.
    fn reset(&self);
}

/// Where the guest's connections arrive.
pub(crate) trait Door: Send + Sync {
    /// The next connection; [`io::ErrorKind::TimedOut`] if none comes in time.
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn Link>>;
}

/// Reads the frames of one connection, each into the same buffer.
#[derive(Debug)]
pub(crate) struct Frames {
    link: Arc<dyn Link>,
    buf: Vec<u8>,
    longest: u32,
}

impl Frames {
    pub(crate) fn new(link: Arc<dyn Link>) -> Self {
        Self {
            link,
            buf: Vec::new(),
            longest: u32::MAX,
        }
    }

    /// Takes no frame whose body is longer than this, and no memory for one.
    pub(crate) fn up_to(mut self, longest: u32) -> Self {
        self.longest = longest;
        self
    }

    pub(crate) fn link(&self) -> &Arc<dyn Link> {
        &self.link
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ReadError<io::Error>> {
        let link = &self.link;
        let mut fill = |room: &mut [u8]| loop {
            match link.read(room) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        };
        let Some(header) = frame::read_header(&mut fill)? else {
            return Ok(None);
        };
        let (kind, len) = (header.kind, header.len);
        if len > self.longest {
            return Err(FrameError::TooLong { kind, len }.into());
        }
        frame::read_body(header, &mut self.buf, fill).map(Some)
    }
}
