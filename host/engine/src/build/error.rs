//! How a build fails, by whose fault it is.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use exec::StepError;
use oci::{ImageError, MAX_LAYERS, RegistryError};
use store::{IngestError, StoreError};
use thiserror::Error;

use crate::assemble::AssembleError;
use crate::context::ContextError;
use crate::copy::CopyError;
use crate::dockerfile::{self, DockerfileError};
use crate::export::ExportError;
use crate::pull::PullError;
use crate::rootfs::UserError;

/// Whose fault a failure is; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A step failed, or the Dockerfile, the context or a digest is wrong.
    User,
    /// A limit on time, memory or disk was reached.
    Limit,
    /// The host, a registry or the VM failed.
    Host,
    /// The user cancelled.
    Cancelled,
}

impl Class {
    /// The exit status of the command for it.
    #[must_use]
    pub fn status(self) -> i32 {
        match self {
            Self::User => 1,
            Self::Limit => 124,
            Self::Host => 125,
            Self::Cancelled => 130,
        }
    }

    /// How the history records it.
    pub(super) fn recorded(self) -> store::Class {
        match self {
            Self::User => store::Class::User,
            Self::Limit => store::Class::Limit,
            Self::Host => store::Class::Host,
            Self::Cancelled => store::Class::Cancelled,
        }
    }
}

/// An error and its causes in one line. A cause whose text the line has already is left out.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        below = cause.source();
    }
    line
}

/// A place in the Dockerfile, with what is needed to show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as the user knows it.
    pub file: String,
    /// First line of the instruction, one-based.
    pub line: usize,
    /// The instruction and its neighbours, marked.
    pub excerpt: String,
}

