//! Why an image cannot be read.

use std::io;
use std::path::PathBuf;

use exec::Stopped;
use store::Digest;

use crate::platform::Platform;
use crate::registry::RegistryError;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such image. The user's mistake.
    #[error("image {name} does not exist in {place}; {advice}")]
    NotFound {
        /// The image.
        name: String,
        /// Where it was searched.
        place: String,
        /// What to do.
        advice: String,
    },
    /// It exists, but not for this platform. The user's mistake.
    #[error(
        "image {name} is not available for {wanted}{}; choose another platform with --platform, or another image",
        available_text(available)
    )]
    Platform {
        /// The image.
        name: String,
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms that exist.
        available: Vec<String>,
    },
    /// It exists, but it is not a usable image. Its publisher is to blame.
    #[error("image {name} cannot be used: {reason}")]
    Unusable {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
    /// A part of it does not match its digest. Nothing of that part was kept.
    #[error(
        "image {name}: {what} is damaged at its source: expected {expected}, got {actual}; push or copy the image again"
    )]
    Damaged {
        /// The image.
        name: String,
        /// Which part.
        what: String,
        /// Digest that it should have.
        expected: Digest,
        /// Digest that it has, over as many bytes as it should have.
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
    format!(", only for {}", available.join(", "))
}
