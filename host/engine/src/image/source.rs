//! Where images come from: one interface over registries and image layouts.

use std::io::{self, Read};

use exec::CancelScope;

use super::error::ImageError;
use super::layout::Layout;
use super::manifest::Descriptor;
use super::reference::ImageRef;
use crate::registry::{self, RegistryError, Token};

/// A place that holds one named image.
pub(crate) enum Source {
    /// A repository of a registry.
    Registry {
        /// The image.
        image: ImageRef,
        /// Shared by all connections.
        token: Token,
    },
    /// A directory.
    Layout(Layout),
}

/// A way to read from a [`Source`], for one thread.
pub(crate) enum Connection<'a> {
    /// To a registry.
    Registry {
        /// The image.
        image: &'a ImageRef,
        /// The wire.
        connection: Box<registry::Connection>,
    },
    /// Into a directory.
    Layout(&'a Layout),
}

impl Source {
    /// A connection for the calling thread.
    pub(crate) fn connect(&self, scope: &CancelScope) -> Result<Connection<'_>, ImageError> {
        Ok(match self {
            Self::Registry { image, token } => Connection::Registry {
                image,
                connection: registry::Connection::open(image, token, scope)
                    .map(Box::new)
                    .map_err(|error| registry_error(image, error))?,
            },
            Self::Layout(layout) => Connection::Layout(layout),
        })
    }
}

impl Connection<'_> {
    /// The manifest or index that the name stands for.
    pub(crate) fn top(&self) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Registry { image, connection } => {
                let digest = image.digest().map(|digest| digest.to_string());
                let reference = digest
                    .as_deref()
                    .or_else(|| image.tag())
                    .unwrap_or("latest");
                connection
                    .document(reference)
                    .map_err(|error| registry_error(image, error))
            }
            Self::Layout(layout) => layout.top(),
        }
    }

    /// A manifest or index by its digest. Its bytes are not verified yet.
    pub(crate) fn document(&self, entry: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Registry { image, connection } => connection
                .document(&entry.digest.to_string())
                .map_err(|error| registry_error(image, error)),
            Self::Layout(layout) => {
                let mut bytes = Vec::new();
                layout
                    .open(entry)?
                    .take(entry.size)
                    .read_to_end(&mut bytes)
                    .map_err(|source| layout.read_error(entry, source))?;
                Ok(bytes)
            }
        }
    }

    /// Any other blob. Its bytes are not verified yet.
    pub(crate) fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + '_>, ImageError> {
        Ok(match self {
            Self::Registry { connection, .. } => Box::new(connection.blob(blob.digest, blob.size)),
            Self::Layout(layout) => Box::new(layout.open(blob)?),
        })
    }

    /// Tells what an error of [`Self::blob`]'s reader was.
    pub(crate) fn explain(&self, blob: &Descriptor, error: io::Error) -> ImageError {
        match self {
            Self::Registry { image, .. } => match error.downcast::<RegistryError>() {
                Ok(error) => registry_error(image, error),
                Err(error) => ImageError::Unusable {
                    name: image.to_string(),
                    reason: format!("blob {} cannot be read ({error})", blob.digest),
                },
            },
            Self::Layout(layout) => layout.read_error(blob, error),
        }
    }
}

fn registry_error(image: &ImageRef, error: RegistryError) -> ImageError {
    let name = image.to_string();
    if matches!(error, RegistryError::Cancelled) {
        return ImageError::Cancelled;
    }
    if let RegistryError::NotFound { registry, .. } = error {
        return ImageError::NotFound {
            name,
            place: format!("registry {registry}"),
            advice:
                "Check the name and the tag; if a stage of the Dockerfile is meant, it must be \
                     defined above"
                    .to_owned(),
        };
    }
    ImageError::Registry {
        name,
        source: error,
    }
}
