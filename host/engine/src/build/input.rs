//! What a build reads before it plans: the Dockerfile and the context.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use exec::{Cancel, InterruptibleFile};

use super::error::BuildError;
use super::request::DockerfileSource;
use super::shared::Build;
use crate::context::named::{ContextDir, Outside, open_outside};
use crate::context::{Context, ContextError};

/// Where a Dockerfile is looked for in the context.
const DEFAULT_NAMES: [&str; 2] = ["Dockerfile", "dockerfile"];
/// The largest Dockerfile that is read, in bytes.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// A Dockerfile that was read.
pub(super) struct LoadedDockerfile {
    /// Its name, for messages.
    pub(super) file: String,
    /// Where it is, if it is a file.
    pub(super) path: Option<PathBuf>,
    pub(super) text: Vec<u8>,
}

impl Build<'_> {
    /// Reads the Dockerfile.
    pub(super) fn load(&self) -> Result<LoadedDockerfile, BuildError> {
        if let DockerfileSource::Text(text) = &self.request.dockerfile {
            return Ok(LoadedDockerfile {
                file: "Dockerfile".into(),
                path: None,
                text: text.clone(),
            });
        }
        let context = match &self.request.context {
            Some(path) => Some(ContextDir::open(path).map_err(|source| ContextError::Open {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        let (path, opened) = self.open_dockerfile(context.as_ref());
        let step = self
            .tracker
            .announce("[internal] load build definition from Dockerfile");
        let text = self
            .tracker
            .during(step, || read_bounded(opened?, MAX_DOCKERFILE, self.cancel))
            .map_err(|source| {
                if self.cancel.is_cancelled() {
                    return BuildError::Cancelled;
                }
                BuildError::NoDockerfile {
                    path: path.clone(),
                    source,
                }
            })?;
        let file = path
            .file_name()
            .map_or_else(|| "Dockerfile".into(), |n| n.to_string_lossy().into_owned());
        Ok(LoadedDockerfile {
            file,
            path: Some(path),
            text,
        })
    }

    /// Opens the Dockerfile, and names it.
    fn open_dockerfile(&self, context: Option<&ContextDir>) -> (PathBuf, io::Result<File>) {
        let outside = Outside::FilesAndPipes;
        match (&self.request.dockerfile, &self.request.context, context) {
            (DockerfileSource::Path(path), _, Some(dir)) => {
                (path.clone(), dir.open_file(path, outside))
            }
            (DockerfileSource::Path(path), ..) => (path.clone(), open_outside(path, outside)),
            (_, Some(root), Some(dir)) => {
                let (name, opened) = open_default(dir);
                (root.join(name), opened)
            }
            _ => {
                let [usual, _] = DEFAULT_NAMES;
                (usual.into(), open_outside(Path::new(usual), outside))
            }
        }
    }

    /// The build context; an empty directory if the request has none.
    pub(super) fn context(&self, dockerfile: Option<&Path>) -> Result<Context, BuildError> {
        if let Some(dir) = &self.request.context {
            let context = Context::open(dir, dockerfile, Some(self.store))?;
            return Ok(context.cancelled_by(self.cancel));
        }
        let dir = self.store.scratch().join("empty-context");
        let made = DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|source| ContextError::Open {
            path: dir.clone(),
            source,
        })?;
        Ok(Context::open(&dir, None, None)?)
    }
}

/// Opens the Dockerfile of a context by its usual names.
fn open_default(dir: &ContextDir) -> (&'static str, io::Result<File>) {
    let [usual, lower] = DEFAULT_NAMES;
    let is_missing = |opened: &io::Result<File>| matches!(opened, Err(error) if error.kind() == io::ErrorKind::NotFound);
    let opened = dir.open_below(Path::new(usual));
    if !is_missing(&opened) {
        return (usual, opened);
    }
    let second = dir.open_below(Path::new(lower));
    if is_missing(&second) {
        return (usual, opened);
    }
    (lower, second)
}

/// Reads a file or pipe of at most `limit` bytes.
fn read_bounded(file: File, limit: u64, cancel: &Cancel) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let stop = || cancel.is_cancelled();
    let file = InterruptibleFile::new(file, &stop)?;
    file.take(limit + 1).read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        let text = format!("it is larger than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(text)
}
