//! Images: their configuration, and how they are found and put together.
//!
//! [`resolve()`] finds an image by name and takes it into the store; [`assemble()`] makes a new one of
//! layers that are there.
//!
//! The law: a digest that somebody else stated is compared with the bytes before anything depends
//! on them; an image is returned only when the store holds all of it and leases all of it; equal
//! inputs make equal images.

mod ahead;
mod assemble;
mod choose;
mod config;
mod error;
mod layer;
mod layout;
mod manifest;
pub(crate) mod media_type;
mod platform;
mod reference;
mod resolve;
mod source;

use std::path::PathBuf;

use store::{DiffId, Digest};

pub use assemble::{Assembled, HistoryEntry, assemble};
pub use config::{Healthcheck, HistoryItem, ImageConfig, ImageConfigFile, RootFs};
pub use error::ImageError;
pub(crate) use layer::short_digest;
pub use manifest::{DescribedPlatform, Descriptor, Document, ImageIndex, Manifest};
pub(crate) use manifest::{IMAGE_NAME, MAX_JSON, MAX_LAYERS, REF_NAME, short};
pub use platform::{NotAPlatform, Platform};
pub use reference::{ImageRef, NotAnImageRef};
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

/// How far some part of the work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What goes on, such as `sha256:0123456789ab pulling`; the key by which reports belong together.
    pub what: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all; zero if unknown.
    pub total: u64,
}

/// Receives progress, from several threads at once. Must not block for long.
pub type ProgressFn<'a> = dyn Fn(Progress) + Sync + 'a;
