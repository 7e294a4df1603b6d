//! From a Dockerfile to a plan: expands variables, selects stages, computes configurations.
//!
//! The laws: planning is pure and reads no file, clock or environment. The plan contains only what the
//! target needs. Anything that cannot be built is an error with a line and is never ignored. Sizes have
//! limits, so a Dockerfile cannot exhaust the memory of the host.
//!
//! Call [`missing_images`] to learn which images to resolve, then [`plan()`] with their configurations.
//!
//! ```
//! use engine::plan::{Images, PlanOptions, missing_images, plan};
//! use oci::Platform;
//!
//! let text = b"FROM scratch AS build\nCOPY a /\nFROM scratch\nCOPY --from=build /a /b\n";
//! let dockerfile = dockerfile::parse("Dockerfile", text)?;
//! let options = PlanOptions::new(Platform::linux("amd64"));
//! let images = Images::new();
//! assert_eq!(missing_images(&dockerfile, &options, &images)?, []);
//!
//! let plan = plan(&dockerfile, &options, &images)?;
//! let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
//! let shown: Vec<&str> = steps.map(|step| step.display.as_str()).collect();
//! assert_eq!(shown, ["[build 1/1] COPY a /", "[stage-1 1/1] COPY --from=build /a /b"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checks;
mod created;
mod env;
mod eval;
mod graph;
mod ports;
mod refs;
mod scope;
mod steps;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use checks::looks_secret;
pub use refs::named_context;

use dockerfile::{Checks, Dockerfile, DockerfileError, Fault, is_own_syntax, unsupported_syntax};
use exec::{StepNetwork, StepScript};
use oci::{ImageConfig, ImageConfigFile, Platform};

use crate::copy::CopySpec;

use eval::Evaluator;
use graph::Graph;
use refs::BaseRef;
use scope::Scope;

/// The options of a build that affect its plan.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// `--build-arg`; the last value of a name is used.
    pub build_args: Vec<(String, String)>,
    /// `--target`
    pub target: Option<String>,
    /// Platform of the image.
    pub platform: Platform,
    /// Platform of the builder.
    pub build_platform: Platform,
    /// `--label`; overrides LABEL.
    pub labels: Vec<(String, String)>,
    /// Default network of RUN.
    pub network: StepNetwork,
    /// `--add-host`: address and name.
    pub hosts: Vec<(String, String)>,
    /// Names of `--build-context`.
    pub named_contexts: BTreeSet<String>,
}

impl PlanOptions {
    /// The defaults for an image of `platform`, built on this machine.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            build_args: Vec::new(),
            target: None,
            platform,
            build_platform: Platform::host(),
            labels: Vec::new(),
            network: StepNetwork::Default,
            hosts: Vec::new(),
            named_contexts: BTreeSet::new(),
        }
    }
}

/// An image as a Dockerfile refers to it. The same name is a different image on another platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageKey {
    /// The name as written, with variables expanded.
    pub name: String,
    /// The requested platform.
    pub platform: Platform,
}

/// An image that the target needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Name and platform.
    pub key: ImageKey,
    /// The first line that needs it.
    pub line: usize,
    /// The named context to use instead of a registry: one of [`PlanOptions::named_contexts`].
    pub context: Option<String>,
    /// A stage with a similar name, to suggest if there is no such image.
    pub similar_stage: Option<String>,
}

/// The configurations of the requested images. A named context that is a directory has the default
/// one.
pub type Images = BTreeMap<ImageKey, ImageConfigFile>;

/// The steps of a build, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The stages that the target needs, in the order of the file. A stage refers to another one by its
    /// index here, and only to earlier ones.
    pub stages: Vec<Stage>,
    /// Index of the target.
    pub target: usize,
    /// Warnings.
    pub warnings: Vec<Warning>,
}

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Name of the build check that reports it, if any.
    pub rule: Option<&'static str>,
    /// One line; starts with the name of the rule.
    pub text: String,
    /// Line of the Dockerfile, one-based.
    pub line: Option<usize>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its name, or `stage-N`.
    pub name: String,
    /// What it starts from.
    pub base: Base,
    /// For example `[build 1/5] FROM docker.io/library/alpine`.
    pub base_display: String,
    /// First line of its `FROM`.
    pub line: usize,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The configuration after the last step.
    pub config: ImageConfig,
    /// The author (MAINTAINER).
    pub author: Option<String>,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// Another stage of the plan, by its index.
    Stage(usize),
    /// An image, or a named context.
    Image(ImageKey),
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// First line, one-based. For an ONBUILD trigger, that of the `FROM` that runs it.
    pub line: usize,
    /// Last line.
    pub last_line: usize,
    /// For example `[build 2/5] RUN make`.
    pub display: String,
    /// The entry in the image's history.
    pub created_by: String,
    /// The operation.
    pub op: Op,
}

/// The operation of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Run a program.
    Run(RunOp),
    /// Copy files.
    Copy(CopySpec),
    /// Create a directory if it does not exist.
    Workdir {
        /// Absolute and normalized.
        path: String,
        /// The owner; empty means root.
        user: String,
    },
    /// Change the configuration only: an `empty_layer` entry in the history.
    Meta,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOp {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// More environment that is not part of the key: proxies.
    pub unkeyed_env: Vec<String>,
    /// Working directory, absolute and normalized.
    pub cwd: String,
    /// User as written; empty means root.
    pub user: String,
    /// Network.
    pub network: StepNetwork,
    /// Host name.
    pub hostname: String,
    /// Lines for `/etc/hosts`: address and name.
    pub hosts: Vec<(String, String)>,
    /// The program, if it is in the Dockerfile.
    pub script: Option<StepScript>,
}

