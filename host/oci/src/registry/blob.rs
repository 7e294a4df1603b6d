//! A blob as a reader. Interrupted downloads resume.

use std::io::{self, Read};

use reqwest::StatusCode;
use store::Digest;

use super::{Connection, RegistryError};
use crate::http::{RETRY_DELAYS, Response};

/// Reads one blob. Errors are [`RegistryError`]s inside [`io::Error`]s.
///
/// It ends at the length that was asked for: a shorter answer is an interruption, and the rest of a
/// longer one is not read. The caller verifies the bytes.
pub(crate) struct BlobReader<'a> {
    connection: &'a Connection,
    digest: Digest,
    size: u64,
    /// Bytes given to the caller or buffered in `chunk`.
    received: u64,
    /// Bytes to discard, since the registry started from the beginning again.
    skip: u64,
    response: Option<Response>,
    chunk: Vec<u8>,
    /// Bytes of `chunk` that the caller has.
    given: usize,
    interruptions: usize,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(connection: &'a Connection, digest: Digest, size: u64) -> Self {
        Self {
            connection,
            digest,
            size,
            received: 0,
            skip: 0,
            response: None,
            chunk: Vec::new(),
            given: 0,
            interruptions: 0,
        }
    }

    /// Gets the next chunk that is not empty. `false` at the end.
    fn refill(&mut self) -> Result<bool, RegistryError> {
        while self.received < self.size {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => self.resume()?,
            };
            match self.connection.chunk(&mut response) {
                Ok(Some(chunk)) => {
                    self.response = Some(response);
                    if self.accept(chunk) {
                        return Ok(true);
                    }
                }
                Ok(None) => self.interrupted(RegistryError::Protocol {
                    registry: self.connection.registry(),
                    reason: format!(
                        "blob {} ended after {} of {} bytes",
                        self.digest, self.received, self.size
                    ),
                })?,
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => self.interrupted(error)?,
            }
        }
        Ok(false)
    }

    fn resume(&mut self) -> Result<Response, RegistryError> {
        let response = self.connection.get_blob(self.digest, self.received)?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        self.skip = if partial { 0 } else { self.received };
        Ok(response)
    }

    /// Counts an interruption. Too many are an error.
    fn interrupted(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.interruptions += 1;
        let Some(delay) = RETRY_DELAYS.get(self.interruptions) else {
            return Err(error);
        };
        log::debug!(
            "blob {}: {error}; resuming at byte {}",
            self.digest,
            self.received
        );
        self.connection.pause(*delay)
    }

    /// Takes over what is new in a chunk. Returns whether there is any.
    fn accept(&mut self, mut chunk: Vec<u8>) -> bool {
        let old = usize::try_from(self.skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
        self.skip = self.skip.saturating_sub(old as u64);
        chunk.drain(..old);
        let wanted = self.size.saturating_sub(self.received);
        chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.received = self.received.saturating_add(chunk.len() as u64);
        self.chunk = chunk;
        self.given = 0;
        !self.chunk.is_empty()
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given >= self.chunk.len() && !self.refill().map_err(io::Error::other)? {
            return Ok(0);
        }
        let mut rest = self.chunk.get(self.given..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.given = self.given.saturating_add(count);
        Ok(count)
    }
}
