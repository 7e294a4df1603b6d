//! Compresses layers for export, each only once.
//!
//! The law: equal layers and settings give equal bytes. A compressed layer is kept in the store as a
//! blob, with a fact that refers to it, so the next export only copies it. If the blob is missing, it is
//! made again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

use exec::CancelScope;
use flate2::GzBuilder;
use oci::{Descriptor, media_type};
use store::{BlobWriter, DiffId, Digest, Hasher, Store};

use super::ExportError;
use super::spec::{Compression, MediaTypes};
use crate::event::{Progress, ProgressFn, short_digest};

/// Unit of copying.
const PIECE: usize = 256 << 10;
/// Operating system in gzip headers: unknown.
const GZIP_SYSTEM: u8 = 255;

/// What workers share.
pub(super) struct Job<'a> {
    pub(super) store: &'a Store,
    pub(super) progress: &'a ProgressFn<'a>,
    pub(super) scope: &'a CancelScope,
}

/// A blob of the exported image.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    /// Its content.
    pub(super) bytes: Bytes,
}

/// The content of a [`Blob`].
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// A layer in the store.
    Layer(DiffId),
    /// A blob in the store.
    Stored(Digest),
    /// These bytes.
    Here(Vec<u8>),
}

/// The layers in the requested form, in order. A layer that occurs several times is compressed once.
pub(super) fn layers(
    job: &Job<'_>,
    layers: &[DiffId],
    compression: Compression,
    types: MediaTypes,
) -> Result<Vec<Blob>, ExportError> {
    let mut distinct = layers.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done = exec::each(
        &distinct,
        threads,
        job.scope,
        || Ok(()),
        |(), layer| Ok::<_, ExportError>((*layer, one(job, *layer, compression, types)?)),
    )?;
    let by_id: BTreeMap<DiffId, Blob> = done.into_iter().collect();
    layers
        .iter()
        .map(|layer| {
            by_id
                .get(layer)
                .cloned()
                .ok_or(ExportError::LayerGone(*layer))
        })
        .collect()
}

fn one(
    job: &Job<'_>,
    layer: DiffId,
    compression: Compression,
    types: MediaTypes,
) -> Result<Blob, ExportError> {
    let base = match types {
        MediaTypes::Oci => media_type::LAYER,
        MediaTypes::Docker => media_type::DOCKER_LAYER,
    };
    let size = job
        .store
        .layer(layer)?
        .ok_or(ExportError::LayerGone(layer))?
        .size;
    let (suffix, fact) = match (compression, types) {
        (Compression::None, _) => {
            return Ok(Blob {
                descriptor: Descriptor::new(base, layer.digest(), size),
                bytes: Bytes::Layer(layer),
            });
        }
        (Compression::Gzip(level), MediaTypes::Oci) => ("+gzip", format!("gzip-{level}")),
        (Compression::Gzip(level), MediaTypes::Docker) => (".gzip", format!("gzip-{level}")),
        (Compression::Zstd(level), _) => ("+zstd", format!("zstd-{level}")),
    };
    let (digest, length) = match known(job.store, &fact, layer)? {
        Some(known) => known,
        None => {
            let made = compress(job, layer, size, compression)?;
            job.store
                .set_fact(&fact, &layer.to_string(), &made.0.to_string())?;
            made
        }
    };
    Ok(Blob {
        descriptor: Descriptor::new(&format!("{base}{suffix}"), digest, length),
        bytes: Bytes::Stored(digest),
    })
}

/// The result of an earlier export, if it is still in the store.
fn known(store: &Store, fact: &str, layer: DiffId) -> Result<Option<(Digest, u64)>, ExportError> {
    let Some(text) = store.fact(fact, &layer.to_string())? else {
        return Ok(None);
    };
    let Ok(digest) = text.parse::<Digest>() else {
        return Ok(None);
    };
    Ok(store.open_blob(digest)?.map(|(_, length)| (digest, length)))
}

fn compress(
    job: &Job<'_>,
    layer: DiffId,
    size: u64,
    compression: Compression,
) -> Result<(Digest, u64), ExportError> {
    let out = job.store.blob_writer("compressed")?;
    let what = format!("{} compressing", short_digest(layer.digest()));
    let source = Source {
        file: job.store.open_layer(layer)?,
        size,
        digest: layer.digest(),
        what,
    };
    let out = match compression {
        Compression::Gzip(level) => {
            let mut encoder = GzBuilder::new()
                .mtime(0)
                .operating_system(GZIP_SYSTEM)
                .write(out, flate2::Compression::new(level));
            copy(job, source, &mut encoder).map_err(into_store)?;
            encoder.finish().map_err(ExportError::Compress)?
        }
        Compression::Zstd(level) => {
            let mut encoder = zstd::stream::write::Encoder::new(out, level)
                .and_then(|mut encoder| {
                    encoder.include_checksum(true)?;
                    encoder.set_pledged_src_size(Some(size))?;
                    Ok(encoder)
                })
                .map_err(ExportError::Compress)?;
            copy(job, source, &mut encoder).map_err(into_store)?;
            encoder.finish().map_err(ExportError::Compress)?
        }
        Compression::None => {
            let mut out: BlobWriter = out;
            copy(job, source, &mut out).map_err(into_store)?;
            out
        }
    };
    Ok(out.finish()?)
}

/// Adds that the output is the store.
fn into_store(error: ExportError) -> ExportError {
    error.at(ExportError::Compress)
}

/// Content with its expected digest.
pub(super) struct Source {
    file: File,
    size: u64,
    digest: Digest,
    what: String,
}

impl Source {
    /// Opens a blob for copying.
    pub(super) fn open(store: &Store, blob: &Blob) -> Result<Option<Self>, ExportError> {
        let file = match &blob.bytes {
            Bytes::Layer(layer) => store.open_layer(*layer)?,
            Bytes::Stored(digest) => {
                let found = store.open_blob(*digest)?;
                found.ok_or(ExportError::BlobGone(*digest))?.0
            }
            Bytes::Here(_) => return Ok(None),
        };
        let Descriptor { digest, size, .. } = blob.descriptor;
        let what = format!("{} writing", short_digest(digest));
        Ok(Some(Self {
            file,
            size,
            digest,
            what,
        }))
    }
}

/// Copies all of `source` and checks its digest, because a result must not contain bytes that were
/// damaged on disk.
pub(super) fn copy(
    job: &Job<'_>,
    source: Source,
    out: &mut (impl Write + ?Sized),
) -> Result<(), ExportError> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut done: u64 = 0;
    let mut bytes = source.file.take(source.size);
    loop {
        if job.scope.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        let count = match bytes.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ExportError::ReadStore(error)),
        };
        let read = piece.get(..count).unwrap_or_default();
        hasher.update(read);
        out.write_all(read).map_err(ExportError::Output)?;
        done = done.saturating_add(count as u64);
        (job.progress)(Progress {
            what: source.what.clone(),
            current: done,
            total: source.size,
        });
    }
    if hasher.finish() != source.digest {
        return Err(ExportError::Damaged(source.digest));
    }
    Ok(())
}
