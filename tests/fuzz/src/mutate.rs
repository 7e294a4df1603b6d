//! Changes of bytes without a guide: for machines that have no coverage to go by.

/// Numbers that are different and always the same.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % sides.max(1)
    }

    /// Some of `seeds`, changed here and there and joined now and then; at most `max` bytes.
    pub fn mutate(&mut self, seeds: &[Vec<u8>], max: usize) -> Vec<u8> {
        let mut bytes = seeds[self.roll(seeds.len())].clone();
        if self.roll(4) == 0 {
            let other = &seeds[self.roll(seeds.len())];
            let (at, from) = (self.roll(bytes.len() + 1), self.roll(other.len() + 1));
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        for _ in 0..=self.roll(8) {
            self.change(&mut bytes);
        }
        bytes.truncate(max);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.roll(bytes.len() + 1);
        let n = 1 + self.roll(16);
        let end = (at + n).min(bytes.len());
        match self.roll(6) {
            0 => bytes.truncate(at.max(1)),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => {
                let piece: Vec<u8> = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let random: Vec<u8> = (0..n).map(|_| self.random()).collect();
                bytes.splice(at..at, random);
            }
            _ => {
                let random = self.random();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random;
                }
            }
        }
    }

    /// Any byte, and those at the ends more often.
    fn random(&mut self) -> u8 {
        match self.roll(4) {
            0 => [0, 1, 0x7F, 0x80, 0xFF][self.roll(5)],
            _ => u8::try_from(self.roll(256)).unwrap_or(0),
        }
    }
}
