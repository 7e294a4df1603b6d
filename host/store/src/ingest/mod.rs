//! Ingesting a layer: an untrusted tar is checked, hashed, indexed and written in one pass.
//!
//! The law: nothing is visible before [`LayerWriter::finish`] or [`WrittenLayer::finish`] has committed
//! the layer, and a writer that has rejected something rejects everything after it. If the store has
//! the layer already, that one is used; so the name of a result is never locked.

mod sink;

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use layer::{DiffId, Digest, Index, Indexer};

pub(crate) use sink::Sink;

use crate::object::{self, Outcome, PendingObject, Wanted};
use crate::{Hasher, IngestError, Layer, Store, StoreError, content_id, disk};

/// Receives the uncompressed tar of a layer, in pieces of any size.
///
/// If the layer is rejected, `write` fails with an [`io::Error`] that wraps the [`IngestError`], and
/// [`Self::finish`] with the [`IngestError`] itself. If the writer is dropped, its file is removed when
/// the instance ends; [`Self::abandon`] removes it at once.
///
/// ```
/// use std::io::Write as _;
///
/// use layer::{Attributes, EntryKind, Style, Writer};
/// # use store::{OpenOptions, Store};
/// # let root = tempfile::tempdir()?;
/// # let store = Store::open(root.path(), &OpenOptions::default())?;
///
/// let mut tar = Writer::new(Vec::new(), Style::Copy);
/// tar.header(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
/// let tar = tar.finish()?;
///
/// let mut writer = store.layer_writer("[2/2] COPY etc /etc")?;
/// writer.write_all(&tar)?; // in pieces of any size
/// let layer = writer.finish()?;
/// assert_eq!(layer.diff_id.digest(), store::sha256(&tar));
/// assert_eq!(store.index(layer.diff_id)?.entries().len(), 1);
///
/// // What cannot be a layer is rejected.
/// let mut writer = store.layer_writer("[2/2] COPY etc /etc")?;
/// assert!(writer.write_all(&[1; 512]).is_err());
/// assert!(writer.finish().is_err());
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LayerWriter {
    store: Store,
    pending: PendingObject,
    sink: Sink,
    indexer: Indexer<Hasher>,
    rejected: Option<IngestError>,
}

impl Store {
    /// Begins to store a layer, whose uncompressed tar is written to the result. `origin` says where it
    /// comes from, for display.
    ///
    /// # Errors
    /// If it cannot be recorded, or its file cannot be created.
    pub fn layer_writer(&self, origin: &str) -> Result<LayerWriter, StoreError> {
        let (pending, file) = self.begin(object::LAYER, origin)?;
        Ok(LayerWriter::new(self.clone(), pending, file))
    }
}

impl LayerWriter {
    fn new(store: Store, pending: PendingObject, file: File) -> Self {
        Self {
            sink: Sink::new(&store, &pending, file),
            store,
            pending,
            indexer: Indexer::new(),
            rejected: None,
        }
    }

    /// Makes the layer durable and then visible, and leases it.
    ///
    /// # Errors
    /// [`IngestError::Layer`] if the tar cannot be a layer; [`IngestError::Store`] if the store could
    /// not keep it.
    pub fn finish(self) -> Result<Layer, IngestError> {
        self.written()?.finish()
    }

    /// Ends the tar, and makes nothing visible yet, so that the caller can compare the digest.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn written(self) -> Result<WrittenLayer, IngestError> {
        let Self {
            store,
            pending,
            sink,
            indexer,
            rejected,
        } = self;
        let done = match rejected {
            Some(rejected) => Err(rejected),
            None => end(&pending, sink, indexer),
        };
        match done {
            Ok(whole) => Ok(WrittenLayer {
                store,
                pending,
                whole,
            }),
            Err(error) => {
                store.discard_after_failure(&pending);
                Err(error)
            }
        }
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.sink);
        self.store.discard_after_failure(&self.pending);
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), IngestError> {
        self.indexer.push(bytes)?;
        let path = &self.pending.path;
        Ok(self
            .sink
            .push(bytes)
            .map_err(StoreError::at("write", path))?)
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.rejected.is_none() {
            self.rejected = self.take(bytes).err();
        }
        match &self.rejected {
            None => Ok(bytes.len()),
            Some(rejected) => Err(io::Error::new(io::ErrorKind::InvalidData, rejected.clone())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A layer that is completely written, but not visible yet. Dropping it is like dropping a
/// [`LayerWriter`].
#[derive(Debug)]
#[must_use = "a layer that is not finished is not in the store"]
pub struct WrittenLayer {
    store: Store,
    pending: PendingObject,
    whole: Whole,
}

/// A complete tar with its digest and index.
#[derive(Debug)]
struct Whole {
    file: File,
    digest: Digest,
    size: u64,
    index: Index,
}

impl WrittenLayer {
    /// Digest of what was written.
    #[must_use]
    pub fn diff_id(&self) -> DiffId {
        DiffId(self.whole.digest)
    }

    /// Makes the layer durable and then visible, and leases it.
    ///
    /// # Errors
    /// [`IngestError::Store`] if it could not be stored.
    pub fn finish(self) -> Result<Layer, IngestError> {
        let done = complete(&self.store, &self.pending, self.whole);
        if done.is_err() {
            self.store.discard_after_failure(&self.pending);
        }
        done
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.whole);
        self.store.discard_after_failure(&self.pending);
    }
}

fn end(
    pending: &PendingObject,
    sink: Sink,
    indexer: Indexer<Hasher>,
) -> Result<Whole, IngestError> {
    let index = indexer.finish()?;
    let size = sink.size();
    let (file, digest) = sink
        .finish()
        .map_err(StoreError::at("write", &pending.path))?;
    Ok(Whole {
        file,
        digest,
        size,
        index,
    })
}

fn complete(store: &Store, pending: &PendingObject, whole: Whole) -> Result<Layer, IngestError> {
    let Whole {
        file,
        digest,
        size,
        index,
    } = whole;
    // Usual for a layer that is made again: nothing needs to become durable.
    if let Some(existing) = store.acquire(|tx| object::find(tx, Wanted::Layer(digest)))? {
        store.discard(pending)?;
        return Ok(Layer::try_from(existing)?);
    }
    disk::sync_file(&file, &pending.path)?;
    disk::write_new(&store.layout().index(pending.id), &index.encode())?;
    disk::sync_dir(&store.layout().blobs())?;
    disk::sync_dir(&store.layout().indexes())?;
    let content = Some(content_id(index.entries()));
    let entries = index.entries().len() as u64;
    let object = store.commit(
        pending,
        &Outcome {
            digest,
            size,
            content,
            entries,
        },
    )?;
    store.cache_index(DiffId(digest), &Arc::new(index));
    Ok(Layer::try_from(object)?)
}

/// Reads a tar of the store again, for its digest and index.
#[derive(Debug)]
pub(crate) struct Reindex {
    hasher: Hasher,
    indexer: Option<Indexer<Hasher>>,
}

impl Reindex {
    pub(crate) fn new() -> Self {
        Self {
            hasher: Hasher::new(),
            indexer: Some(Indexer::new()),
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(mut indexer) = self.indexer.take()
            && indexer.push(bytes).is_ok()
        {
            self.indexer = Some(indexer);
        }
    }

    /// Digest and index; `None` if it is not a layer.
    pub(crate) fn finish(self) -> Option<(Digest, Index)> {
        let index = self.indexer?.finish().ok()?;
        Some((self.hasher.finish(), index))
    }
}
