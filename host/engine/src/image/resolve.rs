//! Finding an image and taking it into the store.

use std::collections::BTreeSet;
use std::io::Read;

use exec::{Cancel, CancelScope};
use store::{DiffId, Digest, Store};

use super::choose::{NoChoice, choose, suits};
use super::config::ImageConfigFile;
use super::error::ImageError;
use super::layer::{Job, take_in};
use super::layout::Layout;
use super::manifest::{DescribedPlatform, Descriptor, Document, MAX_JSON, Manifest};
use super::source::{Connection, Source};
use super::{BaseImage, ImageRef, ImageSource, Platform, ProgressFn};
use crate::registry::Token;

/// Layers pulled at the same time.
const PARALLEL: usize = 4;
/// Deepest nesting of indexes.
const MAX_NESTING: usize = 4;
/// Kind of the fact "this name and platform was this manifest when it was last pulled".
const PULLED: &str = "pulled";

/// Finds an image and takes it into the store, with a lease on all of it.
///
/// A name is first looked for among the images that were built or pulled here, unless `pull` asks
/// for a fresh look; so a build that has all it needs does not touch the network. Whatever the
/// store holds already is not fetched again.
///
/// # Errors
/// See [`ImageError`].
pub fn resolve(
    store: &Store,
    source: &ImageSource,
    platform: &Platform,
    pull: bool,
    progress: &ProgressFn<'_>,
    cancel: &Cancel,
) -> Result<BaseImage, ImageError> {
    let request = |name: String| Request {
        store,
        name,
        platform,
        progress,
        cancel,
    };
    match source {
        ImageSource::OciLayout { dir, tag, digest } => {
            let layout = Layout::new(dir, tag.as_deref(), *digest);
            request(layout.name()).take(&Source::Layout(layout))
        }
        ImageSource::Named(text) => {
            let image: ImageRef = text.parse()?;
            let request = request(image.to_string());
            if !pull && let Some(found) = request.here(&image)? {
                return Ok(found);
            }
            let token = Token::default();
            let base = request.take(&Source::Registry { image, token })?;
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
    progress: &'a ProgressFn<'a>,
    cancel: &'a Cancel,
}

impl Request<'_> {
    fn key(&self) -> String {
        format!("{} {}", self.name, self.platform)
    }

    /// Looks in the store: images that were given this name, then what the name was when it was
    /// last pulled. Whatever is not whole counts as absent.
    fn here(&self, image: &ImageRef) -> Result<Option<BaseImage>, ImageError> {
        if let Some(named) = self.store.image(&self.name)?
            && let Some(found) = self.load(named.manifest)?
            && suits(&described(&found.config), self.platform)
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
    fn load(&self, manifest_digest: Digest) -> Result<Option<BaseImage>, ImageError> {
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

    /// Takes the image from `source`. The manifest is stored last, so that it is there only if
    /// everything that it names is.
    fn take(&self, source: &Source) -> Result<BaseImage, ImageError> {
        let scope = CancelScope::new(self.cancel);
        let connection = source.connect(&scope)?;
        let (bytes, manifest) = self.manifest(&connection, source)?;
        let config_bytes = self.config_bytes(&connection, &manifest.config)?;
        drop(connection);
        let config = self.config(&config_bytes, &manifest)?;
        self.take_layers(source, &manifest, &config, &scope)?;
        self.store.put_blob(&config_bytes, "config")?;
        let digest = self.store.put_blob(&bytes, "manifest")?;
        Ok(self.image(digest, config))
    }

    fn manifest(
        &self,
        connection: &Connection<'_>,
        source: &Source,
    ) -> Result<(Vec<u8>, Manifest), ImageError> {
        let mut bytes = connection.top()?;
        if let Source::Registry { image, .. } = source
            && let Some(digest) = image.digest()
        {
            self.verify(&bytes, digest, "the manifest")?;
        }
        for _ in 0..=MAX_NESTING {
            let index = match Document::parse(&bytes).map_err(|reason| self.unusable(reason))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => index,
            };
            let entry =
                choose(&index.manifests, self.platform).map_err(|why| self.no_choice(why))?;
            if entry.size > MAX_JSON {
                return Err(self.unusable(format!("manifest {} is too long", entry.digest)));
            }
            bytes = connection.document(entry)?;
            self.verify(&bytes, entry.digest, "a manifest")?;
        }
        Err(self.unusable(format!(
            "its indexes are nested more than {MAX_NESTING} deep"
        )))
    }

    fn config_bytes(
        &self,
        connection: &Connection<'_>,
        config: &Descriptor,
    ) -> Result<Vec<u8>, ImageError> {
        if config.size > MAX_JSON {
            return Err(self.unusable("its configuration is too long".to_owned()));
        }
        let mut bytes = Vec::new();
        connection
            .blob(config)?
            .take(config.size)
            .read_to_end(&mut bytes)
            .map_err(|error| connection.explain(config, error))?;
        self.verify(&bytes, config.digest, "the configuration")?;
        Ok(bytes)
    }

    fn config(&self, bytes: &[u8], manifest: &Manifest) -> Result<ImageConfigFile, ImageError> {
        let config: ImageConfigFile = serde_json::from_slice(bytes)
            .map_err(|error| self.unusable(format!("its configuration is unreadable ({error})")))?;
        let platform = described(&config);
        if !suits(&platform, self.platform) {
            return Err(ImageError::Platform {
                name: self.name.clone(),
                wanted: self.platform.clone(),
                available: vec![super::short(&format!(
                    "{}/{}",
                    platform.os, platform.architecture
                ))],
            });
        }
        let layers = config.rootfs.diff_ids.len();
        if layers != manifest.layers.len() {
            return Err(self.unusable(format!(
                "its manifest has {} layers and its configuration {layers}",
                manifest.layers.len()
            )));
        }
        Ok(config)
    }

    /// Fetches the layers that the store lacks. Which those are is decided by the unpacked digests,
    /// so a layer counts as known however it was compressed where it came from.
    fn take_layers(
        &self,
        source: &Source,
        manifest: &Manifest,
        config: &ImageConfigFile,
        scope: &CancelScope,
    ) -> Result<(), ImageError> {
        let mut seen = BTreeSet::new();
        let mut missing: Vec<(&Descriptor, DiffId)> = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            if seen.insert(*diff_id) && self.store.layer(*diff_id)?.is_none() {
                missing.push((layer, *diff_id));
            }
        }
        let job = Job {
            store: self.store,
            name: &self.name,
            progress: self.progress,
            scope,
        };
        exec::each(
            &missing,
            PARALLEL,
            scope,
            || source.connect(scope),
            |connection, (layer, diff_id)| take_in(&job, connection, layer, *diff_id),
        )?;
        Ok(())
    }

    fn verify(&self, bytes: &[u8], expected: Digest, what: &str) -> Result<(), ImageError> {
        let actual = Digest::of(bytes);
        if actual == expected {
            return Ok(());
        }
        Err(ImageError::Damaged {
            name: self.name.clone(),
            what: what.to_owned(),
            expected,
            actual,
        })
    }

    fn no_choice(&self, why: NoChoice) -> ImageError {
        match why {
            NoChoice::Platform(available) => ImageError::Platform {
                name: self.name.clone(),
                wanted: self.platform.clone(),
                available,
            },
            NoChoice::Ambiguous(count) => self.unusable(format!(
                "its index has {count} entries that do not say what they are for; name one by digest"
            )),
        }
    }

    fn unusable(&self, reason: String) -> ImageError {
        ImageError::Unusable {
            name: self.name.clone(),
            reason,
        }
    }
}

fn described(config: &ImageConfigFile) -> DescribedPlatform {
    DescribedPlatform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        os_version: None,
        variant: config.variant.clone(),
    }
}
