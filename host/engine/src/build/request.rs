//! The request for a build, and its result. The caller resolves all of it: the engine reads neither the
//! environment nor the home directory.

use std::path::PathBuf;
use std::time::Duration;

use crate::assemble::Assembled;
use crate::event::{Comparison, Explanation, Outcome};
use crate::export::OutputSpec;
use crate::pull::ImageSource;
use exec::StepNetwork;
use net_policy::Reach;
use oci::Platform;
use oci::decompress::UnpackLimits;
use store::TrustDomain;

/// Where the Dockerfile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// `Dockerfile` at the root of the context, else `dockerfile`.
    Default,
    /// A file, perhaps outside the context.
    Path(PathBuf),
    /// Its text, for example from standard input.
    Text(Vec<u8>),
}

/// What counts as a difference when a rebuilt step is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Everything but times.
    Content,
    /// Times, too. Times after `SOURCE_DATE_EPOCH`, if it is set, count as equal to it.
    Strict,
}

/// A request to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The build context; `None` is an empty one.
    pub context: Option<PathBuf>,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// `--build-arg`; later ones override earlier ones.
    pub build_args: Vec<(String, String)>,
    /// `--target`; the last stage otherwise.
    pub target: Option<String>,
    /// Run RUN, COPY and ADD again even if their results are known.
    pub no_cache: bool,
    /// Do RUN, COPY, ADD and WORKDIR again even if their results are known, and compare. The build
    /// continues with the known results. Not together with `no_cache`.
    pub rebuild: Option<Rebuild>,
    /// Results of RUN steps are shared with other builds of this domain, and with builds elsewhere only
    /// as far as each contains all steps that the VM had run ([`store::Trust`]).
    pub trust_domain: TrustDomain,
    /// How long the build may take.
    pub timeout: Option<Duration>,
    /// How long each RUN step may take.
    pub step_timeout: Option<Duration>,
    /// How long a RUN step may print nothing.
    pub idle_timeout: Option<Duration>,
    /// How many bytes of text the log of each RUN step keeps; of a longer one, the middle is left out.
    pub log_limit: u64,
    /// Report why each step is cached or not.
    pub explain: bool,
    /// Ask registries even for images that are in the store.
    pub pull: bool,
    /// `--label`; overrides LABEL.
    pub labels: Vec<(String, String)>,
    /// Names for the image in the local list and in image-like outputs.
    pub tags: Vec<String>,
    /// Where the result goes besides the store.
    pub outputs: Vec<OutputSpec>,
    /// Most steps that run at the same time; at least 1.
    pub jobs: usize,
    /// The platform to build for.
    pub platform: Platform,
    /// `--build-context`: names that FROM and `--from` look up before any registry.
    pub named_contexts: Vec<(String, ImageSource)>,
    /// Extra lines of `/etc/hosts` in RUN: address and name.
    pub hosts: Vec<(String, String)>,
    /// Network of RUN steps without `--network`. Without one, ADD downloads nothing either.
    pub network: StepNetwork,
    /// Which servers the Dockerfile and the images that it names may make this process reach: with
    /// FROM, `--from` and ADD, as token servers, and by redirections. Its rules are about ADD only.
    pub reach: Reach,
    /// How much pulled layers, and archives that ADD unpacks, may unpack to.
    pub unpack: UnpackLimits,
    /// `SOURCE_DATE_EPOCH`: latest time that the build writes, in seconds since 1970.
    pub epoch: Option<i64>,
}

impl BuildRequest {
    /// What the history records of it.
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

/// The result of a build.
#[derive(Debug, Clone)]
pub struct BuildResult {
    /// The image in the store.
    pub image: Assembled,
    /// Its names there.
    pub names: Vec<String>,
    /// The steps, in plan order.
    pub steps: Vec<StepSummary>,
}

impl BuildResult {
    /// How many rebuilt steps gave another result.
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
    /// Why it was cached or not, if that was asked for.
    pub why: Option<Explanation>,
    /// The comparison, if it was rebuilt.
    pub compared: Option<Comparison>,
}
