//! Why an image cannot be taken into the store.

use exec::Stopped;
use oci::decompress::LimitExceeded;
use oci::{ImageError, NotAnImageRef};
use store::{Digest, IngestError, StoreError};

/// Why an image cannot be taken into the store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Its name is not valid. The user's mistake.
    #[error(transparent)]
    Name(#[from] NotAnImageRef),
    /// It cannot be read where it is published, or it is not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer contains what no layer may contain, or cannot be stored.
    #[error("image {name}: layer {layer} cannot be stored")]
    Ingest {
        /// The image.
        name: String,
        /// The layer as the image names it.
        layer: Digest,
        /// What happened.
        #[source]
        source: IngestError,
    },
    /// A layer is larger than layers may be.
    #[error(
        "image {name}: layer {layer} is too large: {source}; raise that limit if you trust the image"
    )]
    TooLarge {
        /// The image.
        name: String,
        /// The layer as the image names it.
        layer: Digest,
        /// Which limit it exceeds. Part of the text.
        #[source]
        source: LimitExceeded,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Stopped> for PullError {
    fn from(stopped: Stopped) -> Self {
        Self::Image(stopped.into())
    }
}
