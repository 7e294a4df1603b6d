//! Layers: leasing one, its tar and its index.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use crate::ingest::Reindex;
use crate::ingest::limits::MAX_INDEX_FILE;
use crate::object::{self, Object, Wanted};
use crate::{ContentId, DiffId, Digest, Index, LayerWriter, Store, StoreError, disk, index};

/// A valid layer on which this instance holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of the index without times.
    pub content_id: ContentId,
    /// Length of the uncompressed tar in bytes.
    pub size: u64,
    /// Number of entries.
    pub entries: u64,
    /// When it was first made, in seconds since 1970.
    pub created: i64,
}

impl TryFrom<Object> for Layer {
    type Error = StoreError;

    fn try_from(object: Object) -> Result<Self, StoreError> {
        let content_id = object.content.ok_or_else(|| {
            StoreError::corrupt(format!(
                "object {} is a layer without a content id",
                object.id
            ))
        })?;
        Ok(Self {
            diff_id: DiffId(object.digest),
            content_id,
            size: object.size,
            entries: object.entries,
            created: object.created,
        })
    }
}

impl Store {
    /// Begins to take in a layer, whose uncompressed tar is written into the result. `origin` says
    /// where it comes from, for display.
    ///
    /// # Errors
    /// If it cannot be written down, or its file not be made.
    pub fn layer_writer(&self, origin: &str) -> Result<LayerWriter, StoreError> {
        let (draft, file) = self.begin(object::LAYER, origin)?;
        Ok(LayerWriter::new(self.clone(), draft, file))
    }

    /// Finds a layer and leases it. One whose bytes are gone is not there.
    ///
    /// # Errors
    /// If the store fails.
    pub fn layer(&self, id: DiffId) -> Result<Option<Layer>, StoreError> {
        let found = self.acquire(|tx| object::find(tx, Wanted::Layer(id.0)))?;
        found.map(Layer::try_from).transpose()
    }

    /// Opens the uncompressed tar of a layer.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if it is not there.
    pub fn open_layer(&self, id: DiffId) -> Result<File, StoreError> {
        let object = self.layer_object(id)?;
        disk::open(&self.layout().blob(object.id))?
            .ok_or_else(|| StoreError::Unknown(format!("layer {id}")))
    }

    /// The index of a layer. Read once per process.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if the layer is not there, [`StoreError::Corrupt`] if its index is
    /// damaged and cannot be made again from its tar.
    pub fn index(&self, id: DiffId) -> Result<Arc<Index>, StoreError> {
        let known = || {
            self.inner
                .indexes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(index) = known().get(&id) {
            return Ok(Arc::clone(index));
        }
        let object = self.layer_object(id)?;
        let index = Arc::new(self.load_index(&object)?);
        self.remember_index(id, &index);
        Ok(index)
    }

    pub(crate) fn remember_index(&self, id: DiffId, index: &Arc<Index>) {
        let mut known = self
            .inner
            .indexes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert(id, Arc::clone(index));
    }

    fn layer_object(&self, id: DiffId) -> Result<Object, StoreError> {
        self.acquire(|tx| object::find(tx, Wanted::Layer(id.0)))?
            .ok_or_else(|| StoreError::Unknown(format!("layer {id}")))
    }

    fn load_index(&self, object: &Object) -> Result<Index, StoreError> {
        let path = self.layout().index(object.id);
        let found = disk::read(&path, MAX_INDEX_FILE)?.and_then(|bytes| index::decode(&bytes));
        if let Some(index) = found {
            return Ok(index);
        }
        log::warn!(
            "{} is missing or damaged, and is made again",
            path.display()
        );
        let index = self.reindex(object)?;
        if !self.is_read_only() {
            self.replace_index(object.id, &index)?;
        }
        Ok(index)
    }

    /// Makes the index file of a layer again.
    pub(crate) fn remake_index(&self, object: &Object) -> Result<(), StoreError> {
        let index = self.reindex(object)?;
        self.replace_index(object.id, &index)
    }

    /// Makes the index from the tar again. A tar that is damaged is lost.
    fn reindex(&self, object: &Object) -> Result<Index, StoreError> {
        match read_tar(&self.layout().blob(object.id))? {
            Some((digest, index)) if digest == object.digest => Ok(index),
            Some(_) | None => {
                let damage = "its tar does not match its digest";
                if !self.is_read_only() {
                    self.lose(object.id, damage)?;
                }
                Err(StoreError::corrupt(format!(
                    "layer {}: {damage}",
                    object.digest
                )))
            }
        }
    }

    /// Writes an index file in place of a damaged one.
    fn replace_index(&self, object: i64, index: &Index) -> Result<(), StoreError> {
        let new = self
            .scratch()
            .join(format!("index-{object}-{}", hex::encode(crate::random()?)));
        disk::write_new(&new, &index::encode(index))?;
        disk::rename(&new, &self.layout().index(object))
    }
}

/// Digest and index of a tar that was taken in before; `None` if it cannot be a layer.
pub(crate) fn read_tar(path: &Path) -> Result<Option<(Digest, Index)>, StoreError> {
    let Some(mut file) = disk::open(path)? else {
        return Ok(None);
    };
    let (mut made, mut piece) = (Reindex::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(made.finish()),
            Ok(count) => made.push(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
    }
}
