//! Takes one layer of an image into the store.
//!
//! The law: bytes flow from the source through the decompressor into the ingest in one pass, and
//! the layer is committed only when the compressed bytes have the length and the digest that the
//! manifest says. What a small blob can unpack to has a bound.

use std::io::{self, BufRead, BufReader, Read, Write};

use sha2::{Digest as _, Sha256};
use store::{DiffId, Digest, Layer, LayerWriter, Store};

use super::error::ImageError;
use super::manifest::Descriptor;
use super::source::Connection;
use super::{Progress, ProgressFn};
use crate::halt::Halt;

/// Unit of copying.
const PIECE: usize = 256 << 10;
/// Largest unpacked layer.
const MAX_UNPACKED: u64 = 128 << 30;
/// Any layer may unpack to this much.
const FREE_UNPACKED: u64 = 1 << 30;
/// Beyond [`FREE_UNPACKED`], a layer may unpack to this many times its length; gzip, the usual
/// form, cannot reach 1100.
const MAX_RATIO: u64 = 1100;
/// Largest window of a zstd stream, as a power of two: what the format's own tool accepts.
const ZSTD_WINDOW: u32 = 27;

/// What [`take_in`] needs to know.
pub(crate) struct Job<'a> {
    pub(crate) store: &'a Store,
    /// Name of the image.
    pub(crate) name: &'a str,
    pub(crate) progress: &'a ProgressFn<'a>,
    pub(crate) halt: &'a Halt,
}

/// Reads, unpacks, verifies and stores a layer.
pub(crate) fn take_in(
    job: &Job<'_>,
    connection: &Connection<'_>,
    layer: &Descriptor,
    expected: DiffId,
) -> Result<Layer, ImageError> {
    let mut blob = Counted {
        inner: connection.blob(layer)?,
        job,
        layer,
        received: 0,
        hasher: Sha256::new(),
        failure: None,
    };
    let mut writer = job.store.layer_writer(&format!("pull {}", job.name))?;
    let copied = unpack(&mut blob, &mut writer, layer.size);
    // What the decompressor left unread, and what an error left, belongs to the digest too.
    let drained = io::copy(&mut blob, &mut io::sink());
    if let Some(error) = blob.failure.take() {
        writer.abandon();
        return Err(connection.explain(layer, error));
    }
    drop(drained);
    if job.halt.is_stopped() {
        writer.abandon();
        return Err(ImageError::Cancelled);
    }
    let actual = Digest(blob.hasher.finalize().into());
    if actual != layer.digest {
        writer.abandon();
        return Err(ImageError::Damaged {
            name: job.name.to_owned(),
            what: format!("layer {}", layer.digest),
            expected: layer.digest,
            actual,
        });
    }
    commit(job, writer, copied, layer, expected)
}

fn commit(
    job: &Job<'_>,
    writer: LayerWriter,
    copied: Result<(), Trouble>,
    layer: &Descriptor,
    expected: DiffId,
) -> Result<Layer, ImageError> {
    let ingest = |source| ImageError::Ingest {
        name: job.name.to_owned(),
        layer: layer.digest,
        source,
    };
    match copied {
        // A refused write sticks, and finish() says why.
        Ok(()) | Err(Trouble::Write) => {}
        Err(Trouble::Unpack(reason)) => {
            writer.abandon();
            return Err(ImageError::Unusable {
                name: job.name.to_owned(),
                reason: format!("layer {} cannot be unpacked ({reason})", layer.digest),
            });
        }
    }
    // Only now is the layer visible, under the digest that it really has.
    let stored = writer.finish().map_err(ingest)?;
    if stored.diff_id != expected {
        return Err(ImageError::Unusable {
            name: job.name.to_owned(),
            reason: format!(
                "layer {} unpacks to {}, and the configuration says {expected}",
                layer.digest, stored.diff_id
            ),
        });
    }
    Ok(stored)
}

/// Why unpacking stopped.
enum Trouble {
    /// The compressed stream is at fault.
    Unpack(String),
    /// The ingest refused it; the writer knows why.
    Write,
}

fn unpack(
    blob: &mut Counted<'_, '_>,
    writer: &mut LayerWriter,
    compressed: u64,
) -> Result<(), Trouble> {
    let halt = blob.job.halt;
    let limit =
        MAX_UNPACKED.min(FREE_UNPACKED.saturating_add(compressed.saturating_mul(MAX_RATIO)));
    let mut plain = decompressor(BufReader::with_capacity(PIECE, blob))
        .map_err(|error| Trouble::Unpack(error.to_string()))?;
    let mut piece = vec![0; PIECE];
    let mut total: u64 = 0;
    loop {
        // A little input can unpack to very much, so it does not suffice to look when reading.
        if halt.is_stopped() {
            return Err(Trouble::Unpack("stopped".to_owned()));
        }
        let count = match plain.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Trouble::Unpack(error.to_string())),
        };
        total = total.saturating_add(count as u64);
        if total > limit {
            return Err(Trouble::Unpack(format!(
                "its {compressed} bytes unpack to more than {limit}"
            )));
        }
        let bytes = piece.get(..count).unwrap_or_default();
        writer.write_all(bytes).map_err(|_| Trouble::Write)?;
    }
}

/// Finds out the compression by the first bytes, since media types are often wrong, and what comes
/// out is verified anyway.
fn decompressor<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
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

/// Hashes, counts and reports what is read, and stops at the announced length or when told to.
struct Counted<'a, 'b> {
    inner: Box<dyn Read + 'a>,
    job: &'a Job<'b>,
    layer: &'a Descriptor,
    received: u64,
    hasher: Sha256,
    /// The first error of the source, which decompressors would hide.
    failure: Option<io::Error>,
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() || self.job.halt.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let left = self.layer.size.saturating_sub(self.received);
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = match self.inner.read(buffer.get_mut(..most).unwrap_or_default()) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let shown = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                return Err(shown);
            }
        };
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.received = self.received.saturating_add(count as u64);
        (self.job.progress)(Progress {
            what: format!("{} pulling", short_digest(self.layer.digest)),
            current: self.received,
            total: self.layer.size,
        });
        Ok(count)
    }
}

/// A digest as shown in progress: enough of it to tell layers apart.
pub(crate) fn short_digest(digest: Digest) -> String {
    let hex = digest.hex();
    format!("sha256:{}", hex.get(..12).unwrap_or(&hex))
}
