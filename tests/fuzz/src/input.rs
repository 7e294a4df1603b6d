//! Bytes, read as a program.

/// The bytes that are left. Every number comes from them; when there are none, it is zero.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes` from the start.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `n` bytes, or all that are left.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(n.min(self.0.len()));
        self.0 = later;
        now
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A number below `sides`, which is at most 256.
    pub fn roll(&mut self, sides: usize) -> usize {
        usize::from(self.byte()) % sides.max(1)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        let mut all = [0; 8];
        let some = self.bytes(8);
        all[..some.len()].copy_from_slice(some);
        u64::from_le_bytes(all)
    }

    /// One of these, or sometimes any number at all.
    pub fn nearly(&mut self, from: &[u64]) -> u64 {
        match usize::from(self.byte()) {
            255 => self.number(),
            n => from[n % from.len()],
        }
    }
}
