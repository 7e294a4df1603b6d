//! Layers: finding one, leasing it, and reading its tar.

use std::fs::File;

use crate::object::{self, Object, Wanted};
use crate::{ContentId, DiffId, Store, StoreError, disk};

/// A valid layer that this instance leases.
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
                "object {} of the store is a layer without a content id",
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
    /// Finds a layer and leases it. `None` also if its file is missing or damaged.
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
    /// [`StoreError::Unknown`] if the layer is not in the store.
    pub fn open_layer(&self, id: DiffId) -> Result<File, StoreError> {
        let object = self.layer_object(id)?;
        disk::open(&self.layout().blob(object.id))?
            .ok_or_else(|| StoreError::Unknown(format!("layer {id}")))
    }

    pub(crate) fn layer_object(&self, id: DiffId) -> Result<Object, StoreError> {
        self.acquire(|tx| object::find(tx, Wanted::Layer(id.0)))?
            .ok_or_else(|| StoreError::Unknown(format!("layer {id}")))
    }
}
