//! What a build is asked for, and what it answers. All of it is resolved by the caller: the engine
//! reads no environment and no home directory.

use std::path::PathBuf;
use std::time::Duration;

use crate::assemble::Assembled;
use crate::event::{Comparison, Explanation, Outcome};
use crate::export::OutputSpec;
use crate::pull::ImageSource;
use exec::StepNetwork;
use oci::Platform;

/// Where the Dockerfile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// `Dockerfile` at the root of the context, else `dockerfile`.
    Default,
    /// A file; may lie outside the context.
    Path(PathBuf),
    /// Its text, such as from standard input.
    Text(Vec<u8>),
}

/// What counts when a step that was done again is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Everything but times.
    Content,
    /// Times, too; those after `SOURCE_DATE_EPOCH` count as it, if that is set.
    Strict,
}

/// A request to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The build context; `None` is an empty one.
    pub context: Option<PathBuf>,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// `--build-arg`, later ones win.
    pub build_args: Vec<(String, String)>,
    /// `--target`; the last stage otherwise.
    pub target: Option<String>,
    /// Run RUN, COPY and ADD again even if their results are known.
    pub no_cache: bool,
    /// Do RUN, COPY, ADD and WORKDIR again if their results are known, and compare. What is known
    /// stays and is what the build goes on with. Not together with `no_cache`.
    pub rebuild: Option<Rebuild>,
    /// Say why each step is found or not.
    pub explain: bool,
    /// Ask registries again for images that are known already.
    pub pull: bool,
    /// `--label`, stronger than LABEL.
    pub labels: Vec<(String, String)>,
    /// Names for the image in the local list and in image-like outputs.
    pub tags: Vec<String>,
    /// Where the result goes beside the store.
    pub outputs: Vec<OutputSpec>,
    /// How many steps may run at the same time, at least 1.
    pub jobs: usize,
    /// The platform to build for.
    pub platform: Platform,
    /// `--build-context`: names that FROM and `--from` look up before any registry.
    pub named_contexts: Vec<(String, ImageSource)>,
    /// Extra lines of `/etc/hosts` in RUN: address and name.
    pub hosts: Vec<(String, String)>,
    /// Network of RUN steps that do not say.
    pub network: StepNetwork,
    /// `SOURCE_DATE_EPOCH`: seconds since 1970 for what the build dates.
    pub epoch: Option<i64>,
}

impl BuildRequest {
    /// What the history says of it.
    pub(super) fn info(&self) -> store::BuildInfo {
        let shown = |path: &PathBuf| path.display().to_string();
        store::BuildInfo {
            context: self.context.as_ref().map_or_else(String::new, shown),
            dockerfile: match &self.dockerfile {
                DockerfileSource::Default => String::new(),
                DockerfileSource::Path(path) => shown(path),
                DockerfileSource::Text(_) => "-".to_owned(),
            },
            target: self.target.clone().unwrap_or_default(),
        }
    }
}

/// What a build made.
#[derive(Debug, Clone)]
pub struct BuildResult {
    /// The image in the store.
    pub image: Assembled,
    /// The names it has there.
    pub names: Vec<String>,
    /// What each step came to, in plan order: its name, its outcome, how long it took.
    pub steps: Vec<StepSummary>,
}

impl BuildResult {
    /// How many steps made something else when they were done again.
    #[must_use]
    pub fn differing(&self) -> usize {
        let compared = self.steps.iter().filter_map(|step| step.compared.as_ref());
        compared.filter(|comparison| comparison.differs()).count()
    }
}

/// A line of the summary.
#[derive(Debug, Clone)]
pub struct StepSummary {
    /// For example `[build 2/5] RUN make`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// Why it was found or not, if that was asked for.
    pub why: Option<Explanation>,
    /// What came of doing it again, if it was.
    pub compared: Option<Comparison>,
}
