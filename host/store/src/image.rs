//! Image names, which keep the manifest, configuration and layers of an image in the store.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::{Commit, one_row};
use crate::object::{self, Wanted};
use crate::references;
use crate::{DiffId, Digest, Store, StoreError, time};

/// A named image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its configuration.
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
    /// When the name was given, in seconds since 1970.
    pub created: i64,
}

impl Store {
    /// Names an image, or moves the name to another image. The parts of the image stay in the store as
    /// long as it has the name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if a part of the image is not in the store.
    pub fn set_image(
        &self,
        name: &str,
        manifest: Digest,
        config: Digest,
        layers: &[DiffId],
    ) -> Result<(), StoreError> {
        // Usual at the end of a cached build: nothing needs to become durable.
        let old = self.read(|tx| load(tx, name))?;
        if let Some(old) = old
            && old.manifest == manifest
            && old.config == config
            && old.layers == layers
        {
            return Ok(());
        }
        self.write(Commit::Durable, |tx| {
            references::delete_image(tx, name)?;
            let (manifest, config) = (part(tx, manifest)?, part(tx, config)?);
            let changed = tx
                .prepare_cached(
                    "INSERT INTO image (name, manifest, config, created) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((name, manifest, config, time::now()))?;
            one_row(changed, "name of an image")?;
            for (position, layer) in (0i64..).zip(layers) {
                let found = object::find(tx, Wanted::Layer(layer.0))?;
                let object = found.ok_or_else(|| StoreError::Unknown(format!("layer {layer}")))?;
                tx.prepare_cached(
                    "INSERT INTO image_layer (image, position, object) VALUES (?1, ?2, ?3)",
                )?
                .execute((name, position, object.id))?;
            }
            Ok(())
        })
    }

    /// Finds an image by its name, and leases all its parts. `None` also if a part is missing or
    /// damaged.
    ///
    /// # Errors
    /// If the store fails.
    pub fn image(&self, name: &str) -> Result<Option<Image>, StoreError> {
        let Some(image) = self.read(|tx| load(tx, name))? else {
            return Ok(None);
        };
        for part in [image.manifest, image.config] {
            if self
                .acquire(|tx| object::find(tx, Wanted::Bytes(part)))?
                .is_none()
            {
                return Ok(None);
            }
        }
        for layer in &image.layers {
            if self.layer(*layer)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(image))
    }

    /// All images, by name. Nothing is leased.
    ///
    /// # Errors
    /// If the store fails.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        self.read(|tx| {
            let mut names = tx.prepare_cached("SELECT name FROM image ORDER BY name")?;
            let names = names.query_map([], |row| row.get(0))?;
            let names = names.collect::<Result<Vec<String>, _>>()?;
            let images = names.iter().map(|name| load(tx, name));
            images.filter_map(Result::transpose).collect()
        })
    }

    /// Removes a name. The parts of the image stay until a prune. Returns whether the name existed.
    ///
    /// # Errors
    /// If the store fails.
    pub fn remove_image(&self, name: &str) -> Result<bool, StoreError> {
        self.write(Commit::Durable, |tx| references::delete_image(tx, name))
    }
}

fn part(tx: &Transaction<'_>, digest: Digest) -> Result<i64, StoreError> {
    let found = object::find(tx, Wanted::Bytes(digest))?;
    Ok(found
        .ok_or_else(|| StoreError::Unknown(format!("blob {digest}")))?
        .id)
}

fn load(tx: &Connection, name: &str) -> Result<Option<Image>, StoreError> {
    let mut found = tx.prepare_cached(
        "SELECT m.digest, c.digest, i.created FROM image i \
         JOIN object m ON m.id = i.manifest JOIN object c ON c.id = i.config WHERE i.name = ?1",
    )?;
    let row = found.query_row([name], |row| {
        Ok((
            Digest(row.get(0)?),
            Digest(row.get(1)?),
            row.get::<_, i64>(2)?,
        ))
    });
    let Some((manifest, config, created)) = row.optional()? else {
        return Ok(None);
    };
    let mut layers = tx.prepare_cached(
        "SELECT o.digest FROM image_layer l JOIN object o ON o.id = l.object \
         WHERE l.image = ?1 ORDER BY l.position",
    )?;
    let layers = layers.query_map([name], |row| Ok(DiffId(Digest(row.get(0)?))))?;
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Image {
        name: name.to_owned(),
        manifest,
        config,
        layers,
        created,
    }))
}
