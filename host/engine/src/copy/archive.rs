//! Archives that ADD unpacks: detection and decompression.
//!
//! An archive is recognised by its first bytes, never by its name.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;

/// Maximum memory for decompression: what `xz -9` and `zstd --ultra` need, and a little more.
const MAX_WINDOW_LOG: u32 = 27;
/// The same for xz, in KiB.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Compression {
    /// Detects the compression by the first bytes of a file.
    fn of(start: &[u8]) -> Self {
        let magic: [(&[u8], Self); 4] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"BZh", Self::Bzip2),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
        ];
        let found = magic.iter().find(|(magic, _)| start.starts_with(magic));
        found.map_or(Self::Plain, |(_, compression)| *compression)
    }

    /// A reader of the decompressed content.
    pub(super) fn reader<'r>(self, from: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        Ok(match self {
            Self::Plain => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(from)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                BufReader::new(from),
                true,
                MAX_XZ_MEMORY,
            )),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(from)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// The compression of `file`, if it starts like a tar archive.
pub(super) fn detect(mut file: impl Read) -> Option<Compression> {
    let mut start = [0; 6];
    let n_bytes = fill(&mut file, &mut start).ok()?;
    let start = start.get(..n_bytes)?;
    let compression = Compression::of(start);
    let mut content = compression.reader(start.chain(file)).ok()?;
    let mut header = [0; 512];
    let whole = fill(&mut content, &mut header).ok()? == header.len();
    (whole && layer::is_header(&header)).then_some(compression)
}

fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n_bytes) => filled += n_bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use layer::{Attributes, Style, Writer};

    use super::*;
    use store::EntryKind;

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut tar = Writer::new(&mut bytes, Style::Copy);
        tar.header(b"d", &Attributes::default(), &EntryKind::Directory)
            .expect("a header");
        tar.finish().expect("an end");
        bytes
    }

    #[test]
    fn an_archive_is_known_by_its_first_header() {
        let plain = archive();
        let plain = plain.as_slice();
        assert_eq!(detect(plain), Some(Compression::Plain));
        let gzip = flate2::read::GzEncoder::new(plain, flate2::Compression::fast());
        assert_eq!(detect(gzip), Some(Compression::Gzip));
        let zstd = zstd::encode_all(plain, 1).expect("compressed");
        assert_eq!(detect(zstd.as_slice()), Some(Compression::Zstd));
        let bzip2 = bzip2::read::BzEncoder::new(plain, bzip2::Compression::fast());
        assert_eq!(detect(bzip2), Some(Compression::Bzip2));
    }

    #[test]
    fn anything_else_is_a_file() {
        let mut damaged = archive();
        damaged[3] ^= 1;
        let text = flate2::read::GzEncoder::new(b"text".as_slice(), flate2::Compression::fast());
        for file in [
            Box::new(damaged.as_slice()) as Box<dyn Read>,
            Box::new(text),
            Box::new(b"".as_slice()),
            Box::new([0; 4096].as_slice()),
            Box::new(b"\x1f\x8b".as_slice()),
            Box::new(b"\x28\xb5\x2f\xfd, only in name".as_slice()),
            Box::new([b'a'; 600].as_slice()),
        ] {
            assert_eq!(detect(file), None);
        }
    }
}
