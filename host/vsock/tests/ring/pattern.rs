//! What the tests send, and how they check that it came.

/// The byte at `offset` of the stream that tests send: any loss, repetition or swap shows.
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

/// Compares a stream with the pattern as it comes, in pieces of any length.
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
