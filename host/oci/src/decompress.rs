//! The compression of a layer, and how much a compressed stream may unpack to.
//!
//! The law: a stream from strangers is cut off when its content is far larger than its length can
//! explain, before that has filled the disk. Real layers and archives never come near.

use std::io::{self, BufRead, Read};

use thiserror::Error;

/// Largest window of a zstd stream, as a power of two: what the `zstd` command accepts.
const ZSTD_WINDOW: u32 = 27;

/// How much a compressed stream may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Largest content of any stream, in bytes.
    pub size: u64,
    /// Any stream may unpack to this many bytes, unless `size` is less.
    pub base: u64,
    /// Beyond the base, a stream may unpack to this many times its length.
    pub ratio: u64,
}

impl UnpackLimits {
    /// The usual limits. Programs and texts are compressed to about a tenth; a file of zeroes to a
    /// thousandth with gzip and to less with others, so the base leaves space for some.
    pub const USUAL: Self = Self {
        size: 128 << 30,
        base: 1 << 30,
        ratio: 100,
    };
}

/// How much may still come out of one stream.
#[derive(Debug)]
pub struct DecompressionLimit {
    exceeded: LimitExceeded,
    left: u64,
}

/// A stream unpacks to more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LimitExceeded {
    /// More than any stream may.
    #[error("it unpacks to more than {limit} bytes, the limit for every layer (--layer-size)")]
    Size {
        /// The most that it may unpack to.
        limit: u64,
    },
    /// More than its length explains.
    #[error(
        "it unpacks to more than {limit} bytes, the limit for {compressed} compressed bytes \
         (--layer-ratio {ratio})"
    )]
    Ratio {
        /// Its length.
        compressed: u64,
        /// The most that it may unpack to.
        limit: u64,
        /// How many times its length that is, beyond the base.
        ratio: u64,
    },
}

impl DecompressionLimit {
    /// The limit of a stream of `compressed` bytes.
    #[must_use]
    pub fn new(limits: UnpackLimits, compressed: u64) -> Self {
        let UnpackLimits { size, base, ratio } = limits;
        let explained = base.saturating_add(compressed.saturating_mul(ratio));
        let exceeded = if size <= explained {
            LimitExceeded::Size { limit: size }
        } else {
            LimitExceeded::Ratio {
                compressed,
                limit: explained,
                ratio,
            }
        };
        Self {
            exceeded,
            left: size.min(explained),
        }
    }

    /// Counts bytes that came out, before they are passed on.
    ///
    /// # Errors
    /// When they are more than may come out.
    pub fn take(&mut self, n_bytes: usize) -> Result<(), LimitExceeded> {
        let left = self.left.checked_sub(n_bytes as u64);
        self.left = left.ok_or(self.exceeded)?;
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

    const SMALL: UnpackLimits = UnpackLimits {
        size: 64 << 20,
        base: 16 << 20,
        ratio: 10,
    };

    fn usual(compressed: u64) -> u64 {
        DecompressionLimit::new(UnpackLimits::USUAL, compressed).left
    }

    #[test]
    fn the_limit_grows_with_the_length_up_to_a_maximum() {
        let UnpackLimits { size, base, .. } = UnpackLimits::USUAL;
        assert_eq!(usual(0), base);
        assert_eq!(usual(1000), base + 100_000);
        assert_eq!(usual(u64::MAX), size);
    }

    #[test]
    fn six_gigabytes_of_zeroes_are_refused_long_before_their_end() {
        let length_with_gzip = (6 << 30) / 1030;
        assert!(usual(length_with_gzip) < 2 << 30);
    }

    #[test]
    fn bytes_within_the_limit_pass_and_the_next_one_does_not() {
        let mut limit = DecompressionLimit::new(SMALL, 0);
        assert_eq!(limit.take((16 << 20) - 1), Ok(()));
        assert_eq!(limit.take(1), Ok(()));
        let text = limit.take(1).unwrap_err().to_string();
        assert_eq!(
            text,
            "it unpacks to more than 16777216 bytes, the limit for 0 compressed bytes (--layer-ratio 10)"
        );
    }

    #[test]
    fn the_option_that_helps_is_named() {
        for (compressed, option) in [(0, "--layer-ratio"), (16 << 20, "--layer-size")] {
            let mut limit = DecompressionLimit::new(SMALL, compressed);
            let text = limit.take(100 << 20).unwrap_err().to_string();
            assert!(text.contains(option), "{compressed}: {text}");
        }
        // The base is no reason to unpack more than any stream may.
        let tiny = UnpackLimits { size: 100, ..SMALL };
        assert_eq!(
            DecompressionLimit::new(tiny, 50).take(101),
            Err(LimitExceeded::Size { limit: 100 })
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
