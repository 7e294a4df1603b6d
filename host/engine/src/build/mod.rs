//! One build, from request to result.
//!
//! ```text
//! Dockerfile ─► parse ─► images resolved ─► plan ─► solver ─► image in the store ─► outputs
//! ```
//!
//! Everything but RUN happens here on the host. When the last step has ended, every layer is in the
//! store already, so finishing the image is writing its config and manifest. What was asked for is
//! delivered before anything optional, and nothing optional changes the outcome.

mod error;
mod explain;
mod request;
mod step;
mod track;

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use exec::{Cancel, Executor, InterruptibleFile};
use store::{Layer, Store};

use crate::assemble::{Assembled, HistoryEntry, assemble};
use crate::context::{Context, ContextError};
use crate::copy::{CopyFrom, CopySpec};
use crate::dockerfile;
use crate::event::{Progress, Reporter, StepId};
use crate::export::{self, OutputSpec};
use crate::plan::{self, Base, ImageKey, ImageRequest, Op, Plan, PlanOptions, Step};
use crate::pull::{self, BaseImage, ImageSource, PullError};
use crate::solver::{Shape, Solver, Unsolved};

pub use error::{BuildError, Class, Place, chain};
use explain::{BaseLayers, Notebook};
pub use request::{BuildRequest, BuildResult, DockerfileSource, Rebuild, StepSummary};
use step::{StepDone, Steps};
use track::Tracker;

/// The largest Dockerfile that is read, in bytes.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// Exit status of a build that worked, of which a step that was done again made something else.
pub const DIFFERS: i32 = 3;

/// The images that a build uses.
type Images = BTreeMap<ImageKey, BaseImage>;

/// Builds what `request` asks for.
///
/// `executor` is used only if a RUN step has no result in the store. `cancel` is also set by this
/// function when a step fails, to stop the others.
///
/// # Errors
/// See [`BuildError`]; its class decides the exit status.
pub fn build(
    request: &BuildRequest,
    store: &Store,
    executor: &dyn Executor,
    reporter: &dyn Reporter,
    cancel: &Cancel,
) -> Result<BuildResult, BuildError> {
    build_and_tell(request, store, executor, reporter, cancel, |_| Ok(()))
}

/// As [`build`], for a caller that has to `tell` others of the result. A build of which that cannot
/// be done has failed: the history then says why, as it does of any failure.
///
/// # Errors
/// Those of [`build`], and those of `tell`.
pub fn build_and_tell(
    request: &BuildRequest,
    store: &Store,
    executor: &dyn Executor,
    reporter: &dyn Reporter,
    cancel: &Cancel,
    tell: impl FnOnce(&BuildResult) -> Result<(), BuildError>,
) -> Result<BuildResult, BuildError> {
    let id = store.start_build(&request.info())?;
    let tracker = Tracker::new(reporter);
    let result = Build {
        request,
        store,
        executor,
        cancel,
        id,
        tracker: &tracker,
    }
    .run();
    tracker.close();
    let result = result.and_then(|built| tell(&built).map(|()| built));
    let outcome = match &result {
        Ok(built) => {
            let differing = built.differing();
            store::BuildOutcome {
                class: if differing == 0 {
                    store::Class::Success
                } else {
                    store::Class::Differs
                },
                status: if differing == 0 { 0 } else { DIFFERS },
                message: differing_text(differing),
                image: Some(built.image.manifest),
            }
        }
        Err(err) => store::BuildOutcome {
            class: err.class().recorded(),
            status: err.class().status(),
            message: chain(err),
            image: None,
        },
    };
    if let Err(err) = store.end_build(id, &outcome) {
        // What was built, or why not, matters more than a row that cannot be written.
        log::warn!("the history does not say how this build ended: {err}");
    }
    result
}

struct Build<'a> {
    request: &'a BuildRequest,
    store: &'a Store,
    executor: &'a dyn Executor,
    cancel: &'a Cancel,
    id: store::BuildId,
    tracker: &'a Tracker<'a>,
}