impl Place {
    pub(crate) fn boxed(file: &str, text: &[u8], first: usize, last: usize) -> Box<Self> {
        let excerpt = format!("{file}:{first}\n{}", dockerfile::excerpt(text, first, last));
        Box::new(Self {
            file: file.to_owned(),
            line: first,
            excerpt,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// There is no Dockerfile, or it cannot be read.
    #[error("cannot read the Dockerfile {path}", path = path.display())]
    NoDockerfile {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Dockerfile(Box<DockerfileError>),
    /// The build context cannot be used.
    #[error(transparent)]
    Context(Box<ContextError>),
    /// An image that the Dockerfile names cannot be had.
    #[error("{place}: cannot use this image{}", stage_hint(stage.as_deref()))]
    Image {
        /// The instruction that names it.
        place: Box<Place>,
        /// A stage with a similar name.
        stage: Option<String>,
        /// Why not.
        source: Box<PullError>,
    },
    /// A COPY, ADD or WORKDIR cannot be done.
    #[error("{place}: {source}")]
    Copy {
        /// The instruction.
        place: Box<Place>,
        /// Why not. Part of the text, so no source of its own.
        #[source]
        source: Box<CopyError>,
    },
    /// What a COPY or ADD would put into the image is refused.
    #[error("{place}: the layer is refused")]
    Ingest {
        /// The instruction.
        place: Box<Place>,
        /// Why.
        source: Box<IngestError>,
    },
    /// A step would lie on more layers than an image can have.
    #[error(
        "{place}: there are {MAX_LAYERS} layers below this step, and an image can have no more"
    )]
    TooManyLayers {
        /// The instruction.
        place: Box<Place>,
    },
    /// The user of a RUN step does not exist.
    #[error("{place}: cannot run as this user")]
    User {
        /// The instruction.
        place: Box<Place>,
        /// Why not.
        source: UserError,
    },
    /// A RUN step gave no result.
    #[error("{place}: {}", step_text(command, source))]
    Step {
        /// The instruction.
        place: Box<Place>,
        /// The command as it was run.
        command: String,
        /// Where all of its output is.
        log: PathBuf,
        /// What happened. Part of the text.
        source: StepError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is in the store but could not be put where it was asked for.
    #[error("cannot write the output {output}")]
    Export {
        /// The output.
        output: String,
        /// Why.
        source: Box<ExportError>,
    },
    /// The image is in the store, and who was to be told of it could not be.
    #[error("cannot write {to}")]
    Tell {
        /// The file, or whatever else.
        to: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The finished image could not be written down.
    #[error("cannot put the image together")]
    Assemble(#[source] Box<AssembleError>),
    /// Cancelled before anything failed.
    #[error("the build was cancelled")]
    Cancelled,
}

impl From<DockerfileError> for BuildError {
    fn from(err: DockerfileError) -> Self {
        Self::Dockerfile(Box::new(err))
    }
}

impl From<ContextError> for BuildError {
    fn from(err: ContextError) -> Self {
        if let ContextError::Cancelled = err {
            Self::Cancelled
        } else {
            Self::Context(Box::new(err))
        }
    }
}

fn stage_hint(stage: Option<&str>) -> String {
    stage.map_or_else(String::new, |stage| {
        format!(" (did you mean the stage `{stage}`?)")
    })
}

fn step_text(command: &str, source: &StepError) -> String {
    match source {
        StepError::Failed { .. } => {
            format!("process \"{command}\" did not complete successfully: {source}")
        }
        StepError::Setup(_) | StepError::Limit(_) | StepError::Cancelled | StepError::Host(_) => {
            format!("cannot run \"{command}\": {source}")
        }
    }
}

/// A layer that breaks the rules is its maker's fault.
fn ingest_class(err: &IngestError) -> Class {
    if matches!(err, IngestError::Store(_)) {
        Class::Host
    } else {
        Class::User
    }
}

fn assemble_class(err: &AssembleError) -> Class {
    match err {
        AssembleError::LayerGone(_) | AssembleError::Json(_) => Class::User,
        AssembleError::Store(_) => Class::Host,
    }
}

fn pull_class(err: &PullError) -> Class {
    match err {
        PullError::Name(_) => Class::User,
        PullError::Image(image) => image_class(image),
        PullError::Ingest { source, .. } => ingest_class(source),
        PullError::Store(_) => Class::Host,
    }
}

fn image_class(err: &ImageError) -> Class {
    match err {
        ImageError::NotFound { .. }
        | ImageError::Platform { .. }
        | ImageError::Unusable { .. }
        | ImageError::Damaged { .. }
        | ImageError::Read { .. } => Class::User,
        ImageError::Registry { source, .. } => match source {
            RegistryError::NotFound { .. } | RegistryError::Denied { .. } => Class::User,
            RegistryError::Cancelled => Class::Cancelled,
            RegistryError::Unreachable { .. }
            | RegistryError::Failing { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Setup(_) => Class::Host,
        },
        ImageError::Cancelled => Class::Cancelled,
    }
}

fn export_class(err: &ExportError) -> Class {
    match err {
        ExportError::Target { .. } | ExportError::Name(_) => Class::User,
        ExportError::Cancelled => Class::Cancelled,
        ExportError::Write { .. }
        | ExportError::Stdout(_)
        | ExportError::Output(_)
        | ExportError::Compress(_)
        | ExportError::ReadStore(_)
        | ExportError::ReadLayer(_)
        | ExportError::Damaged(_)
        | ExportError::LayerGone(_)
        | ExportError::BlobGone(_)
        | ExportError::Store(_) => Class::Host,
    }
}

impl BuildError {
    /// Whose fault it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoDockerfile { .. }
            | Self::Dockerfile(_)
            | Self::TooManyLayers { .. }
            | Self::User { .. } => Class::User,
            Self::Context(_) => Class::User,
            Self::Image { source, .. } => pull_class(source),
            Self::Assemble(source) => assemble_class(source),
            Self::Copy { source, .. } if matches!(**source, CopyError::Cancelled) => {
                Class::Cancelled
            }
            Self::Copy { source, .. } if source.is_host() => Class::Host,
            Self::Copy { .. } => Class::User,
            Self::Ingest { source, .. } => ingest_class(source),
            Self::Step { source, .. } => match source {
                StepError::Limit(_)
                | StepError::Failed {
                    out_of_memory: Some(_),
                    ..
                } => Class::Limit,
                StepError::Failed { .. } | StepError::Setup(_) => Class::User,
                StepError::Cancelled => Class::Cancelled,
                StepError::Host(_) => Class::Host,
            },
            Self::Store(_) | Self::Tell { .. } => Class::Host,
            Self::Export { source, .. } => export_class(source),
            Self::Cancelled => Class::Cancelled,
        }
    }

    /// The part of the Dockerfile that is to blame, with marks, if one is.
    #[must_use]
    pub fn excerpt(&self) -> Option<&str> {
        let place = match self {
            Self::Image { place, .. }
            | Self::Copy { place, .. }
            | Self::Ingest { place, .. }
            | Self::TooManyLayers { place }
            | Self::User { place, .. }
            | Self::Step { place, .. } => place,
            Self::Dockerfile(err) => return Some(err.excerpt()).filter(|text| !text.is_empty()),
            Self::NoDockerfile { .. }
            | Self::Context(_)
            | Self::Store(_)
            | Self::Export { .. }
            | Self::Tell { .. }
            | Self::Assemble(_)
            | Self::Cancelled => return None,
        };
        Some(&place.excerpt)
    }
}
