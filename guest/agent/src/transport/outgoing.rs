//! The sending end of a transfer.

use std::io::{self, IoSlice, Write};

use anyhow::Result;
use wire::frame::HEADER_LEN;
use wire::limits::MAX_BODY;
use wire::{Failure, Sender};

use super::{Connection, Fill, retry};

/// A writer that collects data frames. Each frame is put together in a buffer that the connection
/// lends, with space for the header in front.
#[derive(Debug)]
pub(crate) struct Outgoing {
    connection: Box<dyn Connection>,
    sender: Sender,
    /// Bytes of data in the buffer.
    used: usize,
}

impl Outgoing {
    /// Sends the transfer with this number.
    pub(super) fn new(connection: Box<dyn Connection>, transfer: u64) -> Self {
        Self {
            connection,
            sender: Sender::new(transfer),
            used: 0,
        }
    }

    /// Sends what is in the buffer, and then `piece` in frames with these flags.
    pub(crate) fn send_flagged(&mut self, flags: u8, piece: &[u8]) -> Result<()> {
        self.flush()?;
        for piece in piece.chunks(usize::try_from(MAX_BODY).unwrap_or(usize::MAX)) {
            let header = self.sender.data(flags, piece)?;
            write_both(&mut *self.connection, &header, piece)?;
        }
        Ok(())
    }

    /// Sends the rest and the end mark. Returns the length of the transfer in bytes.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let total = self.sender.sent();
        self.connection.write_all(&self.sender.end()?)?;
        self.connection.finish();
        Ok(total)
    }

    /// Tells the host that the transfer failed.
    pub(crate) fn abort(mut self, failure: &Failure) -> Result<()> {
        // The buffer may hold half a piece, but it is lent: it must be sent first.
        self.flush()?;
        self.connection.write_all(&self.sender.abort(failure)?)?;
        self.connection.finish();
        Ok(())
    }

    /// Where in the connection's buffer the next data belongs; empty if the buffer is full.
    fn rest(&mut self) -> io::Result<&mut [u8]> {
        let buffer = self.connection.send_buffer()?;
        let len = buffer.len();
        let rest = buffer.get_mut(HEADER_LEN + self.used..).unwrap_or_default();
        if self.used == 0 && rest.is_empty() {
            return Err(io::Error::other(format!(
                "the host accepts packets of at most {len} bytes, which is too short for a header"
            )));
        }
        Ok(rest)
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut space = self.space()?;
        let n = space.write(bytes)?;
        self.filled(n);
        Ok(n)
    }

    /// Also returns an empty buffer: as long as it is lent, nothing else can be sent.
    fn flush(&mut self) -> io::Result<()> {
        if self.used == 0 {
            return self.connection.send(0);
        }
        let buffer = self.connection.send_buffer()?;
        let (header, data) = buffer
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(io::ErrorKind::WriteZero)?;
        let data = data.get(..self.used).unwrap_or_default();
        *header = self.sender.data(0, data).map_err(io::Error::other)?;
        let len = HEADER_LEN + std::mem::take(&mut self.used);
        self.connection.send(len)
    }
}

impl Fill for Outgoing {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.rest()?.is_empty() {
            self.flush()?;
        }
        self.rest()
    }

    fn filled(&mut self, n: usize) {
        self.used += n;
    }
}

/// Writes a header and its body with as few system calls as possible.
fn write_both(connection: &mut dyn Connection, header: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(header), IoSlice::new(body)];
    let mut slices = slices.as_mut_slice();
    while !slices.is_empty() {
        match retry(|| connection.write_vectored(slices))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => IoSlice::advance_slices(&mut slices, n),
        }
    }
    Ok(())
}