/// What the steps of a build are done with.
struct Work<'a> {
    file: &'a str,
    text: &'a [u8],
    plan: &'a Plan,
    layers: &'a BaseLayers,
    context: &'a Context,
    notes: &'a Notebook,
}

impl Build<'_> {
    fn run(&self) -> Result<BuildResult, BuildError> {
        for output in &self.request.outputs {
            export::check(output).map_err(|err| export_error(output, err))?;
        }
        let (file, path, text) = self.load()?;
        let dockerfile = dockerfile::parse(&file, &text)?;
        let options = self.plan_options();
        let mut images = Images::new();
        let mut configs = plan::Images::new();
        loop {
            // A base image can bring triggers that name more images.
            let wanted = plan::missing_images(&dockerfile, &options, &configs)?;
            if wanted.is_empty() {
                break;
            }
            for (key, image) in self.resolve_all(&file, &text, &wanted)? {
                configs.insert(key.clone(), image.config.clone());
                images.insert(key, image);
            }
        }
        let plan = plan::plan(&dockerfile, &options, &configs)?;
        for warning in &plan.warnings {
            self.tracker.warn(warning.text.clone(), warning.line);
        }
        let context = self.context(path.as_deref())?;
        let layers = self.layers(&images)?;
        let notes = Notebook::open(self.store, self.request, path.as_deref(), &plan);
        let work = Work {
            file: &file,
            text: &text,
            plan: &plan,
            layers: &layers,
            context: &context,
            notes: &notes,
        };
        let built = self
            .solve(&work)
            .and_then(|stages| self.finish(&plan, &images, &stages));
        // What only helps later builds comes when the result is out; also after a failure, since
        // the steps before it are done.
        notes.close(self.store, &plan, &layers);
        context.save_cache();
        built
    }

    /// Makes the image, names it, and takes it where it was asked for.
    fn finish(
        &self,
        plan: &Plan,
        images: &Images,
        stages: &[Vec<StepDone>],
    ) -> Result<BuildResult, BuildError> {
        let image = self.assemble(plan, images, stages)?;
        for name in &self.request.tags {
            self.store
                .set_image(name, image.manifest, image.config, &image.layers)?;
        }
        self.deliver(&image)?;
        Ok(BuildResult {
            image,
            names: self.request.tags.clone(),
            steps: self.tracker.summary(),
        })
    }

    /// The Dockerfile: its name for messages, where it lies, its text.
    fn load(&self) -> Result<(String, Option<PathBuf>, Vec<u8>), BuildError> {
        let path = match (&self.request.dockerfile, &self.request.context) {
            (DockerfileSource::Text(text), _) => {
                return Ok(("Dockerfile".into(), None, text.clone()));
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
        let name = path
            .file_name()
            .map_or_else(|| "Dockerfile".into(), |n| n.to_string_lossy().into_owned());
        Ok((name, Some(path), text))
    }

    /// The build context; without one, an empty directory.
    fn context(&self, dockerfile: Option<&Path>) -> Result<Context, BuildError> {
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

    fn plan_options(&self) -> PlanOptions {
        let request = self.request;
        PlanOptions {
            build_args: request.build_args.clone(),
            target: request.target.clone(),
            labels: request.labels.clone(),
            network: request.network,
            hosts: request.hosts.clone(),
            named_contexts: request
                .named_contexts
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            ..PlanOptions::new(request.platform.clone())
        }
    }

    /// Resolves the images that the target needs. The first failure cancels the others.
    fn resolve_all(
        &self,
        file: &str,
        text: &[u8],
        wanted: &[ImageRequest],
    ) -> Result<Images, BuildError> {
        let announce = |want: &ImageRequest| {
            self.tracker
                .announce(format!("[internal] load image {}", want.key.name))
        };
        let steps: Vec<(StepId, &ImageRequest)> =
            wanted.iter().map(|want| (announce(want), want)).collect();
        let resolve = |(step, want): &(StepId, &ImageRequest)| {
            let resolved = self
                .tracker
                .during(*step, || self.resolve(*step, want))
                .map_err(|source| {
                    let place = Place::boxed(file, text, want.line, want.line);
                    let stage = want.similar_stage.clone();
                    BuildError::Image {
                        place,
                        stage,
                        source: Box::new(source),
                    }
                });
            if resolved.is_err() {
                self.cancel.cancel();
            }
            resolved.map(|image| (want.key.clone(), image))
        };
        if let [only] = steps.as_slice() {
            return resolve(only).map(|image| BTreeMap::from([image]));
        }
        // Each image pulls its own layers in parallel, so a few images at a time are enough.
        let mut images = Images::new();
        for some in steps.chunks(4) {
            let resolved: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = some
                    .iter()
                    .map(|one| scope.spawn(|| resolve(one)))
                    .collect();
                threads.into_iter().map(|thread| thread.join()).collect()
            });
            let mut failures = Vec::new();
            for result in resolved {
                match result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                    Ok((name, image)) => drop(images.insert(name, image)),
                    Err(err) => failures.push(err),
                }
            }
            // A resolution that was only cancelled is not the reason.
            failures.sort_by_key(|err| err.class() == Class::Cancelled);
            if let Some(failure) = failures.into_iter().next() {
                return Err(failure);
            }
        }
        Ok(images)
    }

    fn resolve(&self, step: StepId, want: &ImageRequest) -> Result<BaseImage, PullError> {
        let named = want.context.as_ref().and_then(|context| {
            self.request
                .named_contexts
                .iter()
                .rev()
                .find(|(name, _)| name == context)
        });
        let source = named.map_or_else(
            || ImageSource::Named(want.key.name.clone()),
            |(_, source)| source.clone(),
        );
        let progress = |p: Progress| self.tracker.status(step, p.what, p.current, p.total);
        pull::resolve(
            self.store,
            &source,
            &want.key.platform,
            self.request.pull,
            &progress,
            self.cancel,
        )
    }

    /// Runs all stages of the plan.
    fn solve(&self, work: &Work<'_>) -> Result<Vec<Vec<StepDone>>, BuildError> {
        let Work {
            file, text, plan, ..
        } = *work;
        let numbers = self.announce(plan);
        let place = |step: &Step| Place::boxed(file, text, step.line, step.last_line);
        let steps = Steps {
            request: self.request,
            store: self.store,
            executor: self.executor,
            cancel: self.cancel,
            tracker: self.tracker,
            build: self.id,
            plan,
            images: work.layers,
            notes: work.notes,
            context: work.context,
            numbers: &numbers,
            place: &place,
            roots: Mutex::default(),
            chains: Mutex::default(),
            followed: Mutex::default(),
            fetched: Mutex::default(),
        };
        let shapes = shapes(plan);
        Solver::new(&shapes, self.cancel)
            .solve(self.request.jobs, |stage, step, done| {
                steps.attempt(stage, step, done)
            })
            .map_err(|unsolved| match unsolved {
                Unsolved::Failed(err) => err,
                Unsolved::Cancelled => BuildError::Cancelled,
            })
    }

    /// Numbers all steps that are more than configuration, in the order of the file.
    fn announce(&self, plan: &Plan) -> HashMap<(usize, usize), StepId> {
        let mut numbers = HashMap::new();
        for (s, stage) in plan.stages.iter().enumerate() {
            for (i, step) in stage.steps.iter().enumerate() {
                if !matches!(step.op, Op::Meta) {
                    numbers.insert((s, i), self.tracker.announce(step.display.clone()));
                }
            }
        }
        numbers
    }

    /// The layers of the images, with what the store knows of them.
    fn layers(&self, images: &Images) -> Result<BaseLayers, BuildError> {
        let mut layers = BTreeMap::new();
        for (key, image) in images {
            let of_image: Result<Vec<Layer>, BuildError> = image
                .layers
                .iter()
                .map(|id| {
                    self.store.layer(*id)?.ok_or_else(|| {
                        BuildError::Store(store::StoreError::Unknown(format!("layer {id}")))
                    })
                })
                .collect();
            layers.insert(key.clone(), of_image?);
        }
        Ok(layers)
    }

    /// Config and manifest of the target.
    fn assemble(
        &self,
        plan: &Plan,
        images: &Images,
        done: &[Vec<StepDone>],
    ) -> Result<Assembled, BuildError> {
        let (base, lineage) = lineage(plan, plan.target);
        let mut history = Vec::new();
        for stage in lineage {
            let steps = plan.stages.get(stage).into_iter().flat_map(|s| &s.steps);
            for (step, done) in steps.zip(done.get(stage).into_iter().flatten()) {
                history.push(HistoryEntry {
                    created_by: step.created_by.clone(),
                    layer: done.layer.clone(),
                });
            }
        }
        let Some(target) = plan.stages.get(plan.target) else {
            return Err(BuildError::Cancelled); // a plan always has its target
        };
        assemble(
            self.store,
            base.and_then(|key| images.get(key)),
            &target.config,
            target.author.as_deref(),
            &self.request.platform,
            &history,
            self.request.epoch,
        )
        .map_err(|err| BuildError::Assemble(Box::new(err)))
    }

    /// Writes the outputs that were asked for beside the store.
    fn deliver(&self, image: &Assembled) -> Result<(), BuildError> {
        for output in &self.request.outputs {
            let step = self.tracker.announce(format!("exporting to {output}"));
            self.tracker
                .during(step, || self.export(step, image, output))
                .map_err(|err| export_error(output, err))?;
        }
        Ok(())
    }

    fn export(
        &self,
        step: StepId,
        image: &Assembled,
        output: &OutputSpec,
    ) -> Result<(), export::ExportError> {
        let progress = |p: Progress| self.tracker.status(step, p.what, p.current, p.total);
        let request = export::Request {
            store: self.store,
            image,
            names: &self.request.tags,
            spec: output,
            epoch: self.request.epoch,
        };
        let stop = || self.cancel.is_cancelled();
        let stdout = std::io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.and_then(|stdout| InterruptibleFile::new(stdout.into(), &stop));
        let mut stdout = stdout.map_err(export::ExportError::Stdout)?;
        let exported = export::export(&request, &mut stdout, &progress, self.cancel)?;
        for warning in exported.warnings {
            self.tracker.warn(warning, None);
        }
        Ok(())
    }
}

