//! Manifests and indexes (OCI image specification, and the Docker formats they come from).
//!
//! The law: what is parsed here comes from strangers. A document is usable or refused with a reason;
//! no text makes the reader panic, recurse without bound, or hold more than a small multiple of the
//! bytes that it was given. Equal values are written as equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use store::Digest;

use crate::annotation::REFERENCE_TYPE;
use crate::media_type::{
    CONFIG, DOCKER_CONFIG, DOCKER_INDEX, DOCKER_LAYER, DOCKER_MANIFEST, INDEX, LAYER, MANIFEST,
};
use crate::printable;

/// Longest manifest, index or configuration that is read, in bytes. Registries must accept manifests
/// of 4 MiB only; real ones are far smaller.
pub const MAX_JSON: u64 = 8 << 20;
/// Most layers of an image: overlayfs cannot stack more.
pub const MAX_LAYERS: usize = 500;

/// Digest, length and media type of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// What the blob is.
    #[serde(rename = "mediaType", default, deserialize_with = "or_default")]
    pub media_type: String,
    /// sha256 of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// In an index: what the image is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescribedPlatform>,
    /// Free text by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Whether this entry describes another image and is none itself.
    pub(crate) fn is_attachment(&self) -> bool {
        self.annotations.contains_key(REFERENCE_TYPE)
            || self
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "unknown")
    }
}

/// The `platform` member of a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DescribedPlatform {
    /// Processor architecture.
    #[serde(deserialize_with = "or_default")]
    pub architecture: String,
    /// Operating system.
    #[serde(deserialize_with = "or_default")]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Variant of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest: one configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// What this document is.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
    /// Free text by key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index: one entry per platform, or per name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageIndex {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// What this document is.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The entries.
    pub manifests: Vec<Descriptor>,
    /// Free text by key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl ImageIndex {
    /// An index of `manifests`.
    #[must_use]
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: INDEX.to_owned(),
            manifests,
            annotations: BTreeMap::new(),
        }
    }
}

/// What a registry or an image layout gives for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, to choose from.
    Index(ImageIndex),
}

/// Everything that either kind of document may hold.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion", default, deserialize_with = "or_default")]
    schema_version: u32,
    #[serde(rename = "mediaType", default, deserialize_with = "or_default")]
    media_type: String,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// Says why the document cannot be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| format!("it is not a manifest or index ({error})"))?;
        if raw.schema_version == 1 {
            return Err(
                "it has the old format \"schema 1\"; push it again with a current tool".to_owned(),
            );
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(ImageIndex {
                schema_version: 2,
                media_type: checked(raw.media_type, INDEX, &[INDEX, DOCKER_INDEX])?,
                manifests,
                annotations: raw.annotations,
            })),
            (None, Some(config), Some(layers)) => Ok(Self::Manifest(Manifest {
                schema_version: 2,
                media_type: checked(raw.media_type, MANIFEST, &[MANIFEST, DOCKER_MANIFEST])?,
                config: checked_config(config)?,
                layers: checked_layers(layers)?,
                annotations: raw.annotations,
            })),
            // A document that is both could be read differently by the next reader.
            _ => Err("it is neither a manifest nor an index, or both at once".to_owned()),
        }
    }
}

/// The media type, which may be left out but must not contradict the members.
fn checked(found: String, default: &str, allowed: &[&str]) -> Result<String, String> {
    if found.is_empty() {
        return Ok(default.to_owned());
    }
    if allowed.contains(&found.as_str()) {
        return Ok(found);
    }
    Err(format!(
        "its media type `{}` is not that of an image",
        printable(&found)
    ))
}

fn checked_config(config: Descriptor) -> Result<Descriptor, String> {
    match config.media_type.as_str() {
        CONFIG | DOCKER_CONFIG | "" => Ok(config),
        other => Err(format!(
            "its configuration is of type `{}`: this is some other artifact, not a container image",
            printable(other)
        )),
    }
}

fn checked_layers(layers: Vec<Descriptor>) -> Result<Vec<Descriptor>, String> {
    if layers.len() > MAX_LAYERS {
        return Err(format!(
            "it has {} layers; at most {MAX_LAYERS} can be used",
            layers.len()
        ));
    }
    for layer in &layers {
        let media_type = layer.media_type.as_str();
        if media_type.contains("foreign") || media_type.contains("nondistributable") {
            return Err(format!(
                "layer {} is not stored in the registry (type `{}`)",
                layer.digest,
                printable(media_type)
            ));
        }
        if !media_type.starts_with(LAYER) && !media_type.starts_with(DOCKER_LAYER) {
            return Err(format!(
                "layer {} is of type `{}`, which is not a layer of a container image",
                layer.digest,
                printable(media_type)
            ));
        }
    }
    Ok(layers)
}

/// Reads `null` as the default value.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn manifest(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{CONFIG}","digest":"{D}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{D}","size":3}}]}}"#
        )
    }

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = Document::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn both_families_of_media_types_are_read() {
        for layer in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            let document = Document::parse(manifest(layer).as_bytes()).unwrap();
            let Document::Manifest(manifest) = document else {
                panic!("not a manifest")
            };
            assert_eq!(manifest.media_type, MANIFEST);
            assert_eq!(manifest.layers[0].size, 3);
        }
    }

    #[test]
    fn null_annotations_are_the_same_as_none() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":null,"digest":"{D}","size":1,"annotations":null,"platform":null}}],"annotations":null}}"#
        );
        let Document::Index(index) = Document::parse(text.as_bytes()).unwrap() else {
            panic!("not an index")
        };
        assert_eq!(index.manifests.len(), 1);
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let both = manifest(LAYER).replacen('{', r#"{"manifests":[],"#, 1);
        refused(&both, "both at once");
        let lying = manifest(LAYER).replacen('{', &format!(r#"{{"mediaType":"{INDEX}","#), 1);
        refused(&lying, "media type");
        refused("{}", "neither");
        refused(r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1");
        refused("[", "not a manifest");
    }

    #[test]
    fn other_artifacts_are_refused_by_type() {
        refused(
            &manifest("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
            "not a layer of",
        );
        refused(
            &manifest("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "not stored in the registry",
        );
        refused(
            &manifest(LAYER).replace(CONFIG, "application/vnd.cncf.helm.config.v1+json"),
            "some other artifact",
        );
    }

    #[test]
    fn hostile_numbers_and_counts_are_refused() {
        refused(
            &manifest(LAYER).replace("\"size\":3", "\"size\":-1"),
            "not a manifest",
        );
        refused(
            &manifest(LAYER).replace("\"size\":3", "\"size\":1e30"),
            "not a manifest",
        );
        refused(
            &manifest(LAYER).replace(D, "sha256:../../etc/passwd"),
            "not a manifest",
        );
        let layer = format!(r#"{{"mediaType":"{LAYER}","digest":"{D}","size":3}}"#);
        let many = vec![layer.as_str(); MAX_LAYERS + 1].join(",");
        refused(&manifest(LAYER).replace(&layer, &many), "layers; at most");
        refused(&"[".repeat(100_000), "not a manifest");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Document::parse(&bytes));
        }

        #[test]
        fn no_damaged_manifest_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = manifest(LAYER).into_bytes();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            drop(Document::parse(&bytes));
        }
    }
}
