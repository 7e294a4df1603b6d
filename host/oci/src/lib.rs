//! OCI images as others publish them: their names and documents, and where they are read from.
//!
//! This crate knows neither builds nor how images are kept: it reads an image from a registry or an
//! image layout and verifies it, down to its layers, which it gives as streams. What takes these
//! streams into the store is `engine::pull`: that is all about the store's leases, ingest and facts,
//! and nothing here is. Of the `store` only the digests are used.
//!
//! The law: everything that is read here comes from strangers. A digest that somebody else stated is
//! compared with the bytes before anything depends on them, every length has a limit, and no wait is
//! longer than its time-out or goes on after a cancel.
//!
//! | module | what it holds |
//! |---|---|
//! | `reference`, `platform` | [`ImageRef`] and [`Platform`], as users write them |
//! | `manifest`, `config`, [`media_type`], [`annotation`] | the documents of an image, read and written |
//! | `select` | which entry of an index is for a platform |
//! | `source`, `find` | [`Source`], where an image is read from, and [`FoundImage`], what is found there |
//! | `layout` | image layouts: directories |
//! | `registry` | registries, anonymously: [`RegistryError`] |
//! | [`http`] | the HTTP client: time-outs, retries, redirections |
//! | [`decompress`] | the forms of a layer, and how much one may unpack to |
//! | `error` | [`ImageError`] |
//!
//! ```
//! use oci::{ImageRef, Platform};
//!
//! let image: ImageRef = "alpine:3.20".parse()?;
//! assert_eq!(image.to_string(), "docker.io/library/alpine:3.20");
//! assert_eq!(image.registry(), "docker.io");
//!
//! let platform: Platform = "linux/x86_64".parse()?;
//! assert_eq!(platform.to_string(), "linux/amd64");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod annotation;
mod config;
pub mod decompress;
mod error;
mod find;
pub mod http;
mod layout;
mod manifest;
pub mod media_type;
mod platform;
mod reference;
mod registry;
mod select;
mod source;

pub use config::{Healthcheck, HistoryItem, ImageConfig, ImageConfigFile, RootFs};
pub use error::ImageError;
pub use find::FoundImage;
pub use manifest::{
    DescribedPlatform, Descriptor, Document, ImageIndex, MAX_JSON, MAX_LAYERS, Manifest,
};
pub use platform::{NotAPlatform, Platform};
pub use reference::{ImageRef, NotAnImageRef};
pub use registry::{RegistryError, RegistryMessage};
pub use source::{Connection, Source};

/// The first characters of a text from a stranger, without control characters: fit for a message.
fn printable(text: &str) -> String {
    text.chars()
        .take(100)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