/// How many steps differed when they were done again; empty if none did.
#[must_use]
pub fn differing_text(steps: usize) -> String {
    match steps {
        0 => String::new(),
        1 => "1 step made something else than before".to_owned(),
        n => format!("{n} steps made something else than before"),
    }
}

fn export_error(output: &OutputSpec, err: export::ExportError) -> BuildError {
    BuildError::Export {
        output: output.to_string(),
        source: Box::new(err),
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

/// Reads a file, perhaps a pipe, that must not be larger than `limit` bytes.
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

/// The stages that a stage stands on, from the lowest to itself, and the image below them.
fn lineage(plan: &Plan, stage: usize) -> (Option<&ImageKey>, Vec<usize>) {
    let mut upwards = vec![stage];
    let mut at = stage;
    let image = loop {
        match plan.stages.get(at).map(|s| &s.base) {
            Some(Base::Stage(base)) => {
                at = *base;
                upwards.push(at);
            }
            Some(Base::Image(key)) => break Some(key),
            Some(Base::Scratch) | None => break None,
        }
    };
    upwards.reverse();
    (image, upwards)
}

/// What each stage and each step waits for.
fn shapes(plan: &Plan) -> Vec<Shape> {
    let needs = |step: &Step| match &step.op {
        Op::Copy(CopySpec {
            from: CopyFrom::Stage(from),
            ..
        }) => vec![*from],
        Op::Copy(_) | Op::Run(_) | Op::Workdir { .. } | Op::Meta => Vec::new(),
    };
    plan.stages
        .iter()
        .map(|stage| Shape {
            base: match stage.base {
                Base::Stage(base) => Some(base),
                Base::Image(_) | Base::Scratch => None,
            },
            needs: stage.steps.iter().map(needs).collect(),
        })
        .collect()
}
