//! One build, from request to result.
//!
//! ```text
//! Dockerfile ─► parse ─► images resolved ─► plan ─► solver ─► image in the store ─► outputs
//! ```
//!
//! Everything but RUN happens on the host. When the last step has ended, every layer is in the store
//! already, so only configuration and manifest of the image remain to be written. The requested
//! outputs come before anything optional, and nothing optional changes the outcome.

mod error;
mod explain;
mod images;
mod input;
mod output;
mod request;
mod shared;
mod step;
mod time_limit;
mod track;

use std::collections::HashMap;
use std::sync::Mutex;

use exec::{Cancel, Executor, Stopped};
use store::{KnownSteps, Store};

use crate::context::Context;
use crate::copy::{CopyFrom, CopySpec};
use crate::event::{Reporter, StepId};
use crate::export;
use crate::plan::{self, Base, Op, Plan, PlanOptions, Step};
use crate::solver::{SolveError, Solver, StageDependencies};

pub use error::{BuildError, Class, Location, chain};
use explain::{BaseLayers, StepRecorder};
use input::LoadedDockerfile;
use output::export_error;
pub use request::{BuildRequest, BuildResult, DockerfileSource, Rebuild, StepSummary};
use shared::{Build, Images};
use step::{StepDone, Steps};
use time_limit::{Activity, TimeLimits, within};
use track::Tracker;

/// Exit status of a build that succeeded, but in which a rebuilt step gave another result.
pub const DIFFERS: i32 = 3;

/// Builds what `request` asks for.
///
/// `executor` is used only if a RUN step has no result in the store. `cancel` is also set by this
/// function when a step fails, to stop the others. The [crate's page](crate) has an example.
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
    build_and_report(request, store, executor, reporter, cancel, |_| Ok(()))
}

/// Like [`build`], for a caller that has to `report` the result elsewhere. If that fails, the build has
/// failed, and the history says why.
///
/// # Errors
/// Those of [`build`], and those of `report`.
pub fn build_and_report(
    request: &BuildRequest,
    store: &Store,
    executor: &dyn Executor,
    reporter: &dyn Reporter,
    cancel: &Cancel,
    report: impl FnOnce(&BuildResult) -> Result<(), BuildError>,
) -> Result<BuildResult, BuildError> {
    // A signal that comes before the row exists finds none to mark as cancelled.
    cancel.check().map_err(|Stopped| BuildError::Cancelled)?;
    let id = store.start_build(&request.info())?;
    let tracker = Tracker::new(reporter);
    let build = Build {
        request,
        store,
        executor,
        cancel,
        id,
        tracker: &tracker,
    };
    let limits = TimeLimits {
        total: request.timeout,
        idle: None,
    };
    let (result, expired) = within(limits, &Activity::default(), cancel, || {
        let stopped = cancel.check().map_err(|Stopped| BuildError::Cancelled);
        stopped.and_then(|()| build.run())
    });
    tracker.close();
    // What fails after that fails because of it.
    let result = match expired {
        Some(_) if result.is_err() => Err(BuildError::TimedOut {
            limit: request.timeout.unwrap_or_default(),
        }),
        Some(_) | None => result,
    };
    let result = result.and_then(|built| report(&built).map(|()| built));
    if let Err(err) = store.end_build(id, &outcome(&result)) {
        // The result, or the reason for the failure, matters more than a missing history record.
        log::warn!("cannot record in the history how this build ended: {err}");
    }
    result
}

/// What the history records of a build.
fn outcome(result: &Result<BuildResult, BuildError>) -> store::BuildOutcome {
    match result {
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
    }
}

/// What the steps of a build work with.
struct Work<'a> {
    dockerfile: &'a LoadedDockerfile,
    plan: &'a Plan,
    layers: &'a BaseLayers,
    context: &'a Context,
    records: &'a StepRecorder,
}

impl Build<'_> {
    fn run(&self) -> Result<BuildResult, BuildError> {
        for output in &self.request.outputs {
            export::check(output).map_err(|err| export_error(output, err))?;
        }
        let loaded = self.load()?;
        let dockerfile = dockerfile::parse(&loaded.file, &loaded.text)?;
        let options = self.plan_options();
        let mut images = Images::new();
        let mut configs = plan::Images::new();
        loop {
            // A base image can bring triggers that name more images.
            let wanted = plan::missing_images(&dockerfile, &options, &configs)?;
            if wanted.is_empty() {
                break;
            }
            for (key, image) in self.resolve_all(&loaded, &wanted)? {
                configs.insert(key.clone(), image.config.clone());
                images.insert(key, image);
            }
        }
        let plan = plan::plan(&dockerfile, &options, &configs)?;
        for warning in &plan.warnings {
            self.tracker.warn(warning.text.clone(), warning.line);
        }
        let context = self.context(loaded.path.as_deref())?;
        let layers = self.base_layers(&images)?;
        let records = StepRecorder::open(self.store, self.request, loaded.path.as_deref(), &plan);
        let work = Work {
            dockerfile: &loaded,
            plan: &plan,
            layers: &layers,
            context: &context,
            records: &records,
        };
        let built = self
            .solve(&work)
            .and_then(|stages| self.finish(&plan, &images, &stages));
        // What only helps later builds comes after the result, and also after a failure: the steps
        // before it are done.
        records.close(self.store, &plan, &layers);
        context.save_cache();
        built
    }

    /// Assembles the image, names it, and writes the outputs.
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

    /// Runs all stages of the plan.
    fn solve(&self, work: &Work<'_>) -> Result<Vec<Vec<StepDone>>, BuildError> {
        let Work {
            dockerfile, plan, ..
        } = *work;
        let numbers = self.announce(plan);
        let locate = |step: &Step| {
            let LoadedDockerfile { file, text, .. } = dockerfile;
            Location::boxed(file, text, step.line, step.last_line)
        };
        let steps = Steps {
            request: self.request,
            store: self.store,
            executor: self.executor,
            cancel: self.cancel,
            tracker: self.tracker,
            build: self.id,
            plan,
            images: work.layers,
            records: work.records,
            context: work.context,
            numbers: &numbers,
            locate: &locate,
            roots: Mutex::default(),
            chains: Mutex::default(),
            followed: Mutex::default(),
            fetched: Mutex::default(),
            known: KnownSteps::default(),
        };
        let stages = dependencies(plan);
        Solver::new(&stages, self.cancel)
            .solve(self.request.jobs, |at, done| steps.attempt(at, done))
            .map_err(|err| match err {
                SolveError::Failed(err) => err,
                SolveError::Cancelled => BuildError::Cancelled,
            })
    }

    /// Numbers all steps that do more than configure, in the order of the file.
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
}

/// How many rebuilt steps differ; empty if none does.
#[must_use]
pub fn differing_text(steps: usize) -> String {
    match steps {
        0 => String::new(),
        1 => "1 step is not reproducible".to_owned(),
        n => format!("{n} steps are not reproducible"),
    }
}

/// What each stage and each step waits for.
fn dependencies(plan: &Plan) -> Vec<StageDependencies> {
    let needs = |step: &Step| match &step.op {
        Op::Copy(CopySpec {
            from: CopyFrom::Stage(from),
            ..
        }) => vec![*from],
        Op::Copy(_) | Op::Run(_) | Op::Workdir { .. } | Op::Meta => Vec::new(),
    };
    plan.stages
        .iter()
        .map(|stage| StageDependencies {
            base: match stage.base {
                Base::Stage(base) => Some(base),
                Base::Image(_) | Base::Scratch => None,
            },
            needs: stage.steps.iter().map(needs).collect(),
        })
        .collect()
}