/// The images that the target needs, without duplicates, in the order of their lines.
///
/// # Errors
/// See [`missing_images`].
pub fn needed_images(
    d: &Dockerfile,
    o: &PlanOptions,
) -> Result<Vec<ImageRequest>, DockerfileError> {
    missing_images(d, o, &Images::new())
}

/// The images that the target needs and that are not in `images` yet. ONBUILD triggers of a base image
/// can refer to more images, so call this again with the resolved images until none is missing.
///
/// # Errors
/// An unknown target, an invalid `--from`, a `FROM` that cannot be expanded, an invalid trigger.
pub fn missing_images(
    d: &Dockerfile,
    o: &PlanOptions,
    images: &Images,
) -> Result<Vec<ImageRequest>, DockerfileError> {
    check_syntax(d, o)?;
    let scope = Scope::new(d, o)?;
    let mut requests = graph::walk(d, o, &scope, images)?.requests;
    requests.retain(|request| !images.contains_key(&request.key));
    Ok(requests)
}

/// Plans a build.
///
/// # Errors
/// Anything that is wrong or not supported in the stages that the target needs.
pub fn plan(d: &Dockerfile, o: &PlanOptions, images: &Images) -> Result<Plan, DockerfileError> {
    check_syntax(d, o)?;
    let scope = Scope::new(d, o)?;
    let graph = graph::walk(d, o, &scope, images)?;
    check_images(d, &graph, images)?;
    let checks = effective_checks(d, &scope)?;
    let mut warnings = checks::of_file(d, &checks);
    let mut stages = Evaluator::new(d, o, &scope, &graph, &checks, images);
    for (index, node) in &graph.nodes {
        stages.add(*index, node)?;
    }
    let (mut stages, found, triggers) = stages.finish();
    warnings.extend(found);
    warnings.sort_by_key(|warning| warning.line);
    warnings.splice(0..0, scope::unused(d, o, &triggers));
    if checks.error {
        fail_on_rules(d, &warnings)?;
    }
    let target = places(&graph)
        .get(&graph.target)
        .copied()
        .unwrap_or_default();
    if let Some(stage) = stages.get_mut(target) {
        stage.config.labels.extend(o.labels.iter().cloned());
    }
    Ok(Plan {
        stages,
        target,
        warnings,
    })
}

/// The index in the plan for each index in the file.
fn places(graph: &Graph) -> BTreeMap<usize, usize> {
    graph
        .nodes
        .keys()
        .enumerate()
        .map(|(place, index)| (*index, place))
        .collect()
}

impl BaseRef {
    fn placed(&self, places: &BTreeMap<usize, usize>) -> Base {
        match self {
            Self::Scratch => Base::Scratch,
            Self::Stage(index) => Base::Stage(places.get(index).copied().unwrap_or_default()),
            Self::Image(key) => Base::Image(key.clone()),
        }
    }
}

/// Checks that all images are resolved, including those of triggers.
fn check_images(d: &Dockerfile, graph: &Graph, images: &Images) -> Result<(), DockerfileError> {
    match graph
        .requests
        .iter()
        .find(|request| !images.contains_key(&request.key))
    {
        None => Ok(()),
        Some(missing) => {
            let fault = Fault::new(format!("image \"{}\" was not resolved", missing.key.name));
            Err(d.error(missing.line, missing.line, fault))
        }
    }
}

/// Refuses a file for another front end, unless the user overrides it.
fn check_syntax(d: &Dockerfile, o: &PlanOptions) -> Result<(), DockerfileError> {
    let mut given = o.build_args.iter().rev();
    let given = given.find(|(name, _)| name == "BUILDKIT_SYNTAX");
    let given = given.filter(|(_, value)| !value.is_empty());
    let (image, line) = match (given, &d.syntax) {
        (Some((_, value)), _) if value == "dockerfile.v0" => return Ok(()),
        (Some((_, value)), _) => (value, 0),
        (None, Some((image, line))) => (image, *line),
        (None, None) => return Ok(()),
    };
    if is_own_syntax(image) {
        return Ok(());
    }
    Err(d.error(line, line, unsupported_syntax(image)))
}

fn effective_checks(d: &Dockerfile, scope: &Scope) -> Result<Checks, DockerfileError> {
    match scope.given.get("BUILDKIT_DOCKERFILE_CHECK") {
        None => Ok(d.checks.clone()),
        Some(text) => Checks::parse(text).map_err(|fault| d.error(0, 0, fault)),
    }
}

fn fail_on_rules(d: &Dockerfile, warnings: &[Warning]) -> Result<(), DockerfileError> {
    let reported: Vec<&Warning> = warnings
        .iter()
        .filter(|warning| warning.rule.is_some())
        .collect();
    let rules: BTreeSet<&str> = reported.iter().filter_map(|warning| warning.rule).collect();
    if rules.is_empty() {
        return Ok(());
    }
    let rules: Vec<&str> = rules.into_iter().collect();
    let line = reported
        .iter()
        .find_map(|warning| warning.line)
        .unwrap_or_default();
    let fault = Fault::new(format!(
        "lint violation found for rules: {}",
        rules.join(", ")
    ));
    Err(d.error(line, line, fault))
}
