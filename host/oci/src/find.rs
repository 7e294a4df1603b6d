//! From a name to one verified manifest and configuration.

use std::io::Read as _;

use exec::CancelScope;
use store::Digest;

use crate::config::ImageConfigFile;
use crate::error::ImageError;
use crate::manifest::{Descriptor, Document, MAX_JSON, Manifest};
use crate::platform::Platform;
use crate::printable;
use crate::select::{NoChoice, select};
use crate::source::{Connection, Source};

/// Deepest nesting of indexes.
const MAX_NESTING: usize = 4;

/// An image for one platform. Its documents are verified and agree; its layers are not read yet.
/// [`Source`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest as it was published.
    pub manifest_bytes: Vec<u8>,
    /// The configuration. It names as many layers as the manifest.
    pub config: ImageConfigFile,
    /// The configuration as it was published.
    pub config_bytes: Vec<u8>,
}

impl Source {
    /// Reads manifest and configuration of the image for `platform`.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn find(&self, platform: &Platform, scope: &CancelScope) -> Result<FoundImage, ImageError> {
        let finder = Finder {
            source: self,
            connection: self.connect(scope)?,
            platform,
        };
        let (manifest_bytes, manifest) = finder.manifest()?;
        let config_bytes = finder.config_bytes(&manifest.config)?;
        let config = finder.config(&config_bytes, &manifest)?;
        Ok(FoundImage {
            manifest,
            manifest_bytes,
            config,
            config_bytes,
        })
    }
}

struct Finder<'a> {
    source: &'a Source,
    connection: Connection<'a>,
    platform: &'a Platform,
}

impl Finder<'_> {
    fn manifest(&self) -> Result<(Vec<u8>, Manifest), ImageError> {
        let mut bytes = self.connection.top()?;
        if let Some(digest) = self.source.pinned() {
            self.verify(&bytes, digest, "the manifest")?;
        }
        for _ in 0..=MAX_NESTING {
            let index = match Document::parse(&bytes).map_err(|reason| self.unusable(reason))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => index,
            };
            let entry =
                select(&index.manifests, self.platform).map_err(|why| self.no_choice(why))?;
            if entry.size > MAX_JSON {
                return Err(self.unusable(format!("manifest {} is too long", entry.digest)));
            }
            bytes = self.connection.document(entry)?;
            self.verify(&bytes, entry.digest, "a manifest")?;
        }
        Err(self.unusable(format!(
            "its indexes are nested more than {MAX_NESTING} deep"
        )))
    }

    fn config_bytes(&self, config: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if config.size > MAX_JSON {
            return Err(self.unusable("its configuration is too long".to_owned()));
        }
        let mut bytes = Vec::new();
        self.connection
            .blob(config)?
            .take(config.size)
            .read_to_end(&mut bytes)
            .map_err(|error| self.connection.explain(config, error))?;
        self.verify(&bytes, config.digest, "the configuration")?;
        Ok(bytes)
    }

    fn config(&self, bytes: &[u8], manifest: &Manifest) -> Result<ImageConfigFile, ImageError> {
        let config: ImageConfigFile = serde_json::from_slice(bytes)
            .map_err(|error| self.unusable(format!("its configuration is unreadable ({error})")))?;
        if !config.suits(self.platform) {
            let made_for = format!("{}/{}", config.os, config.architecture);
            return Err(self.other_platform(vec![printable(&made_for)]));
        }
        let layers = config.rootfs.diff_ids.len();
        if layers != manifest.layers.len() {
            return Err(self.unusable(format!(
                "its manifest lists {} layers, but its configuration lists {layers}",
                manifest.layers.len()
            )));
        }
        Ok(config)
    }

    fn verify(&self, bytes: &[u8], expected: Digest, what: &str) -> Result<(), ImageError> {
        let actual = store::sha256(bytes);
        if actual == expected {
            return Ok(());
        }
        Err(ImageError::Damaged {
            name: self.source.name(),
            what: what.to_owned(),
            expected,
            actual,
        })
    }

    fn no_choice(&self, why: NoChoice) -> ImageError {
        match why {
            NoChoice::Platform(available) => self.other_platform(available),
            NoChoice::Ambiguous(count) => self.unusable(format!(
                "its index has {count} entries without a platform; select one with @sha256:…"
            )),
        }
    }

    fn other_platform(&self, available: Vec<String>) -> ImageError {
        ImageError::Platform {
            name: self.source.name(),
            wanted: self.platform.clone(),
            available,
        }
    }

    fn unusable(&self, reason: String) -> ImageError {
        ImageError::Unusable {
            name: self.source.name(),
            reason,
        }
    }
}
