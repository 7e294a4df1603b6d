//! One step of a plan: find its result in the store, or make it.
//!
//! The key of a RUN is made of its inputs, since its result is known only afterwards. The key of a
//! COPY, ADD or WORKDIR is the content of its layer, which is known before the layer is written, unless
//! a context file was never read before: then the layer is written first, in one pass that also
//! hashes, and looked up afterwards.

mod files;
mod follow;
mod run;
mod web;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use exec::{Cancel, Executor};
use oci::MAX_LAYERS;
use store::{
    ContentId, DiffId, KnownSteps, Layer, Lookup, Owner, Provenance, StepKey, StepResult, Store,
    Trust,
};

use super::error::{BuildError, Location};
use super::explain::{self, BaseLayers, Origin, StepRecorder};
use super::request::{BuildRequest, Rebuild};
use super::track::Tracker;
use crate::changes::{self, Changes, Times};
use crate::context::Context;
use crate::copy::{CopyFrom, CopySpec};
use crate::download::{Fetched, WebSource};
use crate::event::{Comparison, Explanation, Outcome, StepId};
use crate::plan::{Base, Op, Plan, Step};
use crate::rootfs::Rootfs;
use crate::solver::{At, Attempt, Results};

pub(super) use follow::Followed;

/// The result of a step.
#[derive(Debug, Clone)]
pub(super) struct StepDone {
    /// Its layer, if it has one.
    pub(super) layer: Option<Layer>,
    /// What could have influenced the stage up to this step.
    provenance: Arc<Provenance>,
}

/// A step that is done.
struct Finished {
    layer: Option<Layer>,
    outcome: Outcome,
    /// What could have influenced the layer, apart from what is below it.
    provenance: Provenance,
}

impl Finished {
    /// The host made the layer, or found it.
    fn by_host(layer: Option<Layer>, outcome: Outcome) -> Self {
        Self {
            layer,
            outcome,
            provenance: Provenance::default(),
        }
    }
}

/// What the steps of a build share.
pub(super) struct Steps<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) store: &'a Store,
    pub(super) executor: &'a dyn Executor,
    pub(super) cancel: &'a Cancel,
    pub(super) tracker: &'a Tracker<'a>,
    pub(super) build: store::BuildId,
    pub(super) plan: &'a Plan,
    pub(super) images: &'a BaseLayers,
    /// The records of the last build.
    pub(super) records: &'a StepRecorder,
    pub(super) context: &'a Context,
    /// Number of each step that does more than configure.
    pub(super) numbers: &'a HashMap<(usize, usize), StepId>,
    /// The location of a step in the Dockerfile, for errors.
    pub(super) locate: &'a (dyn Fn(&Step) -> Box<Location> + Sync),
    /// Merged roots by chain, since steps of a stage share most of it.
    pub(super) roots: Mutex<HashMap<Vec<DiffId>, Arc<Rootfs>>>,
    /// Layers of the complete stages, from their base up.
    pub(super) chains: Mutex<HashMap<usize, Arc<[Layer]>>>,
    /// Runs of other builds that steps wait for.
    pub(super) followed: Mutex<HashMap<StepId, Followed<'a>>>,
    /// Files that were downloaded.
    pub(super) fetched: Mutex<HashMap<WebSource, Fetched>>,
    /// The keys of the RUN steps that were reached.
    pub(super) known: KnownSteps,
}

/// A step that is being done.
struct StepContext<'a> {
    planned: &'a Step,
    number: StepId,
    /// Stage and position in it.
    position: (usize, usize),
    /// The chain of layers below it.
    below: Vec<Layer>,
    /// What could have influenced these, and what is copied onto them.
    provenance: Arc<Provenance>,
    /// The results so far.
    done: &'a Results<StepDone>,
    at: &'a At<'a>,
}

