//! Where images are read from: one interface over registries and image layouts.

use std::io::{self, Read};
use std::path::Path;

use exec::CancelScope;
use store::Digest;

use crate::error::ImageError;
use crate::http::ClientOptions;
use crate::layout::Layout;
use crate::manifest::Descriptor;
use crate::reference::ImageRef;
use crate::registry::{self, RegistryError, Token};

/// A place that holds one named image.
///
/// ```no_run
/// use std::io;
///
/// use exec::{Cancel, CancelScope};
/// use net_policy::Reach;
/// use oci::http::ClientOptions;
/// use oci::{ImageRef, Platform, Source};
///
/// let image: ImageRef = "alpine:3.20".parse()?;
/// let source = Source::registry(image, ClientOptions::new(Reach::default()));
/// let scope = CancelScope::new(&Cancel::new());
///
/// let found = source.find(&Platform::linux("amd64"), &scope)?;
/// println!("{} layers", found.config.rootfs.diff_ids.len());
///
/// let connection = source.connect(&scope)?;
/// for layer in &found.manifest.layers {
///     let mut blob = connection.blob(layer)?; // its digest is not verified yet
///     io::copy(&mut blob, &mut io::sink()).map_err(|error| connection.explain(layer, error))?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Source(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Registry(Box<Registry>),
    /// A directory.
    Layout(Layout),
}

/// A repository of a registry.
#[derive(Debug, Clone)]
struct Registry {
    image: ImageRef,
    options: ClientOptions,
    /// For all connections to it.
    token: Token,
}

/// A way to read from a [`Source`], for one thread.
#[derive(Debug)]
pub struct Connection<'a>(Open<'a>);

#[derive(Debug)]
enum Open<'a> {
    Registry(&'a ImageRef, Box<registry::Connection>),
    Layout(&'a Layout),
}

impl Source {
    /// An image of a registry. Nothing is sent yet.
    #[must_use]
    pub fn registry(image: ImageRef, options: ClientOptions) -> Self {
        Self(Kind::Registry(Box::new(Registry {
            image,
            options,
            token: Token::default(),
        })))
    }

    /// An image of a directory: by tag, by digest, or the only one. Nothing is read yet.
    #[must_use]
    pub fn layout(dir: &Path, tag: Option<&str>, digest: Option<Digest>) -> Self {
        Self(Kind::Layout(Layout::new(dir, tag, digest)))
    }

    /// Full name of the image, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::Registry(registry) => registry.image.to_string(),
            Kind::Layout(layout) => layout.name(),
        }
    }

    /// The digest that the first document must have, if the name says so.
    pub(crate) fn pinned(&self) -> Option<Digest> {
        match &self.0 {
            Kind::Registry(registry) => registry.image.digest(),
            // The first document is an index that is made from the one on the disk.
            Kind::Layout(_) => None,
        }
    }

    /// A connection for the calling thread. Its waits end with `scope`.
    ///
    /// # Errors
    /// If the client cannot be set up.
    pub fn connect(&self, scope: &CancelScope) -> Result<Connection<'_>, ImageError> {
        Ok(Connection(match &self.0 {
            Kind::Registry(registry) => {
                let Registry {
                    image,
                    options,
                    token,
                } = &**registry;
                let opened = registry::Connection::open(image, token, options, scope);
                let opened = opened.map_err(|error| registry_error(image, error))?;
                Open::Registry(image, Box::new(opened))
            }
            Kind::Layout(layout) => Open::Layout(layout),
        }))
    }
}

impl Connection<'_> {
    /// The manifest or index that the name stands for.
    pub(crate) fn top(&self) -> Result<Vec<u8>, ImageError> {
        match &self.0 {
            Open::Registry(image, connection) => {
                let digest = image.digest().map(|digest| digest.to_string());
                let reference = digest
                    .as_deref()
                    .or_else(|| image.tag())
                    .unwrap_or("latest");
                connection
                    .document(reference)
                    .map_err(|error| registry_error(image, error))
            }
            Open::Layout(layout) => layout.top(),
        }
    }

    /// A manifest or index by its digest. Its bytes are not verified yet.
    pub(crate) fn document(&self, entry: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match &self.0 {
            Open::Registry(image, connection) => connection
                .document(&entry.digest.to_string())
                .map_err(|error| registry_error(image, error)),
            Open::Layout(layout) => {
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

    /// Opens a configuration or layer. Its bytes are not verified yet.
    ///
    /// # Errors
    /// If the image has no such blob.
    pub fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + '_>, ImageError> {
        Ok(match &self.0 {
            Open::Registry(_, connection) => Box::new(connection.blob(blob.digest, blob.size)),
            Open::Layout(layout) => Box::new(layout.open(blob)?),
        })
    }

    /// What an error of the reader that [`Self::blob`] gave means.
    #[must_use]
    pub fn explain(&self, blob: &Descriptor, error: io::Error) -> ImageError {
        match &self.0 {
            Open::Registry(image, _) => match error.downcast::<RegistryError>() {
                Ok(error) => registry_error(image, error),
                Err(error) => ImageError::Unusable {
                    name: image.to_string(),
                    reason: format!("blob {} cannot be read ({error})", blob.digest),
                },
            },
            Open::Layout(layout) => layout.read_error(blob, error),
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
            advice: "check the name and the tag; a stage must be defined before it is used"
                .to_owned(),
        };
    }
    ImageError::Registry {
        name,
        source: error,
    }
}
