//! Exports results from the store: as images, as archives of files, or as directories.
//!
//! The law: a result appears complete or not at all (see [`target`]). A directory that a result is merged
//! into is marked as incomplete until the end. Equal images give equal bytes.

mod compress;
pub mod csv;
mod image;
mod local;
mod replace;
mod rights;
mod spec;
mod target;
mod tree;

use std::io::{self, Write};
use std::path::PathBuf;

use exec::{Cancel, CancelScope, Stopped};
use oci::{ImageRef, NotAnImageRef};
use store::{DiffId, Digest, Store, StoreError};

use crate::assemble::Assembled;
use crate::event::{Progress, ProgressFn};
use crate::rootfs::{ReadError, Rootfs};
use compress::Job;
pub use rights::LocalRights;
pub use spec::{Compression, Destination, ImageOptions, MediaTypes, OutputSpec, OutputSpecError};

/// One result to export.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The store with the image.
    pub store: &'a Store,
    /// The image.
    pub image: &'a Assembled,
    /// Its names, as the user wrote them.
    pub names: &'a [String],
    /// The requested output.
    pub spec: &'a OutputSpec,
    /// For `local` and `tar`: the time that every file gets, in seconds since 1970.
    pub epoch: Option<i64>,
}

/// An exported result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Digest of the manifest as it was written. It differs from that in the store if layers are
    /// compressed.
    pub manifest: Digest,
    /// What could not be preserved, one line each.
    pub warnings: Vec<String>,
}

