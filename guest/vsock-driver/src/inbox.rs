//! What was received and not read yet.
//!
//! Invariant: copies of small payloads are merged, so an inbox uses memory in proportion to its
//! bytes, whatever the packet sizes.

use std::collections::VecDeque;

/// Copies are merged into pieces of up to this size.
const MERGE: usize = 64 * 1024;

/// Bytes in the order in which they arrived.
#[derive(Debug, Clone, Hash)]
pub(crate) enum Piece<B> {
    /// A buffer, and how many of its first bytes are received data.
    Slot(B, usize),
    /// A copy.
    Copied(Vec<u8>),
}

impl<B: AsRef<[u8]>> Piece<B> {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Slot(buffer, len) => buffer.as_ref().get(..*len).unwrap_or_default(),
            Self::Copied(bytes) => bytes,
        }
    }

    /// The number of bytes, and their buffer if they are not a copy.
    pub(crate) fn into_parts(self) -> (usize, Option<B>) {
        match self {
            Self::Slot(buffer, len) => (len, Some(buffer)),
            Self::Copied(bytes) => (bytes.len(), None),
        }
    }
}

/// See the module's description.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Inbox<B>(VecDeque<Piece<B>>);

impl<B> Default for Inbox<B> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<B> Inbox<B> {
    /// Adds the first `len` bytes of a buffer.
    pub(crate) fn keep(&mut self, buffer: Option<B>, len: usize) {
        self.0.extend(buffer.map(|buffer| Piece::Slot(buffer, len)));
    }

    /// Adds a copy of `bytes`.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        match self.0.back_mut() {
            Some(Piece::Copied(last)) if last.len() + bytes.len() <= MERGE => {
                last.extend_from_slice(bytes);
            }
            _ if bytes.is_empty() => {}
            Some(Piece::Copied(_) | Piece::Slot(..)) | None => {
                self.0.push_back(Piece::Copied(bytes.to_vec()));
            }
        }
    }

    /// Whether there is nothing to read.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the oldest piece.
    pub(crate) fn pop(&mut self) -> Option<Piece<B>> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut inbox = Inbox::default();
        inbox.copy(b"ab");
        inbox.copy(b"");
        inbox.copy(b"cd");
        inbox.keep(Some(b"efgh".to_vec()), 2);
        inbox.copy(b"gh");
        let mut pieces = Vec::new();
        while let Some(piece) = inbox.pop() {
            pieces.push(piece.bytes().to_vec());
        }
        assert_eq!(pieces, [&b"abcd"[..], b"ef", b"gh"]);
    }

    #[test]
    fn a_million_tiny_packets_are_few_pieces() {
        let mut inbox = Inbox::<Vec<u8>>::default();
        (0..1_000_000).for_each(|_| inbox.copy(b"x"));
        assert!(inbox.0.len() <= 16);
    }
}
