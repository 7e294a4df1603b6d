//! A body that arrives in pieces and is verified on the way.

use xxhash_rust::xxh3::Xxh3;

use super::{FrameError, Header};

/// Verifies a body that arrives in pieces. Whoever uses a piece before [`Self::finish`] must be
/// able to undo that.
#[derive(Clone)]
pub struct Body {
    header: Header,
    hasher: Xxh3,
    left: u32,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { header, left, .. } = self;
        write!(f, "Body {{ {left} bytes left of {header:?} }}")
    }
}

impl Body {
    /// Starts with the header of the frame and the hash of that header.
    pub(super) fn new(header: Header, hasher: Xxh3) -> Self {
        Self {
            left: header.len,
            header,
            hasher,
        }
    }

    /// How many bytes are missing, at most [`Kind::max_body`](super::Kind::max_body).
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Takes as much of `bytes` as belongs to this body, and returns it.
    pub fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX);
        let piece = bytes.get(..len).unwrap_or(bytes);
        if self.header.kind.is_covered() {
            self.hasher.update(piece);
        }
        self.left -= u32::try_from(piece.len()).unwrap_or(self.left);
        piece
    }

    /// Compares the checksum.
    ///
    /// # Errors
    /// If header and body do not match the checksum, or part of the body is missing.
    pub fn finish(self) -> Result<Header, FrameError> {
        if self.left > 0 || self.hasher.digest() != self.header.check {
            return Err(FrameError::Corrupt(self.header.kind));
        }
        Ok(self.header)
    }
}
