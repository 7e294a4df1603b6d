//! Taking in a layer: an untrusted tar is checked, hashed, indexed and written, in one pass.
//!
//! The law: nothing of it is visible before [`LayerWriter::finish`] has committed it, or
//! [`WrittenLayer::finish`] for who compares its digest before, and what was refused once stays
//! refused. A layer that is there already is taken as it is, so no lock on the
//! name of a result exists anywhere.

mod entry;
mod header;
pub(crate) mod limits;
mod parser;
mod path;
mod pax;
mod sink;
mod tree;

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

pub(crate) use sink::Sink;

use self::parser::Parser;
use crate::digest::Hasher;
use crate::object::{self, Draft, Outcome, Wanted};
use crate::{
    DiffId, Digest, Index, IngestError, Layer, Store, StoreError, content_id, disk, index,
};

/// Receives the uncompressed tar of a layer, in pieces of any size.
///
/// A layer that is refused makes `write` fail with an [`io::Error`] around the [`IngestError`], and
/// [`Self::finish`] with the [`IngestError`] itself. A writer that is dropped leaves bytes that go
/// when the instance ends; [`Self::abandon`] removes them at once.
#[derive(Debug)]
pub struct LayerWriter {
    store: Store,
    draft: Draft,
    sink: Sink,
    parser: Parser,
    refused: Option<IngestError>,
}

impl LayerWriter {
    pub(crate) fn new(store: Store, draft: Draft, file: File) -> Self {
        Self {
            sink: Sink::new(&store, file),
            store,
            draft,
            parser: Parser::new(),
            refused: None,
        }
    }

    /// Makes the layer durable and then visible, and leases it.
    ///
    /// # Errors
    /// [`IngestError::Rejected`] and [`IngestError::TooLarge`] if the tar cannot be a layer;
    /// [`IngestError::Store`] if the store could not keep it.
    pub fn finish(self) -> Result<Layer, IngestError> {
        self.written()?.finish()
    }

    /// Ends the tar, and makes nothing visible yet: who expects a certain layer can compare.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn written(self) -> Result<WrittenLayer, IngestError> {
        let Self {
            store,
            draft,
            sink,
            parser,
            refused,
        } = self;
        let done = match refused {
            Some(refused) => Err(refused),
            None => end(&draft, sink, parser),
        };
        match done {
            Ok(whole) => Ok(WrittenLayer {
                store,
                draft,
                whole,
            }),
            Err(error) => {
                store.discard_after_failure(&draft);
                Err(error)
            }
        }
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.sink);
        self.store.discard_after_failure(&self.draft);
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), IngestError> {
        self.parser.push(bytes)?;
        let path = &self.draft.path;
        Ok(self
            .sink
            .push(bytes)
            .map_err(StoreError::at("write", path))?)
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.refused.is_none() {
            self.refused = self.take(bytes).err();
        }
        match &self.refused {
            None => Ok(bytes.len()),
            Some(refused) => Err(io::Error::new(io::ErrorKind::InvalidData, refused.clone())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A layer of which all is written, and which nobody can see yet. Dropping it is as dropping a
/// [`LayerWriter`].
#[derive(Debug)]
#[must_use = "a layer that is not finished is not there"]
pub struct WrittenLayer {
    store: Store,
    draft: Draft,
    whole: Whole,
}

/// A whole tar, and what it is.
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
    /// [`IngestError::Store`] if the store could not keep it.
    pub fn finish(self) -> Result<Layer, IngestError> {
        let done = complete(&self.store, &self.draft, self.whole);
        if done.is_err() {
            self.store.discard_after_failure(&self.draft);
        }
        done
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.whole);
        self.store.discard_after_failure(&self.draft);
    }
}

fn end(draft: &Draft, sink: Sink, parser: Parser) -> Result<Whole, IngestError> {
    let index = parser.finish()?;
    let size = sink.size();
    let (file, digest) = sink
        .finish()
        .map_err(StoreError::at("write", &draft.path))?;
    Ok(Whole {
        file,
        digest,
        size,
        index,
    })
}

fn complete(store: &Store, draft: &Draft, whole: Whole) -> Result<Layer, IngestError> {
    let Whole {
        file,
        digest,
        size,
        index,
    } = whole;
    // The usual case of a layer that is made again: nothing needs to become durable.
    if let Some(there) = store.acquire(|tx| object::find(tx, Wanted::Layer(digest)))? {
        store.discard(draft)?;
        return Ok(Layer::try_from(there)?);
    }
    disk::sync_file(&file, &draft.path)?;
    disk::write_new(&store.layout().index(draft.id), &index::encode(&index))?;
    disk::sync_dir(&store.layout().blobs())?;
    disk::sync_dir(&store.layout().indexes())?;
    let content = Some(content_id(index.entries()));
    let entries = index.entries().len() as u64;
    let object = store.commit(
        draft,
        &Outcome {
            digest,
            size,
            content,
            entries,
        },
    )?;
    store.remember_index(DiffId(digest), &Arc::new(index));
    Ok(Layer::try_from(object)?)
}

/// Reads a tar that is in the store already.
#[derive(Debug)]
pub(crate) struct Reindex {
    hasher: Hasher,
    parser: Option<Parser>,
}

impl Reindex {
    pub(crate) fn new() -> Self {
        Self {
            hasher: Hasher::new(),
            parser: Some(Parser::new()),
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(mut parser) = self.parser.take()
            && parser.push(bytes).is_ok()
        {
            self.parser = Some(parser);
        }
    }

    /// Digest and index; `None` if it is no layer.
    pub(crate) fn finish(self) -> Option<(Digest, Index)> {
        let index = self.parser?.finish().ok()?;
        Some((self.hasher.finish(), index))
    }
}
