//! Takes images into the store: from registries and image layouts.
//!
//! The formats, the sources and the first verification are in `oci`; here is what is about the store.
//! [`resolve()`] finds an image by name, in the store first, and ingests the layers that the store
//! lacks.
//!
//! The law: an image is returned only when the store holds all of it and leases all of it. A layer is
//! visible only if its digests are those that manifest and configuration state.

mod ahead;
mod error;
mod layer;
mod resolve;

use std::path::PathBuf;

use net_policy::HostRule;
use oci::decompress::UnpackLimits;
use oci::http::ClientOptions;
use oci::{ImageConfigFile, ImageRef};
use store::{DiffId, Digest};

pub use error::PullError;
pub use resolve::resolve;

/// An image that the store holds, with a lease on all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// Its full name, such as `docker.io/library/alpine:3`.
    pub name: String,
    /// Digest of its manifest for the platform that was asked for.
    pub manifest_digest: Digest,
    /// Its configuration.
    pub config: ImageConfigFile,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
}

/// How images are taken in.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// How registries are reached.
    pub client: ClientOptions,
    /// How large their layers may be.
    pub unpack: UnpackLimits,
}

impl PullOptions {
    /// The usual limits.
    #[must_use]
    pub fn new(client: ClientOptions) -> Self {
        Self {
            client,
            unpack: UnpackLimits::USUAL,
        }
    }
}

/// Where an image is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// An image layout on this machine.
    OciLayout {
        /// The directory with `index.json`.
        dir: PathBuf,
        /// Which image, if there are several.
        tag: Option<String>,
        /// Which image, by digest.
        digest: Option<Digest>,
    },
    /// A name: an image of the store, or of a registry.
    Named(String),
}

impl ImageSource {
    /// Exactly the registry that this names, if it names one.
    pub(crate) fn registry(&self) -> Option<HostRule> {
        match self {
            Self::OciLayout { .. } => None,
            Self::Named(name) => name.parse::<ImageRef>().ok()?.host_rule(),
        }
    }
}