impl Steps<'_> {
    /// Attempts a step, given the results so far.
    pub(super) fn attempt(
        &self,
        at: &At<'_>,
        done: &Results<StepDone>,
    ) -> Result<Attempt<StepDone>, BuildError> {
        let (stage, index) = (at.stage, at.step);
        let planned = self.plan.stages.get(stage).and_then(|s| s.steps.get(index));
        let provenance = self.provenance(stage, planned, done);
        let (Some(planned), Some(&number)) = (planned, self.numbers.get(&(stage, index))) else {
            let layer = None;
            return Ok(Attempt::Done(StepDone { layer, provenance }));
        };
        self.tracker.start(number);
        let step = StepContext {
            planned,
            number,
            position: (stage, index),
            below: self.chain(stage, done),
            provenance: Arc::clone(&provenance),
            done,
            at,
        };
        let attempt = match &planned.op {
            Op::Run(op) => self.run(&step, op),
            Op::Copy(spec) => self.copy(&step, spec),
            Op::Workdir { path, user } => self.workdir(&step, path, user),
            Op::Meta => Ok(Attempt::Done(Finished::by_host(None, Outcome::Done))),
        };
        match attempt {
            Ok(Attempt::Done(finished)) => {
                self.tracker.end(number, finished.outcome);
                let mut provenance = provenance;
                if finished.provenance != Provenance::default() {
                    Arc::make_mut(&mut provenance).merge(&finished.provenance);
                }
                let layer = finished.layer;
                Ok(Attempt::Done(StepDone { layer, provenance }))
            }
            Ok(Attempt::Busy) => Ok(Attempt::Busy),
            Ok(Attempt::Deferred) => Ok(Attempt::Deferred),
            Err(err) if self.cancel.is_cancelled() => Err(err),
            Err(err) => {
                self.tracker.end(number, Outcome::Failed(err.to_string()));
                Err(err)
            }
        }
    }

    /// What could have influenced the root of the next step of a stage, and what that step copies.
    fn provenance(
        &self,
        stage: usize,
        planned: Option<&Step>,
        done: &Results<StepDone>,
    ) -> Arc<Provenance> {
        let mut provenance = self.stage_provenance(stage, done);
        if let Some(Op::Copy(CopySpec {
            from: CopyFrom::Stage(from),
            ..
        })) = planned.map(|step| &step.op)
        {
            let copied = self.stage_provenance(*from, done);
            Arc::make_mut(&mut provenance).merge(&copied);
        }
        provenance
    }

    /// What could have influenced a stage so far. A result includes what is below it.
    fn stage_provenance(&self, stage: usize, done: &Results<StepDone>) -> Arc<Provenance> {
        let mut at = Some(stage);
        while let Some(stage) = at {
            if let Some(last) = done.of(stage).next_back() {
                return Arc::clone(&last.provenance);
            }
            at = match self.plan.stages.get(stage).map(|s| &s.base) {
                Some(Base::Stage(base)) => Some(*base),
                Some(Base::Image(_) | Base::Scratch) | None => None,
            };
        }
        Arc::default()
    }

    /// Whose results of RUN steps this build takes.
    fn trust(&self) -> Trust<'_> {
        Trust::Domain {
            own: &self.request.trust_domain,
            known: &self.known,
        }
    }

    /// The layers of a stage so far, lowest first.
    fn chain(&self, stage: usize, done: &Results<StepDone>) -> Vec<Layer> {
        let mut chain = match self.plan.stages.get(stage).map(|s| &s.base) {
            Some(Base::Stage(base)) => self.stage_layers(*base, done).to_vec(),
            Some(Base::Image(key)) => self.images.get(key).cloned().unwrap_or_default(),
            Some(Base::Scratch) | None => Vec::new(),
        };
        chain.extend(done.of(stage).filter_map(|step| step.layer.clone()));
        chain
    }

    /// The layers of a complete stage. Stages refer only to earlier ones, perhaps thousands of them, so
    /// this is not recursive and collects each stage once.
    fn stage_layers(&self, stage: usize, done: &Results<StepDone>) -> Arc<[Layer]> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = Vec::new();
        let mut at = Some(stage);
        while let Some(stage) = at.filter(|stage| !chains.contains_key(stage)) {
            missing.push(stage);
            at = match self.plan.stages.get(stage).map(|s| &s.base) {
                Some(Base::Stage(base)) => Some(*base),
                Some(Base::Image(_) | Base::Scratch) | None => None,
            };
        }
        let known = at.and_then(|stage| chains.get(&stage)).map(Arc::clone);
        let mut below: Arc<[Layer]> = known.unwrap_or_default();
        for stage in missing.into_iter().rev() {
            let base = self.plan.stages.get(stage).map(|s| &s.base);
            if let Some(Base::Image(key)) = base {
                below = self.images.get(key).cloned().unwrap_or_default().into();
            }
            let mut own = done
                .of(stage)
                .filter_map(|step| step.layer.clone())
                .peekable();
            if own.peek().is_some() {
                below = below.iter().cloned().chain(own).collect();
            }
            chains.insert(stage, Arc::clone(&below));
        }
        below
    }

    /// Where each layer of [`Self::chain`] comes from, for messages.
    fn origins(&self, stage: usize, done: &Results<StepDone>) -> Vec<Origin> {
        let mut upwards = Vec::new();
        let mut at = Some(stage);
        while let Some(stage) = at {
            let Some(planned) = self.plan.stages.get(stage) else {
                break;
            };
            let steps: Vec<_> = done.of(stage).zip(&planned.steps).collect();
            let made = steps
                .into_iter()
                .rev()
                .filter(|(done, _)| done.layer.is_some());
            upwards.extend(made.map(|(_, step)| Origin::Step(step.display.clone())));
            at = match &planned.base {
                Base::Stage(base) => Some(*base),
                Base::Image(key) => {
                    let n_layers = self.images.get(key).map_or(0, Vec::len);
                    upwards.extend((0..n_layers).map(|_| Origin::Image(key.name.clone())));
                    None
                }
                Base::Scratch => None,
            };
        }
        upwards.reverse();
        upwards
    }

    /// The merged root of a chain.
    fn root(&self, chain: &[Layer]) -> Result<Arc<Rootfs>, BuildError> {
        let ids: Vec<DiffId> = chain.iter().map(|layer| layer.diff_id).collect();
        // Starts from the longest part that was merged before, and shares memory with it. The lock is not
        // held meanwhile: if two stages merge the same chain, both results are right.
        let (n_known, known) = self.known_root(&ids);
        let (_, rest) = ids.split_at(n_known);
        if rest.is_empty() {
            return Ok(known);
        }
        let mut root = Rootfs::clone(&known);
        for layer in rest {
            if self.cancel.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            root = root.with_layer(*layer)?;
        }
        let root = Arc::new(root);
        self.roots().insert(ids, Arc::clone(&root));
        Ok(root)
    }

    /// The longest beginning of a chain that was merged already, and its number of layers.
    fn known_root(&self, chain: &[DiffId]) -> (usize, Arc<Rootfs>) {
        let roots = self.roots();
        let known = (1..=chain.len()).rev().find_map(|n| {
            let root = roots.get(chain.get(..n)?)?;
            Some((n, Arc::clone(root)))
        });
        known.unwrap_or_else(|| (0, Arc::new(Rootfs::scratch(self.store))))
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<Vec<DiffId>, Arc<Rootfs>>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a step whose layer would be one too many: the image would be unusable, and the roots
    /// that are kept for each chain would add up.
    fn check_depth(&self, step: &StepContext<'_>) -> Result<(), BuildError> {
        if step.below.len() < MAX_LAYERS {
            return Ok(());
        }
        let location = self.location(step);
        Err(BuildError::TooManyLayers { location })
    }

    fn location(&self, step: &StepContext<'_>) -> Box<Location> {
        (self.locate)(step.planned)
    }

    /// Reports that the step waits for another build.
    fn report_wait(&self, step: &StepContext<'_>, owner: &Owner) {
        let build = owner.run.map(|run| format!("build {}, ", run.build));
        let build = build.unwrap_or_default();
        let what = format!("waiting for the same step in {build}`{}`", owner.command);
        self.tracker.status(step.number, what, 0, 0);
    }
}

