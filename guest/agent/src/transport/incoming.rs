//! The receiving end of a transfer.

use std::io::{self, BufRead, Read};

use anyhow::{Context as _, Result, ensure};
use wire::frame::{Body, Header, ReadError};
use wire::{Event, Kind, Receiver, frame};

use super::{Connection, retry};
use crate::fault;

/// A reader that ends at the verified end of a transfer. It lends bytes where the connection received
/// them. A piece is hashed before it is lent, but the checksum of its frame may be compared later:
/// what was read counts only after [`Self::finish`].
#[derive(Debug)]
pub(crate) struct Incoming {
    connection: Box<dyn Connection>,
    receiver: Receiver,
    size: u64,
    /// The data frame that is being received.
    body: Option<Body>,
    /// How much of what the connection lends is data that was hashed and not consumed yet.
    piece: usize,
}

impl Incoming {
    /// Receives the transfer with this number, of `size` bytes.
    pub(super) fn new(connection: Box<dyn Connection>, transfer: u64, size: u64) -> Self {
        Self {
            connection,
            receiver: Receiver::new(transfer, size),
            size,
            body: None,
            piece: 0,
        }
    }

    /// Reads and discards the rest of the transfer, and checks its length.
    pub(crate) fn finish(mut self) -> Result<()> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let received = self.receiver.received();
        ensure!(
            received == self.size,
            fault::violation(format!(
                "expected {} bytes, but the host sent {received}",
                self.size
            ))
        );
        Ok(())
    }

    /// Receives a piece of data, or whatever is between two of them.
    fn next(&mut self) -> Result<()> {
        match self.body.take() {
            Some(body) => self.next_piece(body),
            None => self.next_header(),
        }
    }

    fn next_piece(&mut self, mut body: Body) -> Result<()> {
        let lent = self.connection.fill_buf().context("cannot receive")?;
        ensure!(!lent.is_empty(), ReadError::<io::Error>::Cut);
        self.piece = body.take(lent).len();
        if body.left() > 0 {
            self.body = Some(body);
        } else {
            self.receiver.finish(body)?;
        }
        Ok(())
    }

    fn next_header(&mut self) -> Result<()> {
        let connection = &mut self.connection;
        let header = frame::read_header(|buf| retry(|| connection.read(buf)));
        let Some(header) = header.context("cannot receive")? else {
            return Ok(self.receiver.handle_eof()?);
        };
        if header.kind == Kind::Data {
            self.body = Some(self.receiver.begin(header)?);
            return Ok(());
        }
        self.last_frame(header)
    }

    /// Reads a frame that is not data, which must be the last one.
    fn last_frame(&mut self, header: Header) -> Result<()> {
        let (connection, mut buf) = (&mut self.connection, Vec::new());
        let frame = frame::read_body(header, &mut buf, |buf| retry(|| connection.read(buf)));
        match self.receiver.handle(&frame.context("cannot receive")?)? {
            Event::Data { .. } | Event::End { .. } => Ok(()),
            Event::Abort(failure) => {
                Err(fault::reported(failure).context("the host gave up the transfer"))
            }
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece == 0 && !self.receiver.ended() {
            self.next().map_err(fault::carry)?;
        }
        if self.piece == 0 {
            return Ok(&[]);
        }
        Ok(self
            .connection
            .fill_buf()?
            .get(..self.piece)
            .unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        let n = n.min(self.piece);
        self.piece -= n;
        self.connection.consume(n);
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}
