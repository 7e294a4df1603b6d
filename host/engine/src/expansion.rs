//! How much a compressed stream may unpack to.
//!
//! The law: a stream from strangers is cut off when it has become far more than its length can
//! explain, before that has filled the disk. Real layers and archives never come near.

use thiserror::Error;

/// Largest content of any stream.
const MOST: u64 = 128 << 30;
/// Any stream may unpack to this much. In tests of this crate it is little, so that they need not
/// write a gigabyte.
const FREE: u64 = if cfg!(test) { 16 << 20 } else { 1 << 30 };
/// Beyond [`FREE`], a stream may unpack to this many times its length; gzip, the usual form, cannot
/// reach 1100. Others can, with zeroes, but not with a gigabyte of anything useful.
const RATIO: u64 = 1100;

/// What may still come out of one stream.
#[derive(Debug)]
pub(crate) struct Allowance {
    compressed: u64,
    limit: u64,
    left: u64,
}

/// A stream unpacks to more than it may.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "it unpacks to more than {limit} bytes, the limit for one of {compressed} bytes ({} MiB and \
     {RATIO} times its length, but at most {} GiB)",
    FREE >> 20,
    MOST >> 30
)]
pub(crate) struct TooMuch {
    compressed: u64,
    limit: u64,
}

impl Allowance {
    /// That of a stream of this length.
    pub(crate) fn of(compressed: u64) -> Self {
        let by_ratio = compressed.saturating_mul(RATIO);
        let limit = MOST.min(FREE.saturating_add(by_ratio));
        Self {
            compressed,
            limit,
            left: limit,
        }
    }

    /// Counts bytes that came out, before they are passed on.
    pub(crate) fn take(&mut self, n_bytes: usize) -> Result<(), TooMuch> {
        let left = self.left.checked_sub(n_bytes as u64);
        self.left = left.ok_or(TooMuch {
            compressed: self.compressed,
            limit: self.limit,
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_grows_with_the_length_up_to_an_end() {
        assert_eq!(Allowance::of(0).limit, FREE);
        assert_eq!(Allowance::of(1000).limit, FREE + 1_100_000);
        assert_eq!(Allowance::of(u64::MAX).limit, MOST);
    }

    #[test]
    fn what_is_within_the_limit_passes_and_the_next_byte_does_not() {
        let mut allowance = Allowance::of(0);
        let free = usize::try_from(FREE).unwrap();
        assert_eq!(allowance.take(free - 1), Ok(()));
        assert_eq!(allowance.take(1), Ok(()));
        let text = allowance.take(1).unwrap_err().to_string();
        assert_eq!(
            text,
            "it unpacks to more than 16777216 bytes, the limit for one of 0 bytes (16 MiB and 1100 \
             times its length, but at most 128 GiB)"
        );
    }
}
