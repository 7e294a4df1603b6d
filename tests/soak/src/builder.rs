//! The processes that are killed: one build or one prune each.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::thread;

use anyhow::{Context as _, Result, bail};
use engine::build::{BuildError, BuildRequest, Class, DockerfileSource, build};
use engine::event::{Event, Reporter};
use exec::{Cancel, StepNetwork};
use oci::Platform;
use oci::decompress::UnpackLimits;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use store::{OpenOptions, PruneOptions, Store, TrustDomain};

use crate::counters;
use crate::executor::OnHost;
use crate::recipe::{self, Recipe};

/// Exit status when a step failed.
pub(crate) const USER: u8 = 1;
/// Exit status when the disk is full.
pub(crate) const FULL: u8 = 3;
/// Exit status when the host failed otherwise.
pub(crate) const HOST: u8 = 125;
/// Exit status of a cancelled build.
pub(crate) const CANCELLED: u8 = 130;

/// One build.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store.
    store: PathBuf,
    /// The directory of build contexts and steps; the store may be on a small file system of its own.
    work: PathBuf,
    /// Number of the recipe.
    recipe: u64,
    /// Name of the image.
    #[arg(long)]
    tag: Option<String>,
    /// An output.
    #[arg(long)]
    output: Option<String>,
    /// Run every step again.
    #[arg(long)]
    no_cache: bool,
}

struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: Event) {}
}

/// Builds, and prints the digest of the image.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cancel = Cancel::new();
    let mut signals = Signals::new([SIGINT])?;
    let on_signal = cancel.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            on_signal.cancel();
        }
    });
    let recipe = Recipe::new(args.recipe);
    let store = match Store::open(&args.store, &options(&format!("recipe {}", args.recipe))) {
        Err(store::StoreError::Full { .. }) => return Ok(ExitCode::from(FULL)),
        opened => opened?,
    };
    let built = build(
        &request(args, &recipe)?,
        &store,
        &OnHost {
            store: &store,
            dirs: &args.work.join(recipe::STEPS),
            next: AtomicU64::new(0),
        },
        &Silent,
        &cancel,
    );
    // On a full disk the next process cleans up what could not be cleaned up now.
    let closed = store.close();
    match built {
        Ok(built) => {
            counters::say(built.image.config);
            ended(closed.map_err(Into::into))
        }
        Err(error) => Ok(failed(error)),
    }
}

/// The exit status of a failed build.
fn failed(error: BuildError) -> ExitCode {
    let class = error.class();
    let error = anyhow::Error::new(error);
    counters::complain(format!("error: {error:#}"));
    match class {
        Class::User => ExitCode::from(USER),
        Class::Cancelled => ExitCode::from(CANCELLED),
        Class::Host | Class::Limit if is_full(&error) => ExitCode::from(FULL),
        Class::Host | Class::Limit => ExitCode::from(HOST),
    }
}

/// The exit status of an end that may fail only on a full disk.
fn ended(done: Result<()>) -> Result<ExitCode> {
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if is_full(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

/// Decided by the text, because errors hide the types of their causes.
fn is_full(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}").to_lowercase();
    text.contains("no space left") || text.contains("disk is full")
}

fn request(args: &Args, recipe: &Recipe) -> Result<BuildRequest> {
    let outputs = args.output.as_deref().map(str::parse).transpose();
    Ok(BuildRequest {
        context: Some(recipe.context_in(&args.work)),
        dockerfile: DockerfileSource::Text(recipe.dockerfile.clone().into_bytes()),
        build_args: Vec::new(),
        target: None,
        no_cache: args.no_cache,
        pull: false,
        labels: Vec::new(),
        tags: args.tag.iter().cloned().collect(),
        outputs: outputs.context("output")?.into_iter().collect(),
        jobs: 3,
        platform: "linux/amd64".parse::<Platform>().context("platform")?,
        named_contexts: Vec::new(),
        hosts: Vec::new(),
        network: StepNetwork::None,
        reach: Default::default(),
        unpack: UnpackLimits::USUAL,
        epoch: Some(0),
        explain: false,
        rebuild: None,
        trust_domain: TrustDomain::new("soak").context("a trust domain")?,
        timeout: None,
        step_timeout: None,
        idle_timeout: None,
        log_limit: store::StepLog::DEFAULT_LIMIT,
    })
}

/// The options with which each process opens the store.
pub(crate) fn options(command: &str) -> OpenOptions {
    OpenOptions {
        command: command.to_owned(),
        read_only: false,
    }
}

/// Prunes the store.
pub(crate) fn prune(store: &Path, images: bool, keep: Option<u64>) -> Result<ExitCode> {
    let store = Store::open_to_prune(store, &options("prune"))?;
    let wanted = PruneOptions {
        images,
        max_used: keep,
        ..PruneOptions::default()
    };
    let report = store.prune(&wanted, &mut |_| ControlFlow::Continue(()))?;
    let closed = store.close();
    if !report.failed.is_empty() {
        bail!("could not remove {:?}", report.failed);
    }
    ended(closed.map_err(Into::into))
}
