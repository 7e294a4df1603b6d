//! Blobs that are no layers: manifests, configurations, compressed forms of layers.

use std::fs::File;
use std::io::{self, Write};

use crate::ingest::Sink;
use crate::object::{self, Draft, Object, Outcome, Wanted};
use crate::{Digest, Store, StoreError, disk};

/// Largest blob that is read into memory, in bytes.
const MAX_IN_MEMORY: u64 = 64 << 20;

impl Store {
    /// Keeps a small blob. If it is there already, nothing is written.
    ///
    /// # Errors
    /// If the store cannot keep it.
    pub fn put_blob(&self, bytes: &[u8], kind: &str) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self
            .acquire(|tx| object::find(tx, Wanted::Bytes(digest)))?
            .is_some()
        {
            return Ok(digest);
        }
        let mut writer = self.blob_writer(kind)?;
        match writer.write_all(bytes) {
            Ok(()) => Ok(writer.finish()?.0),
            Err(error) => Err(writer.fail(error)),
        }
    }

    /// Begins to keep a blob of any size.
    ///
    /// # Errors
    /// If it cannot be written down, or its file not be made.
    pub fn blob_writer(&self, kind: &str) -> Result<BlobWriter, StoreError> {
        if kind == object::LAYER {
            return Err(StoreError::corrupt("layers come in through a layer writer"));
        }
        let (draft, file) = self.begin(kind, kind)?;
        Ok(BlobWriter {
            store: self.clone(),
            draft,
            sink: Sink::new(self, file),
        })
    }

    /// Reads a blob that fits into memory, and leases it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it is larger than 64 MiB.
    pub fn blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        while let Some(object) = self.blob_object(digest)? {
            let bytes = disk::read(&self.layout().blob(object.id), MAX_IN_MEMORY)?;
            // Cheap for what is small, and what is read here is parsed next.
            if bytes
                .as_ref()
                .is_some_and(|bytes| Digest::of(bytes) == digest)
            {
                return Ok(bytes);
            }
            if self.is_read_only() {
                return Ok(None);
            }
            self.lose(object.id, "its file does not match its digest")?;
        }
        Ok(None)
    }

    /// Opens a blob, with its length, and leases it.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open_blob(&self, digest: Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(object) = self.blob_object(digest)? else {
            return Ok(None);
        };
        Ok(disk::open(&self.layout().blob(object.id))?.map(|file| (file, object.size)))
    }

    /// Gives up a blob whose bytes are seen not to be those of its digest: from now on the store does
    /// not have it.
    ///
    /// # Errors
    /// If the store fails.
    pub fn lose_blob(&self, digest: Digest) -> Result<(), StoreError> {
        let Some(object) = self.blob_object(digest)? else {
            return Ok(());
        };
        self.lose(object.id, "its file does not match its digest")
    }

    fn blob_object(&self, digest: Digest) -> Result<Option<Object>, StoreError> {
        self.acquire(|tx| object::find(tx, Wanted::Bytes(digest)))
    }
}

/// Receives the bytes of a blob. One that is dropped leaves bytes that go when the instance ends.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    draft: Draft,
    sink: Sink,
}

impl BlobWriter {
    /// Makes the blob durable and then visible, and leases it. Returns its digest and length.
    ///
    /// # Errors
    /// If the store could not keep it.
    pub fn finish(self) -> Result<(Digest, u64), StoreError> {
        let Self { store, draft, sink } = self;
        let done = complete(&store, &draft, sink);
        if done.is_err() {
            store.discard_after_failure(&draft);
        }
        done
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.sink);
        self.store.discard_after_failure(&self.draft);
    }

    fn fail(self, error: io::Error) -> StoreError {
        let error = StoreError::io("write", &self.draft.path, error);
        self.abandon();
        error
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.push(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn complete(store: &Store, draft: &Draft, sink: Sink) -> Result<(Digest, u64), StoreError> {
    let size = sink.size();
    let (file, digest) = sink
        .finish()
        .map_err(StoreError::at("write", &draft.path))?;
    if store
        .acquire(|tx| object::find(tx, Wanted::Bytes(digest)))?
        .is_some()
    {
        store.discard(draft)?;
        return Ok((digest, size));
    }
    disk::sync_file(&file, &draft.path)?;
    disk::sync_dir(&store.layout().blobs())?;
    store.commit(
        draft,
        &Outcome {
            digest,
            size,
            content: None,
            entries: 0,
        },
    )?;
    Ok((digest, size))
}
