//! The compression of a layer, and how much a compressed stream may unpack to.
//!
//! The law: a stream from strangers is cut off when its content is far larger than its length can
//! explain, before that has filled the disk. Real layers and archives never come near.

use std::io::{self, BufRead, Read};

use thiserror::Error;

/// Largest content of any stream, in bytes.
const MAX: u64 = 128 << 30;
/// Any stream may unpack to this many bytes.
pub const BASE: u64 = 1 << 30;
/// Beyond the base, a stream may unpack to this many times its length. Programs and texts reach about
/// ten; a file of zeroes reaches 1000 with gzip and more with others, so the base leaves space for some.
const RATIO: u64 = 100;
/// Largest window of a zstd stream, as a power of two: what the `zstd` command accepts.
const ZSTD_WINDOW: u32 = 27;

/// How much may still come out of one stream.
#[derive(Debug)]
pub struct DecompressionLimit {
    compressed: u64,
    limit: u64,
    left: u64,
}

/// A stream unpacks to more than it may.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("it unpacks to more than {limit} bytes, the limit for {compressed} compressed bytes")]
pub struct LimitExceeded {
    compressed: u64,
    limit: u64,
}

impl DecompressionLimit {
    /// The limit of a stream of `compressed` bytes.
    #[must_use]
    pub fn new(compressed: u64) -> Self {
        Self::with_base(compressed, BASE)
    }

    /// The same with another base than [`BASE`].
    #[must_use]
    pub fn with_base(compressed: u64, base: u64) -> Self {
        let by_ratio = compressed.saturating_mul(RATIO);
        let limit = MAX.min(base.saturating_add(by_ratio));
        Self {
            compressed,
            limit,
            left: limit,
        }
    }

    /// Counts bytes that came out, before they are passed on.
    ///
    /// # Errors
    /// When they are more than may come out.
    pub fn take(&mut self, n_bytes: usize) -> Result<(), LimitExceeded> {
        let left = self.left.checked_sub(n_bytes as u64);
        self.left = left.ok_or(LimitExceeded {
            compressed: self.compressed,
            limit: self.limit,
        })?;
        Ok(())
    }
}

/// Unpacks gzip and zstd, and passes anything else on. The first bytes decide, since media types are
/// often wrong. What comes out is not limited: see [`DecompressionLimit`].
///
/// # Errors
/// Those of `input`.
pub fn decompressor<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let head = input.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_grows_with_the_length_up_to_a_maximum() {
        assert_eq!(DecompressionLimit::new(0).limit, BASE);
        assert_eq!(DecompressionLimit::new(1000).limit, BASE + 100_000);
        assert_eq!(DecompressionLimit::new(u64::MAX).limit, MAX);
    }

    #[test]
    fn six_gigabytes_of_zeroes_are_refused_long_before_their_end() {
        let length_with_gzip = (6 << 30) / 1030;
        assert!(DecompressionLimit::new(length_with_gzip).limit < 2 << 30);
    }

    #[test]
    fn bytes_within_the_limit_pass_and_the_next_one_does_not() {
        let mut limit = DecompressionLimit::with_base(0, 16 << 20);
        assert_eq!(limit.take((16 << 20) - 1), Ok(()));
        assert_eq!(limit.take(1), Ok(()));
        let text = limit.take(1).unwrap_err().to_string();
        assert_eq!(
            text,
            "it unpacks to more than 16777216 bytes, the limit for 0 compressed bytes"
        );
    }

    #[test]
    fn the_first_bytes_decide_on_the_format() {
        let plain = b"some text".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
        let twice = [plain.as_slice(), &plain].concat();
        for (blob, expected) in [
            (gzip.clone(), &plain),
            ([gzip.as_slice(), &gzip].concat(), &twice),
            (zstd.clone(), &plain),
            ([zstd.as_slice(), &zstd].concat(), &twice),
            (plain.clone(), &plain),
        ] {
            let mut out = Vec::new();
            decompressor(blob.as_slice())
                .unwrap()
                .read_to_end(&mut out)
                .unwrap();
            assert!(out == *expected);
        }
    }
}
