//! Content of files, read directly from layer blobs.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use store::{EntryKind, StoreError};

use super::{Found, Inode, ResolveError, Rootfs};

/// Why a file of a root cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The path cannot be resolved.
    #[error(transparent)]
    Path(#[from] ResolveError),
    /// It does not exist.
    #[error("{0}: not found in the image")]
    Missing(String),
    /// It is not a regular file.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// It is larger than the caller accepts.
    #[error("{path}: the file has {size} bytes, the limit is {limit}")]
    TooLong {
        /// The file.
        path: String,
        /// Its length.
        size: u64,
        /// The limit of the caller.
        limit: u64,
    },
    /// The store cannot open the layer.
    #[error("cannot open a layer")]
    Store(#[from] StoreError),
    /// The layer's blob cannot be read.
    #[error("cannot read a layer")]
    Blob(#[from] io::Error),
}

/// The content of one file. Several readers can share a blob.
#[derive(Debug)]
pub struct Data {
    blob: Arc<File>,
    at: u64,
    left: u64,
}

impl Data {
    /// Number of bytes that are not read yet.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a length of bytes, not of a collection"
    )]
    pub fn len(&self) -> u64 {
        self.left
    }
}

impl Read for Data {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let buf = buf.get_mut(..wanted).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        let n_bytes = self.blob.read_at(buf, self.at)?;
        if n_bytes == 0 {
            // According to the index there are more bytes.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n_bytes as u64;
        self.left -= n_bytes as u64;
        Ok(n_bytes)
    }
}

impl Rootfs {
    /// The content of a regular file.
    ///
    /// # Errors
    /// If it is not a regular file, or its layer cannot be opened.
    pub fn open_data(&self, found: Found<'_>) -> Result<Data, ReadError> {
        let not_a_file = || ReadError::NotAFile(super::path::show(&found.entry.path));
        self.open_inode(found.inode().ok_or_else(not_a_file)?)
    }

    /// The content of the file with this identity.
    pub(crate) fn open_inode(&self, inode: Inode) -> Result<Data, ReadError> {
        let entry = self.inode(inode);
        let shown = || {
            entry
                .map(|entry| super::path::show(&entry.path))
                .unwrap_or_default()
        };
        let Some(EntryKind::File { size, offset, .. }) = entry.map(|entry| &entry.kind) else {
            return Err(ReadError::NotAFile(shown()));
        };
        let (Some(diff_id), Some(store)) = (self.layer_of(inode), &self.store) else {
            return Err(ReadError::Missing(shown()));
        };
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let blob = match blobs.get(&diff_id) {
            Some(blob) => Arc::clone(blob),
            None => {
                let blob = Arc::new(store.open_layer(diff_id)?);
                blobs.insert(diff_id, Arc::clone(&blob));
                blob
            }
        };
        Ok(Data {
            blob,
            at: *offset,
            left: *size,
        })
    }

    /// Reads a regular file of at most `limit` bytes; links are followed.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>, ReadError> {
        let resolved = self.resolve(path)?;
        let shown = super::path::show(&resolved.path);
        let found = resolved
            .found
            .ok_or_else(|| ReadError::Missing(shown.clone()))?;
        let EntryKind::File { size, .. } = found.entry.kind else {
            return Err(ReadError::NotAFile(shown));
        };
        if size > limit {
            return Err(ReadError::TooLong {
                path: shown,
                size,
                limit,
            });
        }
        let mut bytes = Vec::new();
        self.open_data(found)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
