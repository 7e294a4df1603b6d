//! Finds an image and takes it into the store.

use std::collections::BTreeSet;

use exec::{Cancel, CancelScope};
use oci::decompress::UnpackLimits;
use oci::{Descriptor, Document, FoundImage, ImageConfigFile, ImageRef, Platform, Source};
use store::{DiffId, Digest, Store};

use super::error::PullError;
use super::layer::{Job, take_in};
use super::{BaseImage, ImageSource, PullOptions};
use crate::event::ProgressFn;

/// Layers pulled at the same time.
const PARALLEL: usize = 4;
/// Kind of the fact "this name and platform had this manifest when it was last pulled".
const PULLED: &str = "pulled";

/// Finds an image and takes it into the store, with a lease on all of it.
///
/// A name is first looked up among the images that were built or pulled here, unless `pull` asks for
/// the registry; so a build that has all it needs does not use the network. Layers that the store
/// has are not fetched again. `options` say how registries are reached, and what layers may unpack to.
///
/// # Errors
/// See [`PullError`].
pub fn resolve(
    store: &Store,
    source: &ImageSource,
    platform: &Platform,
    pull: bool,
    options: &PullOptions,
    progress: &ProgressFn<'_>,
    cancel: &Cancel,
) -> Result<BaseImage, PullError> {
    let request = |name: String| Request {
        store,
        name,
        platform,
        unpack: options.unpack,
        progress,
        cancel,
    };
    match source {
        ImageSource::OciLayout { dir, tag, digest } => {
            let source = Source::layout(dir, tag.as_deref(), *digest);
            request(source.name()).take(&source)
        }
        ImageSource::Named(text) => {
            let image: ImageRef = text.parse()?;
            let request = request(image.to_string());
            if !pull && let Some(found) = request.in_store(&image)? {
                return Ok(found);
            }
            let base = request.take(&Source::registry(image, options.client.clone()))?;
            let manifest = base.manifest_digest.to_string();
            store.set_fact(PULLED, &request.key(), &manifest)?;
            Ok(base)
        }
    }
}

struct Request<'a> {
    store: &'a Store,
    /// Full name.
    name: String,
    platform: &'a Platform,
    unpack: UnpackLimits,
    progress: &'a ProgressFn<'a>,
    cancel: &'a Cancel,
}

impl Request<'_> {
    fn key(&self) -> String {
        format!("{} {}", self.name, self.platform)
    }

    /// Looks in the store: for an image with this name, then for what the name was when it was last
    /// pulled. An incomplete image counts as absent.
    fn in_store(&self, image: &ImageRef) -> Result<Option<BaseImage>, PullError> {
        if let Some(named) = self.store.image(&self.name)?
            && let Some(found) = self.load(named.manifest)?
            && found.config.suits(self.platform)
        {
            return Ok(Some(found));
        }
        let digest = match self.store.fact(PULLED, &self.key())? {
            Some(text) => text.parse().ok(),
            None => image.digest(),
        };
        match digest {
            Some(digest) => self.load(digest),
            None => Ok(None),
        }
    }

    /// An image of which the store holds everything.
    fn load(&self, manifest_digest: Digest) -> Result<Option<BaseImage>, PullError> {
        let Some(bytes) = self.store.blob(manifest_digest)? else {
            return Ok(None);
        };
        let Ok(Document::Manifest(manifest)) = Document::parse(&bytes) else {
            return Ok(None);
        };
        let Some(bytes) = self.store.blob(manifest.config.digest)? else {
            return Ok(None);
        };
        let Ok(config) = serde_json::from_slice::<ImageConfigFile>(&bytes) else {
            return Ok(None);
        };
        for layer in &config.rootfs.diff_ids {
            if self.store.layer(*layer)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(self.image(manifest_digest, config)))
    }

    fn image(&self, manifest_digest: Digest, config: ImageConfigFile) -> BaseImage {
        BaseImage {
            name: self.name.clone(),
            manifest_digest,
            layers: config.rootfs.diff_ids.clone(),
            config,
        }
    }

    /// Takes the image from `source`. The manifest is stored last, so it is in the store only if
    /// everything that it names is.
    fn take(&self, source: &Source) -> Result<BaseImage, PullError> {
        let scope = CancelScope::new(self.cancel);
        let found = source.find(self.platform, &scope)?;
        self.take_layers(source, &found, &scope)?;
        self.store.put_blob(&found.config_bytes, "config")?;
        let digest = self.store.put_blob(&found.manifest_bytes, "manifest")?;
        Ok(self.image(digest, found.config))
    }

    /// Fetches the layers that the store lacks. Which ones is decided by their unpacked digests, so it
    /// does not matter how a layer is compressed at its source.
    fn take_layers(
        &self,
        source: &Source,
        found: &FoundImage,
        scope: &CancelScope,
    ) -> Result<(), PullError> {
        let mut seen = BTreeSet::new();
        let mut missing: Vec<(&Descriptor, DiffId)> = Vec::new();
        let diff_ids = &found.config.rootfs.diff_ids;
        for (layer, diff_id) in found.manifest.layers.iter().zip(diff_ids) {
            if seen.insert(*diff_id) && self.store.layer(*diff_id)?.is_none() {
                missing.push((layer, *diff_id));
            }
        }
        let job = Job {
            store: self.store,
            name: &self.name,
            unpack: self.unpack,
            progress: self.progress,
            scope,
        };
        exec::each(
            &missing,
            PARALLEL,
            scope,
            || Ok(source.connect(scope)?),
            |connection, (layer, diff_id)| take_in(&job, connection, layer, *diff_id),
        )?;
        Ok(())
    }
}
