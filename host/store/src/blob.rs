//! Blobs other than layers: manifests, configurations, compressed layers.

use std::fs::File;
use std::io::{self, Write};

use crate::ingest::Sink;
use crate::object::{self, Object, Outcome, PendingObject, Wanted};
use crate::{Digest, Store, StoreError, disk};

/// Maximum size of a blob that is read into memory, in bytes.
const MAX_IN_MEMORY: u64 = 64 << 20;

impl Store {
    /// Stores a small blob and leases it. Writes nothing if the store has it already. `kind` is for
    /// display.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub fn put_blob(&self, bytes: &[u8], kind: &str) -> Result<Digest, StoreError> {
        let digest = crate::sha256(bytes);
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

    /// Begins to store a blob of any size.
    ///
    /// # Errors
    /// If it cannot be recorded, or its file cannot be created.
    pub fn blob_writer(&self, kind: &str) -> Result<BlobWriter, StoreError> {
        if kind == object::LAYER {
            return Err(StoreError::corrupt(
                "a layer must be stored with a layer writer",
            ));
        }
        let (pending, file) = self.begin(kind, kind)?;
        Ok(BlobWriter {
            store: self.clone(),
            sink: Sink::new(self, &pending, file),
            pending,
        })
    }

    /// Reads a small blob, and leases it. `None` if it is missing or damaged.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it is larger than 64 MiB.
    pub fn blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        while let Some(object) = self.blob_object(digest)? {
            let bytes = disk::read(&self.layout().blob(object.id), MAX_IN_MEMORY)?;
            // Cheap for a small blob, and its content is parsed next.
            if bytes
                .as_ref()
                .is_some_and(|bytes| crate::sha256(bytes) == digest)
            {
                return Ok(bytes);
            }
            if self.is_read_only() {
                return Ok(None);
            }
            self.evict(object.id, "its file does not match its digest")?;
        }
        Ok(None)
    }

    /// Opens a blob and leases it. Returns its file and its length in bytes.
    ///
    /// # Errors
    /// If the store fails.
    pub fn open_blob(&self, digest: Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(object) = self.blob_object(digest)? else {
            return Ok(None);
        };
        Ok(disk::open(&self.layout().blob(object.id))?.map(|file| (file, object.size)))
    }

    /// Removes a blob whose content was seen not to match its digest.
    ///
    /// # Errors
    /// If the store fails.
    pub fn evict_blob(&self, digest: Digest) -> Result<(), StoreError> {
        let Some(object) = self.blob_object(digest)? else {
            return Ok(());
        };
        self.evict(object.id, "its file does not match its digest")
    }

    fn blob_object(&self, digest: Digest) -> Result<Option<Object>, StoreError> {
        self.acquire(|tx| object::find(tx, Wanted::Bytes(digest)))
    }
}

/// Receives the content of a blob. If it is dropped, its file is removed when the instance ends.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    pending: PendingObject,
    sink: Sink,
}

impl BlobWriter {
    /// Makes the blob durable and then visible, and leases it. Returns its digest and length.
    ///
    /// # Errors
    /// If it could not be stored.
    pub fn finish(self) -> Result<(Digest, u64), StoreError> {
        let Self {
            store,
            pending,
            sink,
        } = self;
        let done = complete(&store, &pending, sink);
        if done.is_err() {
            store.discard_after_failure(&pending);
        }
        done
    }

    /// Removes what was written.
    pub fn abandon(self) {
        drop(self.sink);
        self.store.discard_after_failure(&self.pending);
    }

    fn fail(self, error: io::Error) -> StoreError {
        let error = StoreError::io("write", &self.pending.path, error);
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

fn complete(
    store: &Store,
    pending: &PendingObject,
    sink: Sink,
) -> Result<(Digest, u64), StoreError> {
    let size = sink.size();
    let (file, digest) = sink
        .finish()
        .map_err(StoreError::at("write", &pending.path))?;
    if store
        .acquire(|tx| object::find(tx, Wanted::Bytes(digest)))?
        .is_some()
    {
        store.discard(pending)?;
        return Ok((digest, size));
    }
    disk::sync_file(&file, &pending.path)?;
    disk::sync_dir(&store.layout().blobs())?;
    store.commit(
        pending,
        &Outcome {
            digest,
            size,
            content: None,
            entries: 0,
        },
    )?;
    Ok((digest, size))
}