type StepAttempt = Result<Attempt<Finished>, BuildError>;

/// The host made a layer.
fn done(layer: Layer) -> StepAttempt {
    let finished = Finished::by_host(Some(layer), Outcome::Done);
    Ok(Attempt::Done(finished))
}

fn ids(chain: &[Layer]) -> Vec<DiffId> {
    chain.iter().map(|layer| layer.diff_id).collect()
}

fn contents(chain: &[Layer]) -> Vec<ContentId> {
    chain.iter().map(|layer| layer.content_id).collect()
}

impl Steps<'_> {
    /// Looks up a result, and claims the step if there is none. With `force` any result is ignored.
    fn claim(&self, key: StepKey, trust: Trust<'_>, force: bool) -> Result<Lookup, BuildError> {
        let found = if force {
            self.store.claim(key, trust)
        } else {
            self.store.lookup(key, trust)
        };
        Ok(found?)
    }
}

// What is reported and recorded of a step.
impl Steps<'_> {
    /// The step has a result in the store.
    fn record_hit(&self, step: &StepContext<'_>, key: StepKey, layer: Option<&Layer>) {
        self.records.record(step.position, key, layer);
        if self.records.explains() {
            let mut reasons = vec!["same inputs".to_owned()];
            reasons.extend(self.web_hits(step));
            let why = Explanation {
                hit: true,
                reasons,
                changes: Changes::default(),
            };
            self.tracker.explained(step.number, why);
        }
    }

    /// Reports why a step has to be done.
    fn explain(&self, step: &StepContext<'_>, force: bool, why: impl FnOnce() -> Explanation) {
        if !self.records.explains() {
            return;
        }
        let why = if force {
            Explanation {
                reasons: vec!["--no-cache was given".to_owned()],
                ..Explanation::default()
            }
        } else {
            why()
        };
        self.tracker.explained(step.number, why);
    }

    /// The result of the step is in the store. With `--rebuild` the step is done `again`, under a claim
    /// as usual, so that no other build does it meanwhile. The claim ends without a result, so the
    /// stored one stays.
    fn found(
        &self,
        step: &StepContext<'_>,
        key: StepKey,
        trust: Trust<'_>,
        stored: StepResult,
        again: impl FnOnce() -> Result<Layer, BuildError>,
    ) -> StepAttempt {
        let StepResult {
            layer: stored,
            provenance,
        } = stored;
        if self.request.rebuild.is_none() {
            self.record_hit(step, key, Some(&stored));
            return Ok(Attempt::Done(Finished {
                layer: Some(stored),
                outcome: Outcome::Cached,
                provenance,
            }));
        }
        let claim = match self.claim(key, trust, true)? {
            Lookup::Claimed(claim) => claim,
            Lookup::Busy(owner) => {
                self.report_wait(step, &owner);
                return Ok(Attempt::Busy);
            }
            // Not with `force`; another attempt would find the same.
            Lookup::Hit(_) => return Ok(Attempt::Busy),
        };
        self.publish_run(step, &claim)?;
        self.record_hit(step, key, Some(&stored));
        let again = again()?;
        claim.release()?;
        self.compare(step, &stored, &again)?;
        Ok(Attempt::Done(Finished {
            layer: Some(stored),
            outcome: Outcome::Done,
            provenance,
        }))
    }

    /// Compares the result of a rebuilt step with the stored one, which the build continues with.
    fn compare(
        &self,
        step: &StepContext<'_>,
        stored: &Layer,
        again: &Layer,
    ) -> Result<(), BuildError> {
        let strict = self.request.rebuild == Some(Rebuild::Strict);
        let epoch = self.request.epoch;
        let times = if strict {
            Times::Counted { epoch }
        } else {
            Times::Beside { epoch }
        };
        let changes = if stored.diff_id == again.diff_id {
            Changes::default()
        } else {
            let old = self.store.index(stored.diff_id)?;
            let new = self.store.index(again.diff_id)?;
            changes::compare(old.entries(), new.entries(), times)
        };
        let comparison = Comparison { changes, strict };
        self.tracker.compared(step.number, comparison);
        Ok(())
    }
}
