//! Takes one layer of an image into the store.
//!
//! The law: bytes flow from the source through the decompressor into the ingest in one pass, and
//! the layer is committed only when the compressed bytes have the length and the digest that the
//! manifest states, and the unpacked ones the digest that the configuration states. A small blob
//! cannot unpack without bound.

use std::io::{self, BufReader, Read};

use exec::CancelScope;
use oci::{
    Connection, Descriptor, ImageError,
    decompress::{DecompressionLimit, LimitExceeded, UnpackLimits, decompressor},
};
use store::{DiffId, Hasher, IngestError, Layer, LayerWriter, Store};

use super::ahead::{Gone, Pipe, write_ahead};
use super::error::PullError;
use crate::event::{Progress, ProgressFn, short_digest};

/// Size of a read from the source.
const PIECE: usize = 256 << 10;

/// What [`take_in`] needs to know.
pub(crate) struct Job<'a> {
    pub(crate) store: &'a Store,
    /// Name of the image.
    pub(crate) name: &'a str,
    pub(crate) unpack: UnpackLimits,
    pub(crate) progress: &'a ProgressFn<'a>,
    pub(crate) scope: &'a CancelScope,
}

/// Reads, unpacks, verifies and stores a layer.
pub(crate) fn take_in(
    job: &Job<'_>,
    connection: &Connection<'_>,
    layer: &Descriptor,
    expected: DiffId,
) -> Result<Layer, PullError> {
    let mut blob = CountingReader {
        inner: connection.blob(layer)?,
        job,
        layer,
        received: 0,
        hasher: Hasher::new(),
        failure: None,
    };
    let mut writer = job.store.layer_writer(&format!("pull {}", job.name))?;
    let (unpacked, written) = write_ahead(&mut writer, |pipe| unpack(&mut blob, &pipe, layer.size));
    let unpacked = match (unpacked, written) {
        (_, Err(_)) => Err(refused(job, layer, writer)),
        (Ok(()), Ok(())) => Ok(writer),
        (Err(Failed::Broken(reason)), Ok(())) => {
            writer.abandon();
            Err(broken(job, layer, &reason))
        }
        (Err(Failed::TooLarge(exceeded)), Ok(())) => {
            writer.abandon();
            Err(too_large(job, layer, exceeded))
        }
    };
    let unpacked = match unpacked {
        // The rest of the layer does not matter: nobody wants it, or nothing is wrong with it.
        Err(error) if is_final(&error) => return Err(error),
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

/// Makes the layer visible, if it is the one in the configuration.
fn commit(
    job: &Job<'_>,
    layer: &Descriptor,
    expected: DiffId,
    writer: LayerWriter,
) -> Result<Layer, PullError> {
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
    Err(PullError::Image(ImageError::Unusable {
        name: job.name.to_owned(),
        reason: format!(
            "layer {} has diff ID {actual}, but the image configuration says {expected}",
            layer.digest
        ),
    }))
}

/// Reads what unpacking left unread, and verifies the digest of the blob. A wrong digest explains any
/// earlier failure better.
fn verify(
    job: &Job<'_>,
    connection: &Connection<'_>,
    layer: &Descriptor,
    mut blob: CountingReader<'_, '_>,
) -> Result<(), PullError> {
    let drained = io::copy(&mut blob, &mut io::sink());
    if let Some(error) = blob.failure.take() {
        return Err(connection.explain(layer, error).into());
    }
    if job.scope.is_stopped() {
        return Err(ImageError::Cancelled.into());
    }
    drained.map_err(|error| broken(job, layer, &error.to_string()))?;
    let actual = blob.hasher.finish();
    if actual == layer.digest {
        return Ok(());
    }
    Err(PullError::Image(ImageError::Damaged {
        name: job.name.to_owned(),
        what: format!("layer {}", layer.digest),
        expected: layer.digest,
        actual,
    }))
}

fn is_final(error: &PullError) -> bool {
    matches!(
        error,
        PullError::TooLarge { .. }
            | PullError::Ingest {
                source: IngestError::Store(_),
                ..
            }
    )
}

fn too_large(job: &Job<'_>, layer: &Descriptor, source: LimitExceeded) -> PullError {
    PullError::TooLarge {
        name: job.name.to_owned(),
        layer: layer.digest,
        source,
    }
}

fn broken(job: &Job<'_>, layer: &Descriptor, reason: &str) -> PullError {
    PullError::Image(ImageError::Unusable {
        name: job.name.to_owned(),
        reason: format!("layer {} cannot be unpacked ({reason})", layer.digest),
    })
}

/// A refused write is remembered by the writer: `finish` says why.
fn refused(job: &Job<'_>, layer: &Descriptor, writer: LayerWriter) -> PullError {
    match writer.finish() {
        Err(source) => ingest(job, layer, source),
        Ok(_) => broken(job, layer, "the store refused it"),
    }
}

fn ingest(job: &Job<'_>, layer: &Descriptor, source: IngestError) -> PullError {
    PullError::Ingest {
        name: job.name.to_owned(),
        layer: layer.digest,
        source,
    }
}

/// Why a stream was not unpacked to its end.
#[derive(Debug, PartialEq, Eq)]
enum Failed {
    /// What is wrong with it, or why nobody wants it any more.
    Broken(String),
    TooLarge(LimitExceeded),
}

/// Unpacks the blob into the pipe.
fn unpack(blob: &mut CountingReader<'_, '_>, pipe: &Pipe, compressed: u64) -> Result<(), Failed> {
    let Job { scope, unpack, .. } = *blob.job;
    let plain = decompressor(BufReader::with_capacity(PIECE, blob)).map_err(text)?;
    pump(
        plain,
        pipe,
        DecompressionLimit::new(unpack, compressed),
        scope,
    )
}

/// Moves content into the pipe, up to the limit.
fn pump(
    mut plain: impl Read,
    pipe: &Pipe,
    mut limit: DecompressionLimit,
    scope: &CancelScope,
) -> Result<(), Failed> {
    loop {
        // A little input can unpack to very much, so a check when reading is not enough.
        if scope.is_stopped() {
            return Err(Failed::Broken("stopped".to_owned()));
        }
        let mut piece = pipe.buffer();
        let count = match plain.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(text(error)),
        };
        limit.take(count).map_err(Failed::TooLarge)?;
        if pipe.put(piece, count) == Err(Gone) {
            // The writer knows why.
            return Ok(());
        }
    }
}

fn text(error: io::Error) -> Failed {
    Failed::Broken(error.to_string())
}

/// Hashes, counts and reports what is read. Stops at the announced length or when told to.
struct CountingReader<'a, 'b> {
    inner: Box<dyn Read + 'a>,
    job: &'a Job<'b>,
    layer: &'a Descriptor,
    received: u64,
    hasher: Hasher,
    /// The first error of the source. Decompressors would hide it.
    failure: Option<io::Error>,
}

impl Read for CountingReader<'_, '_> {
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

#[cfg(test)]
mod tests {

    use exec::Cancel;

    use super::*;

    /// Unpacks into memory.
    fn unpacked(blob: &[u8], cancel: &Cancel) -> (Vec<u8>, Result<(), Failed>) {
        let mut out = Vec::new();
        let scope = CancelScope::new(cancel);
        let plain = decompressor(blob).unwrap();
        let limits = UnpackLimits {
            base: 16 << 20,
            ..UnpackLimits::USUAL
        };
        let limit = DecompressionLimit::new(limits, blob.len() as u64);
        let (done, written) = write_ahead(&mut out, |pipe| pump(plain, &pipe, limit, &scope));
        written.unwrap();
        (out, done)
    }

    #[test]
    fn a_small_blob_cannot_unpack_without_bound() {
        let zeros = vec![0; 32 << 20];
        let bomb = zstd::encode_all(zeros.as_slice(), 1).unwrap();
        assert!(bomb.len() < 8000);
        let (out, done) = unpacked(&bomb, &Cancel::new());
        assert!(
            matches!(done, Err(Failed::TooLarge(LimitExceeded::Ratio { .. }))),
            "{done:?}"
        );
        assert!(out.len() < zeros.len());
    }

    #[test]
    fn unpacking_stops_when_cancelled() {
        let bomb = zstd::encode_all(vec![0; 8 << 20].as_slice(), 1).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        let (out, done) = unpacked(&bomb, &cancel);
        assert_eq!(
            (out.len(), done),
            (0, Err(Failed::Broken("stopped".to_owned())))
        );
    }
}
