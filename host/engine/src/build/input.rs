//! What a build reads before it plans: the Dockerfile and the context.

use std::io::Read;
use std::path::{Path, PathBuf};

use exec::{Cancel, InterruptibleFile};

use super::error::BuildError;
use super::request::DockerfileSource;
use super::shared::Build;
use crate::context::{Context, ContextError};

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
        let path = match (&self.request.dockerfile, &self.request.context) {
            (DockerfileSource::Text(text), _) => {
                return Ok(LoadedDockerfile {
                    file: "Dockerfile".into(),
                    path: None,
                    text: text.clone(),
                });
            }
            (DockerfileSource::Path(path), _) => path.clone(),
            (DockerfileSource::Default, Some(dir)) => default_dockerfile(dir),
            (DockerfileSource::Default, None) => PathBuf::from("Dockerfile"),
        };
        let step = self
            .tracker
            .announce("[internal] load build definition from Dockerfile");
        let text = self
            .tracker
            .during(step, || read_bounded(&path, MAX_DOCKERFILE, self.cancel))
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

    /// The build context; an empty directory if the request has none.
    pub(super) fn context(&self, dockerfile: Option<&Path>) -> Result<Context, BuildError> {
        if let Some(dir) = &self.request.context {
            let context = Context::open(dir, dockerfile, Some(self.store))?;
            return Ok(context.cancelled_by(self.cancel));
        }
        let dir = self.store.scratch().join("empty-context");
        std::fs::create_dir(&dir).map_err(|source| ContextError::Open {
            path: dir.clone(),
            source,
        })?;
        Ok(Context::open(&dir, None, None)?)
    }
}

/// `Dockerfile` in the context, else `dockerfile`.
fn default_dockerfile(context: &Path) -> PathBuf {
    let usual = context.join("Dockerfile");
    let lower = context.join("dockerfile");
    if !usual.exists() && lower.exists() {
        lower
    } else {
        usual
    }
}

/// Reads a file or pipe of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64, cancel: &Cancel) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let stop = || cancel.is_cancelled();
    let file = InterruptibleFile::open(path, &stop)?;
    file.take(limit + 1).read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        let text = format!("it is larger than {} MiB", limit >> 20);
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, text));
    }
    Ok(text)
}
