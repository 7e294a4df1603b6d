//! Frames on their way to the host.

use std::io::{self, Write};

use wire::HEADER_LEN;
use wire::flow::MAX_BACKLOG;

/// How much data may wait here, in bytes. Beyond that, packets wait in the kernel of the step.
const FULL: usize = 512 << 10;

/// Frames that were not sent yet.
#[derive(Debug, Default)]
pub(in crate::network) struct Frames {
    bytes: Vec<u8>,
    sent: usize,
}

impl Frames {
    /// Adds a frame without data, if there is one. Their number has a bound of its own, since the host
    /// answers for each flow.
    pub(super) fn push(&mut self, frame: Option<impl AsRef<[u8]>>) {
        if let Some(frame) = frame {
            debug_assert!(self.waiting() <= FULL + (MAX_BACKLOG + 1) * 2 * HEADER_LEN);
            self.bytes.extend_from_slice(frame.as_ref());
        }
    }

    /// Adds a frame of data.
    pub(super) fn push_data(&mut self, header: &[u8; HEADER_LEN], body: &[u8]) {
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(body);
    }

    /// Whether no data should be added.
    pub(in crate::network) fn is_full(&self) -> bool {
        self.waiting() >= FULL
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(in crate::network) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Writes as much as `to` takes without waiting.
    pub(in crate::network) fn write(&mut self, mut to: impl Write) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.make_room();
                    return Ok(());
                }
                Err(err) => return Err(err),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }

    /// Moves what waits to the beginning, when that is worth the copy.
    fn make_room(&mut self) {
        if self.sent >= FULL / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}
