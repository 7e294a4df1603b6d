//! The index of a layer in the store: reading it, and rebuilding it from the tar.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use layer::limits::MAX_INDEX_FILE;

use crate::ingest::Reindex;
use crate::object::{Object, hash_file};
use crate::random::random;
use crate::{DiffId, Digest, Index, Store, StoreError, disk};

impl Store {
    /// The index of a layer. It is read once per process.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if the layer is not in the store, [`StoreError::Corrupt`] if its index is
    /// damaged and cannot be rebuilt from its tar.
    pub fn index(&self, id: DiffId) -> Result<Arc<Index>, StoreError> {
        if let Some(index) = self.cached_index(id) {
            return Ok(index);
        }
        let object = self.layer_object(id)?;
        let index = Arc::new(self.load_index(&object)?);
        self.cache_index(id, &index);
        Ok(index)
    }

    fn load_index(&self, object: &Object) -> Result<Index, StoreError> {
        let path = self.layout().index(object.id);
        let found = disk::read(&path, MAX_INDEX_FILE)?.and_then(|bytes| Index::decode(&bytes));
        if let Some(index) = found {
            return Ok(index);
        }
        log::warn!(
            "{} is missing or damaged; rebuilding it from the layer",
            path.display()
        );
        let index = self.reindex(object)?;
        if !self.is_read_only() {
            self.replace_index(object.id, &index)?;
        }
        Ok(index)
    }

    /// Rebuilds the index file of a layer.
    pub(crate) fn rebuild_index(&self, object: &Object) -> Result<(), StoreError> {
        let index = self.reindex(object)?;
        self.replace_index(object.id, &index)
    }

    /// Makes the index of a layer from its tar. Evicts the layer if the tar is damaged, or is no layer
    /// by the rules of this version; a build then makes it again.
    fn reindex(&self, object: &Object) -> Result<Index, StoreError> {
        let path = self.layout().blob(object.id);
        let damage = match read_tar(&path)? {
            Some((digest, index)) if digest == object.digest => return Ok(index),
            None if hash_file(&path)? == Some(object.digest) => {
                "its index is damaged, and this version of cofferdam does not accept its tar"
            }
            Some(_) | None => "its tar does not match its digest",
        };
        if !self.is_read_only() {
            self.evict(object.id, damage)?;
        }
        let text = format!("layer {}: {damage}", object.digest);
        Err(StoreError::corrupt(text))
    }

    /// Writes an index file, replacing a damaged one.
    fn replace_index(&self, object: i64, index: &Index) -> Result<(), StoreError> {
        let new = self
            .scratch()
            .join(format!("index-{object}-{}", hex::encode(random()?)));
        disk::write_new(&new, &index.encode())?;
        disk::rename(&new, &self.layout().index(object))
    }
}

/// Digest and index of a tar file of the store; `None` if it cannot be a layer.
pub(crate) fn read_tar(path: &Path) -> Result<Option<(Digest, Index)>, StoreError> {
    let Some(mut file) = disk::open(path)? else {
        return Ok(None);
    };
    let (mut reader, mut piece) = (Reindex::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(reader.finish()),
            Ok(count) => reader.push(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
    }
}