/// Why a result cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target cannot be used. A mistake of the user.
    #[error("cannot export to {}: {reason}", path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An image name is invalid. A mistake of the user.
    #[error(transparent)]
    Name(#[from] NotAnImageRef),
    /// The target cannot be written; the disk may be full.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// An output cannot be written; [`Self::at`] adds which one.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// A compressed layer cannot be stored.
    #[error("cannot compress a layer into the store")]
    Compress(#[source] io::Error),
    /// The store cannot be read.
    #[error("cannot read from the store")]
    ReadStore(#[source] io::Error),
    /// A file of a layer cannot be read.
    #[error("cannot read a layer of the result")]
    ReadLayer(#[from] ReadError),
    /// The store has other bytes than those of the digest.
    #[error("{0} is damaged in the store; run `cofferdam store check --repair`, then build again")]
    Damaged(Digest),
    /// A layer is missing.
    #[error("layer {0} is missing from the store; build again")]
    LayerGone(DiffId),
    /// A blob is missing.
    #[error("blob {0} is missing from the store; build again")]
    BlobGone(Digest),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl ExportError {
    /// Adds the output to [`Self::Output`].
    fn at(self, explain: impl FnOnce(io::Error) -> Self) -> Self {
        if let Self::Output(source) = self {
            return explain(source);
        }
        self
    }
}

impl From<Stopped> for ExportError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

/// Exports a result. `stdout` is used if [`OutputSpec::uses_stdout`]; the caller makes sure that it is
/// not a terminal.
///
/// # Errors
/// See [`ExportError`]. The target is unchanged, or marked as incomplete.
pub fn export(
    request: &Request<'_>,
    stdout: &mut dyn Write,
    progress: &ProgressFn<'_>,
    cancel: &Cancel,
) -> Result<Exported, ExportError> {
    let scope = CancelScope::new(cancel);
    let job = Job {
        store: request.store,
        progress,
        scope: &scope,
    };
    let done = write(request, &job, stdout);
    // After a cancel, any error is a consequence of it.
    done.map_err(|error| {
        if cancel.is_cancelled() {
            ExportError::Cancelled
        } else {
            error
        }
    })
}

fn write(
    request: &Request<'_>,
    job: &Job<'_>,
    stdout: &mut dyn Write,
) -> Result<Exported, ExportError> {
    match request.spec {
        OutputSpec::Oci {
            dest: Destination::Path(dir),
            tar: false,
            options,
        } => {
            let image = prepare(request, job, options)?;
            image::write_dir(job, &image, dir)?;
            Ok(exported(request, image.digest()))
        }
        OutputSpec::Oci { dest, options, .. } => {
            archive(request, job, dest, options, false, stdout)
        }
        OutputSpec::Docker {
            dest: Some(dest),
            options,
        } => archive(request, job, dest, options, true, stdout),
        OutputSpec::Docker {
            dest: None,
            options,
        } => keep(request, &options.names),
        OutputSpec::Image { names } => keep(request, names),
        OutputSpec::Tar { dest } => files(request, job, dest, stdout),
        OutputSpec::Local { dest, rights } => {
            let root = Rootfs::new(request.store, &request.image.layers)?;
            let warnings = local::write(job, &root, request.epoch, *rights, dest)?;
            Ok(Exported {
                manifest: request.image.manifest,
                warnings,
            })
        }
        OutputSpec::CacheOnly => Ok(exported(request, None)),
    }
}

/// Checks a target before the build, so that a mistake is reported at once.
///
/// # Errors
/// [`ExportError::Target`], or the target cannot be accessed.
pub fn check(spec: &OutputSpec) -> Result<(), ExportError> {
    match spec {
        OutputSpec::Oci {
            dest: Destination::Path(dir),
            tar: false,
            ..
        } => image::check_dir(dir),
        OutputSpec::Oci {
            dest: Destination::Path(path),
            ..
        }
        | OutputSpec::Docker {
            dest: Some(Destination::Path(path)),
            ..
        }
        | OutputSpec::Tar {
            dest: Destination::Path(path),
        } => target::check_file(path),
        OutputSpec::Local { dest, .. } => local::check_dir(dest).map(|_| ()),
        OutputSpec::Oci { .. }
        | OutputSpec::Docker { .. }
        | OutputSpec::Tar { .. }
        | OutputSpec::Image { .. }
        | OutputSpec::CacheOnly => Ok(()),
    }
}

fn prepare(
    request: &Request<'_>,
    job: &Job<'_>,
    options: &ImageOptions,
) -> Result<image::Prepared, ExportError> {
    image::prepare(
        job,
        request.image,
        &names(request, &options.names)?,
        options,
    )
}

/// Stores the names of the image.
fn keep(request: &Request<'_>, more: &[String]) -> Result<Exported, ExportError> {
    for name in names(request, more)? {
        let Assembled {
            manifest,
            config,
            ref layers,
        } = *request.image;
        request
            .store
            .set_image(&name.to_string(), manifest, config, layers)?;
    }
    Ok(exported(request, None))
}

fn files(
    request: &Request<'_>,
    job: &Job<'_>,
    dest: &Destination,
    stdout: &mut dyn Write,
) -> Result<Exported, ExportError> {
    let root = Rootfs::new(request.store, &request.image.layers)?;
    let report = |current| {
        (job.progress)(Progress {
            what: "writing files".to_owned(),
            current,
            total: 0,
        });
    };
    target::write(job, dest, stdout, |out| {
        tree::write(&root, request.epoch, job.scope, &report, out)
    })?;
    Ok(exported(request, None))
}

fn archive(
    request: &Request<'_>,
    job: &Job<'_>,
    dest: &Destination,
    options: &ImageOptions,
    docker: bool,
    stdout: &mut dyn Write,
) -> Result<Exported, ExportError> {
    let image = prepare(request, job, options)?;
    target::write(job, dest, stdout, |out| {
        image::write_archive(job, &image, docker, out)
    })?;
    Ok(exported(request, image.digest()))
}

fn exported(request: &Request<'_>, manifest: Option<Digest>) -> Exported {
    Exported {
        manifest: manifest.unwrap_or(request.image.manifest),
        warnings: Vec::new(),
    }
}

/// The names of `--tag` and of the output, in normal form, without duplicates.
fn names(request: &Request<'_>, more: &[String]) -> Result<Vec<ImageRef>, ExportError> {
    let mut names: Vec<ImageRef> = Vec::new();
    for text in request.names.iter().chain(more) {
        let name: ImageRef = text.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}
