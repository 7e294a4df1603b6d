//! Takes one layer of an image into the store.
//!
//! The law: bytes flow from the source through the decompressor into the ingest in one pass, and
//! the layer is committed only when the compressed bytes have the length and the digest that the
//! manifest says, and the unpacked ones the digest that the configuration says. What a small blob
//! can unpack to has a bound.

use std::io::{self, BufRead, BufReader, Read};

use exec::CancelScope;
use sha2::{Digest as _, Sha256};
use store::{DiffId, Digest, IngestError, Layer, LayerWriter, Store};

use super::ahead::{Gone, Pipe, write_ahead};
use super::error::ImageError;
use super::manifest::Descriptor;
use super::source::Connection;
use super::{Progress, ProgressFn};
use crate::expansion::Allowance;

/// Unit of reading.
const PIECE: usize = 256 << 10;
/// Largest window of a zstd stream, as a power of two: what the format's own tool accepts.
const ZSTD_WINDOW: u32 = 27;

/// What [`take_in`] needs to know.
pub(crate) struct Job<'a> {
    pub(crate) store: &'a Store,
    /// Name of the image.
    pub(crate) name: &'a str,
    pub(crate) progress: &'a ProgressFn<'a>,
    pub(crate) scope: &'a CancelScope,
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
    let (unpacked, written) = write_ahead(&mut writer, |pipe| unpack(&mut blob, &pipe, layer.size));
    let unpacked = match (unpacked, written) {
        (_, Err(_)) => Err(refused(job, layer, writer)),
        (Ok(()), Ok(())) => Ok(writer),
        (Err(reason), Ok(())) => {
            writer.abandon();
            Err(broken(job, layer, &reason))
        }
    };
    let unpacked = match unpacked {
        // The layer is not to blame, so there is no need to see the rest of it.
        Err(error) if is_store(&error) => return Err(error),
        other => other,
    };
    if let Err(error) = verify(job, connection, layer, blob) {
        if let Ok(writer) = unpacked {
            writer.abandon();
        }
        return Err(error);
    }
    commit(job, layer, expected, unpacked?)
}

/// Makes the layer visible, if it is the one that the configuration names.
fn commit(
    job: &Job<'_>,
    layer: &Descriptor,
    expected: DiffId,
    writer: LayerWriter,
) -> Result<Layer, ImageError> {
    let written = writer
        .written()
        .map_err(|source| ingest(job, layer, source))?;
    let actual = written.diff_id();
    if actual == expected {
        return written
            .finish()
            .map_err(|source| ingest(job, layer, source));
    }
    written.abandon();
    Err(ImageError::Unusable {
        name: job.name.to_owned(),
        reason: format!(
            "layer {} unpacks to {actual}, and the configuration says {expected}",
            layer.digest
        ),
    })
}

/// Reads what unpacking has left unread, and makes sure that the blob was the right one. If it was
/// not, this is the better explanation of any trouble before.
fn verify(
    job: &Job<'_>,
    connection: &Connection<'_>,
    layer: &Descriptor,
    mut blob: Counted<'_, '_>,
) -> Result<(), ImageError> {
    let drained = io::copy(&mut blob, &mut io::sink());
    if let Some(error) = blob.failure.take() {
        return Err(connection.explain(layer, error));
    }
    if job.scope.is_stopped() {
        return Err(ImageError::Cancelled);
    }
    drained.map_err(|error| broken(job, layer, &error.to_string()))?;
    let actual = Digest(blob.hasher.finalize().into());
    if actual == layer.digest {
        return Ok(());
    }
    Err(ImageError::Damaged {
        name: job.name.to_owned(),
        what: format!("layer {}", layer.digest),
        expected: layer.digest,
        actual,
    })
}

fn is_store(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Ingest {
            source: IngestError::Store(_),
            ..
        }
    )
}

fn broken(job: &Job<'_>, layer: &Descriptor, reason: &str) -> ImageError {
    ImageError::Unusable {
        name: job.name.to_owned(),
        reason: format!("layer {} cannot be unpacked ({reason})", layer.digest),
    }
}

/// A refused write sticks, and finish() says why.
fn refused(job: &Job<'_>, layer: &Descriptor, writer: LayerWriter) -> ImageError {
    match writer.finish() {
        Err(source) => ingest(job, layer, source),
        Ok(_) => broken(job, layer, "the store refused it"),
    }
}

fn ingest(job: &Job<'_>, layer: &Descriptor, source: IngestError) -> ImageError {
    ImageError::Ingest {
        name: job.name.to_owned(),
        layer: layer.digest,
        source,
    }
}

/// Unpacks the blob into the pipe. An error is the reason why the stream is at fault.
fn unpack(blob: &mut Counted<'_, '_>, pipe: &Pipe, compressed: u64) -> Result<(), String> {
    let scope = blob.job.scope;
    let plain = decompressor(BufReader::with_capacity(PIECE, blob)).map_err(text)?;
    pump(plain, pipe, Allowance::of(compressed), scope)
}

/// Moves what is allowed into the pipe.
fn pump(
    mut plain: impl Read,
    pipe: &Pipe,
    mut allowance: Allowance,
    scope: &CancelScope,
) -> Result<(), String> {
    loop {
        // A little input can unpack to very much, so it does not suffice to look when reading.
        if scope.is_stopped() {
            return Err("stopped".to_owned());
        }
        let mut piece = pipe.buffer();
        let count = match plain.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(text(error)),
        };
        allowance
            .take(count)
            .map_err(|too_much| too_much.to_string())?;
        if pipe.put(piece, count) == Err(Gone) {
            // The writer knows why.
            return Ok(());
        }
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
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
        if self.failure.is_some() || self.job.scope.is_stopped() {
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

#[cfg(test)]
mod tests {
    use exec::Cancel;

    use super::*;

    /// Unpacks into memory.
    fn unpacked(blob: &[u8], cancel: &Cancel) -> (Vec<u8>, Result<(), String>) {
        let mut out = Vec::new();
        let scope = CancelScope::new(cancel);
        let plain = decompressor(blob).unwrap();
        let allowance = Allowance::of(blob.len() as u64);
        let (done, written) = write_ahead(&mut out, |pipe| pump(plain, &pipe, allowance, &scope));
        written.unwrap();
        (out, done)
    }

    #[test]
    fn the_form_is_told_by_the_first_bytes() {
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
            let (out, done) = unpacked(&blob, &Cancel::new());
            done.unwrap();
            assert!(out == *expected);
        }
    }

    #[test]
    fn a_small_blob_cannot_unpack_without_bound() {
        let zeros = vec![0; 32 << 20];
        let bomb = zstd::encode_all(zeros.as_slice(), 1).unwrap();
        assert!(bomb.len() < 8000);
        let (out, done) = unpacked(&bomb, &Cancel::new());
        let error = done.unwrap_err();
        assert!(error.contains("it unpacks to more than"), "{error}");
        assert!(out.len() < zeros.len());
    }

    #[test]
    fn unpacking_stops_when_cancelled() {
        let bomb = zstd::encode_all(vec![0; 8 << 20].as_slice(), 1).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        let (out, done) = unpacked(&bomb, &cancel);
        assert_eq!((out.len(), done), (0, Err("stopped".to_owned())));
    }
}
