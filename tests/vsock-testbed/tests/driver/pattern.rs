//! What the tests send, and how they check what arrives.

/// The word at `offset` of the stream that tests send: any loss, repetition or swap is detected.
pub(crate) fn pattern(offset: u64) -> [u8; 8] {
    (offset / 8)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_le_bytes()
}

/// `len` bytes of the pattern, both numbers multiples of eight.
pub(crate) fn piece(offset: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|word| pattern(offset + word * 8))
        .collect()
}

/// Compares a stream with the pattern as it arrives, in pieces of any length.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) offset: u64,
}

impl Checker {
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = usize::try_from(self.offset % 8).unwrap();
            if within == 0 && bytes.len() >= 8 {
                let (words, rest) = bytes.as_chunks::<8>();
                for word in words {
                    assert_eq!(*word, pattern(self.offset), "at {}", self.offset);
                    self.offset += 8;
                }
                bytes = rest;
            } else {
                assert_eq!(bytes[0], pattern(self.offset)[within], "at {}", self.offset);
                self.offset += 1;
                bytes = &bytes[1..];
            }
        }
    }
}

/// A stream of any length, made of pieces of one block: it costs nothing to make, and a lost, repeated
/// or swapped piece is detected like a wrong byte.
#[derive(Debug)]
pub(crate) struct Pieces {
    block: vsock_device::Bytes,
}

impl Pieces {
    /// Bytes of a piece.
    pub(crate) const LEN: usize = 1 << 20;

    /// How many different pieces there are.
    const KINDS: u64 = 4093;

    pub(crate) fn new() -> Self {
        let words = Self::KINDS * 8 + Self::LEN as u64;
        Self {
            block: piece(0, usize::try_from(words).unwrap()).into(),
        }
    }

    /// Piece number `n`.
    pub(crate) fn get(&self, n: u64) -> vsock_device::Bytes {
        let start = usize::try_from(n % Self::KINDS).unwrap() * 8;
        self.block.slice(start..start + Self::LEN)
    }
}

/// Compares a stream with [`Pieces`].
#[derive(Debug)]
pub(crate) struct PieceChecker {
    pieces: Pieces,
    pub(crate) offset: u64,
}

impl PieceChecker {
    pub(crate) fn new() -> Self {
        Self {
            pieces: Pieces::new(),
            offset: 0,
        }
    }

    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (n, within) = (
                self.offset / Pieces::LEN as u64,
                usize::try_from(self.offset % Pieces::LEN as u64).unwrap(),
            );
            let piece = self.pieces.get(n);
            let len = bytes.len().min(piece.len() - within);
            let (now, rest) = bytes.split_at(len);
            assert!(now == &piece[within..within + len], "in piece {n}");
            self.offset += len as u64;
            bytes = rest;
        }
    }
}
