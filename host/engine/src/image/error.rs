//! Why an image cannot be had or made.

use std::io;
use std::path::PathBuf;

use exec::Stopped;
use store::{Digest, IngestError, StoreError};

use super::platform::Platform;
use super::reference::NotAnImageRef;
use crate::registry::RegistryError;

/// See the variants; each is something that the caller tells apart.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is no name. The user's mistake.
    #[error(transparent)]
    Name(#[from] NotAnImageRef),
    /// There is no such image. The user's mistake.
    #[error("image {name}: there is no such image in {place}. {advice}")]
    NotFound {
        /// The image.
        name: String,
        /// Where it was looked for.
        place: String,
        /// What to do.
        advice: String,
    },
    /// It is there, but not for this platform. The user's mistake.
    #[error(
        "image {name} is not made for {wanted}{}. Ask for another platform with --platform, or take another image",
        available_text(available)
    )]
    Platform {
        /// The image.
        name: String,
        /// What was wanted.
        wanted: Platform,
        /// What there is.
        available: Vec<String>,
    },
    /// It is there, but it is no image that can be used. Whoever published it is to blame.
    #[error("image {name} cannot be used: {reason}")]
    Unusable {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
    /// A part of it is not what its digest says. Nothing of that part was kept.
    #[error(
        "image {name}: {what} is damaged where it is kept: it should have the digest {expected} and has {actual}. Nothing of it was used; publish or copy the image again"
    )]
    Damaged {
        /// The image.
        name: String,
        /// Which part.
        what: String,
        /// Digest that it should have.
        expected: Digest,
        /// Digest that it has; of as many bytes as it should have.
        actual: Digest,
    },
    /// The registry gave no answer, or a bad one.
    #[error("cannot pull image {name}")]
    Registry {
        /// The image.
        name: String,
        /// What happened.
        #[source]
        source: RegistryError,
    },
    /// A file of an image layout could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A layer holds what no layer may hold, or could not be stored.
    #[error("image {name}: layer {layer} cannot be taken in")]
    Ingest {
        /// The image.
        name: String,
        /// The layer as the image names it.
        layer: Digest,
        /// What happened.
        #[source]
        source: IngestError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<Stopped> for ImageError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

fn available_text(available: &[String]) -> String {
    if available.is_empty() {
        return String::new();
    }
    format!("; it is made for {}", available.join(", "))
}
