//! How a build fails, and whose fault it is.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use dockerfile::DockerfileError;
use exec::StepError;
use oci::{ImageError, MAX_LAYERS, RegistryError};
use store::{IngestError, LayerError, LowSpace, OverBudget, StoreError};
use thiserror::Error;

use crate::assemble::AssembleError;
use crate::context::ContextError;
use crate::copy::CopyError;
use crate::export::ExportError;
use crate::pull::PullError;
use crate::rootfs::UserError;

/// Whose fault a failure is; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A step failed, or the Dockerfile, the context or a digest is wrong.
    User,
    /// A limit was exceeded: memory, disk, time, or what a layer can hold.
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

/// An error and its causes in one line. A cause whose text the line already contains is left out.
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

/// A location in the Dockerfile, with an excerpt to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file as the user knows it.
    pub file: String,
    /// First line of the instruction, one-based.
    pub line: usize,
    /// The instruction and its neighbours, marked.
    pub excerpt: String,
}

impl Location {
    pub(crate) fn boxed(file: &str, text: &[u8], first: usize, last: usize) -> Box<Self> {
        let excerpt = format!("{file}:{first}\n{}", dockerfile::excerpt(text, first, last));
        Box::new(Self {
            file: file.to_owned(),
            line: first,
            excerpt,
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// There is no Dockerfile, or it cannot be read.
    #[error("cannot read Dockerfile {path}", path = path.display())]
    NoDockerfile {
        /// Where it should be.
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
    /// An image that the Dockerfile names cannot be used.
    #[error("{location}: cannot use image {name}{}", stage_hint(stage.as_deref()))]
    Image {
        /// The instruction that names it.
        location: Box<Location>,
        /// Its name as written there.
        name: String,
        /// A stage with a similar name.
        stage: Option<String>,
        /// Why not.
        source: Box<PullError>,
    },
    /// A COPY, ADD or WORKDIR failed.
    #[error("{location}: {source}")]
    Copy {
        /// The instruction.
        location: Box<Location>,
        /// Why not. Part of the text, so no source of its own.
        #[source]
        source: Box<CopyError>,
    },
    /// The layer of a COPY or ADD cannot be stored.
    #[error("{location}: cannot store the layer")]
    Ingest {
        /// The instruction.
        location: Box<Location>,
        /// Why.
        source: Box<IngestError>,
    },
    /// An image cannot have as many layers.
    #[error("{location}: this step would exceed the limit of {MAX_LAYERS} layers per image")]
    TooManyLayers {
        /// The instruction.
        location: Box<Location>,
    },
    /// The user of a RUN step does not exist.
    #[error("{location}: invalid USER")]
    User {
        /// The instruction.
        location: Box<Location>,
        /// Why not.
        source: UserError,
    },
    /// A RUN step failed.
    #[error("{location}: {}", step_text(command, source))]
    Step {
        /// The instruction.
        location: Box<Location>,
        /// The command as it was run.
        command: String,
        /// The file with all of its output.
        log: PathBuf,
        /// What happened. Part of the text.
        source: StepError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is in the store, but an output could not be written.
    #[error("cannot write the output {output}")]
    Export {
        /// The output.
        output: String,
        /// Why.
        source: Box<ExportError>,
    },
    /// The image is in the store, but it could not be reported.
    #[error("cannot write {to}")]
    Report {
        /// The file or stream.
        to: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Configuration or manifest of the image cannot be written.
    #[error("cannot assemble the image")]
    Assemble(#[source] Box<AssembleError>),
    /// The build took too long.
    #[error("the build took longer than {}; --timeout sets the limit", super::time_limit::seconds(*limit))]
    TimedOut {
        /// The limit.
        limit: std::time::Duration,
    },
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
        StepError::Unfit(_) => {
            format!("cannot keep what \"{command}\" made: {source}")
        }
        StepError::Setup(_) | StepError::Limit(_) | StepError::Cancelled | StepError::Host(_) => {
            format!("cannot run \"{command}\": {source}")
        }
    }
}

/// Whether the store wrote nothing more because of `--min-free-space` or `--build-disk`, whatever it was
/// to write.
fn is_limit_of_the_store(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an I/O error wraps is not its source.
        let wrapped = error.downcast_ref::<std::io::Error>();
        let wrapped = wrapped.and_then(std::io::Error::get_ref);
        let is_limit = error.is::<LowSpace>()
            || error.is::<OverBudget>()
            || wrapped.is_some_and(|inner| inner.is::<LowSpace>() || inner.is::<OverBudget>());
        if is_limit {
            return true;
        }
        next = error.source();
    }
    false
}

/// An invalid layer is the fault of its author.
fn ingest_class(err: &IngestError) -> Class {
    match err {
        IngestError::Store(_) => Class::Host,
        IngestError::Layer(LayerError::Unfit { why, .. }) if why.is_limit() => Class::Limit,
        IngestError::Layer(_) => Class::User,
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
        PullError::TooLarge { .. } => Class::Limit,
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
            RegistryError::NotFound { .. }
            | RegistryError::Denied { .. }
            | RegistryError::OutOfReach { .. } => Class::User,
            RegistryError::Cancelled => Class::Cancelled,
            RegistryError::Unreachable { .. }
            | RegistryError::TooSlow { .. }
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
        if is_limit_of_the_store(self) {
            return Class::Limit;
        }
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
            Self::Copy { source, .. } if source.is_limit() => Class::Limit,
            Self::Copy { .. } => Class::User,
            Self::Ingest { source, .. } => ingest_class(source),
            Self::Step { source, .. } => match source {
                StepError::Limit(_)
                | StepError::Failed {
                    out_of_memory: Some(_),
                    ..
                } => Class::Limit,
                StepError::Failed { .. } | StepError::Setup(_) | StepError::Unfit(_) => Class::User,
                StepError::Cancelled => Class::Cancelled,
                StepError::Host(_) => Class::Host,
            },
            Self::Store(_) | Self::Report { .. } => Class::Host,
            Self::Export { source, .. } => export_class(source),
            Self::TimedOut { .. } => Class::Limit,
            Self::Cancelled => Class::Cancelled,
        }
    }

    /// The part of the Dockerfile that is to blame, with marks, if there is one.
    #[must_use]
    pub fn excerpt(&self) -> Option<&str> {
        let location = match self {
            Self::Image { location, .. }
            | Self::Copy { location, .. }
            | Self::Ingest { location, .. }
            | Self::TooManyLayers { location }
            | Self::User { location, .. }
            | Self::Step { location, .. } => location,
            Self::Dockerfile(err) => return Some(err.excerpt()).filter(|text| !text.is_empty()),
            Self::NoDockerfile { .. }
            | Self::Context(_)
            | Self::Store(_)
            | Self::Export { .. }
            | Self::Report { .. }
            | Self::Assemble(_)
            | Self::TimedOut { .. }
            | Self::Cancelled => return None,
        };
        Some(&location.excerpt)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use oci::decompress::LimitExceeded;

    use super::*;

    #[test]
    fn limits_of_the_store_are_limits_whatever_was_to_be_written() {
        let low = LowSpace { free: 1, floor: 2 };
        check_is_a_limit(&|| StoreError::LowSpace(low), &|| io::Error::other(low));
        let over = OverBudget { used: 1, limit: 2 };
        check_is_a_limit(&|| StoreError::OverBudget(over), &|| io::Error::other(over));
        let full = StoreError::Full { path: "a".into() };
        assert_eq!(BuildError::Store(full).class(), Class::Host);
    }

    #[test]
    fn a_layer_that_is_too_large_is_a_limit_wherever_it_comes_from() {
        let exceeded = || LimitExceeded::Size { limit: 1 };
        let errors = [
            BuildError::Image {
                location: Location::boxed("Dockerfile", b"FROM a\n", 1, 1),
                name: "a".into(),
                stage: None,
                source: Box::new(PullError::TooLarge {
                    name: "a".into(),
                    layer: store::sha256(b"a layer"),
                    source: exceeded(),
                }),
            },
            BuildError::Copy {
                location: Location::boxed("Dockerfile", b"ADD a /\n", 1, 1),
                source: Box::new(CopyError::TooLarge {
                    archive: "a".into(),
                    source: exceeded(),
                }),
            },
        ];
        for error in errors {
            assert_eq!(error.class(), Class::Limit, "{error:?}");
            // The limit is said once.
            let text = chain(&error);
            assert_eq!(text.matches("--layer-size").count(), 1, "{text}");
        }
    }

    #[track_caller]
    fn check_is_a_limit(store: &dyn Fn() -> StoreError, write: &dyn Fn() -> io::Error) {
        let location = || Location::boxed("Dockerfile", b"FROM a\n", 1, 1);
        let copy = |source| BuildError::Copy {
            location: location(),
            source: Box::new(source),
        };
        let rejected = io::Error::other(IngestError::Store(store()));
        let errors = [
            BuildError::Store(store()),
            BuildError::Ingest {
                location: location(),
                source: Box::new(IngestError::Store(store())),
            },
            BuildError::Image {
                location: location(),
                name: "a".into(),
                stage: None,
                source: Box::new(PullError::Store(store())),
            },
            BuildError::Assemble(Box::new(AssembleError::Store(store()))),
            copy(CopyError::Store(store())),
            copy(CopyError::Ingest(IngestError::Store(store()))),
            copy(CopyError::Write(rejected)),
            copy(CopyError::Write(write())),
        ];
        for error in errors {
            assert_eq!(error.class(), Class::Limit, "{error:?}");
        }
    }
}
