//! One step of a plan: find its result in the store, or make it.
//!
//! RUN asks by key, since what it makes is known only afterwards. COPY, ADD and WORKDIR ask by what
//! their layer will hold, which is known before it is written, unless a context file was never read
//! before: then the layer is written first, in the one pass that also hashes, and asked for after.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use store::{Claim, ContentId, DiffId, Layer, Lookup, StepKey, Store};

use super::error::{BuildError, Place};
use super::request::BuildRequest;
use super::track::Tracker;
use crate::cancel::Cancel;
use crate::context::Context;
use crate::copy::{self, CopyFrom, CopyPlan, CopySpec, SourceTree};
use crate::event::{Outcome, StepId};
use crate::executor::{Executor, Output, StepSpec, Stream};
use crate::keys;
use crate::plan::{Base, ImageKey, Op, Plan, RunOp, Step};
use crate::rootfs::Rootfs;
use crate::solver::Attempt;

/// What a step came to: its layer, if it has one.
#[derive(Debug, Clone)]
pub(super) struct StepDone {
    pub(super) layer: Option<Layer>,
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
    pub(super) images: &'a BTreeMap<ImageKey, Vec<Layer>>,
    pub(super) context: &'a Context,
    /// Number of each step that is more than configuration.
    pub(super) numbers: &'a HashMap<(usize, usize), StepId>,
    /// The place of a step in the Dockerfile, for errors.
    pub(super) place: &'a (dyn Fn(&Step) -> Box<Place> + Sync),
    /// Merged roots by chain, since steps of a stage share most of it.
    pub(super) roots: Mutex<HashMap<Vec<DiffId>, Arc<Rootfs>>>,
}

/// A step at work.
struct At<'a> {
    step: &'a Step,
    number: StepId,
    /// Stage and position in it.
    at: (usize, usize),
    /// The chain of layers below it.
    below: Vec<Layer>,
}

impl Steps<'_> {
    /// Tries to do step `index` of `stage`, given what the stages have come to so far.
    pub(super) fn attempt(
        &self,
        stage: usize,
        index: usize,
        done: &[Vec<StepDone>],
    ) -> Result<Attempt<StepDone>, BuildError> {
        let Some(step) = self.plan.stages.get(stage).and_then(|s| s.steps.get(index)) else {
            return Ok(Attempt::Done(StepDone { layer: None }));
        };
        let Some(&number) = self.numbers.get(&(stage, index)) else {
            return Ok(Attempt::Done(StepDone { layer: None }));
        };
        self.tracker.start(number);
        let at = At {
            step,
            number,
            at: (stage, index),
            below: self.chain(stage, done),
        };
        let attempt = match &step.op {
            Op::Run(op) => self.run(&at, op),
            Op::Copy(spec) => self.copy(&at, spec, done),
            Op::Workdir { path, user } => self.workdir(&at, path, user),
            Op::Meta => Ok(Attempt::Done((None, Outcome::Done))),
        };
        match attempt {
            Ok(Attempt::Done((layer, outcome))) => {
                self.tracker.end(number, outcome);
                Ok(Attempt::Done(StepDone { layer }))
            }
            Ok(Attempt::Busy) => Ok(Attempt::Busy),
            Err(err) if self.cancel.is_cancelled() => Err(err),
            Err(err) => {
                self.tracker.end(number, Outcome::Failed(err.to_string()));
                Err(err)
            }
        }
    }

    /// The layers of a stage so far, lowest first. Stages refer only to earlier ones.
    pub(super) fn chain(&self, stage: usize, done: &[Vec<StepDone>]) -> Vec<Layer> {
        // From the stage down to its base, then reversed: iterative, since files may have
        // thousands of stages.
        let mut upwards: Vec<Layer> = Vec::new();
        let mut at = Some(stage);
        while let Some(stage) = at {
            upwards.extend(
                done.get(stage)
                    .into_iter()
                    .flatten()
                    .rev()
                    .filter_map(|s| s.layer.clone()),
            );
            at = match self.plan.stages.get(stage).map(|s| &s.base) {
                Some(Base::Stage(base)) => Some(*base),
                Some(Base::Image(key)) => {
                    upwards.extend(self.images.get(key).into_iter().flatten().rev().cloned());
                    None
                }
                Some(Base::Scratch) | None => None,
            };
        }
        upwards.reverse();
        upwards
    }

    /// The merged root of a chain.
    fn root(&self, chain: &[Layer]) -> Result<Arc<Rootfs>, BuildError> {
        let ids: Vec<DiffId> = chain.iter().map(|layer| layer.diff_id).collect();
        // On top of the longest part that was merged before; what both share is shared. Without the
        // lock: other stages go on meanwhile, and if two merge the same, both are right.
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

    /// The longest beginning of a chain that was merged already, and how many layers it has.
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

    fn place(&self, at: &At<'_>) -> Box<Place> {
        (self.place)(at.step)
    }

    /// Says whom the step waits for.
    fn wait_for(&self, at: &At<'_>, owner: &store::Owner) {
        let what = format!("waiting for the same step in `{}`", owner.command);
        self.tracker.status(at.number, what, 0, 0);
    }
}

type Tried = Result<Attempt<(Option<Layer>, Outcome)>, BuildError>;

fn hit(layer: Layer) -> Tried {
    Ok(Attempt::Done((Some(layer), Outcome::Cached)))
}

fn made(layer: Layer) -> Tried {
    Ok(Attempt::Done((Some(layer), Outcome::Done)))
}

fn ids(chain: &[Layer]) -> Vec<DiffId> {
    chain.iter().map(|layer| layer.diff_id).collect()
}

fn contents(chain: &[Layer]) -> Vec<ContentId> {
    chain.iter().map(|layer| layer.content_id).collect()
}

impl Steps<'_> {
    /// Looks for a result, and claims the step if there is none or it shall be made `afresh`.
    fn claim(
        &self,
        at: &At<'_>,
        key: StepKey,
        afresh: bool,
    ) -> Result<ControlFlow<Tried, Claim>, BuildError> {
        let found = if afresh {
            self.store.claim(key)
        } else {
            self.store.lookup(key)
        };
        Ok(match found? {
            Lookup::Hit(layer) => ControlFlow::Break(hit(layer)),
            Lookup::Busy(owner) => {
                self.wait_for(at, &owner);
                ControlFlow::Break(Ok(Attempt::Busy))
            }
            Lookup::Claimed(claim) => ControlFlow::Continue(claim),
        })
    }
}

// RUN
impl Steps<'_> {
    fn run(&self, at: &At<'_>, op: &RunOp) -> Tried {
        let key = self.run_key(op, &contents(&at.below));
        let claim = match self.claim(at, key, self.request.no_cache)? {
            ControlFlow::Continue(claim) => claim,
            ControlFlow::Break(settled) => return settled,
        };
        self.executor.prepare();
        match self.execute(at, op) {
            Ok(layer) => {
                let layer = claim.commit(&layer, &ids(&at.below), self.request.no_cache)?;
                made(layer)
            }
            Err(err) => {
                // The step's own error matters more; a claim that stays is reaped with us.
                if let Err(release) = claim.release() {
                    log::warn!("cannot release a claim: {release}");
                }
                Err(err)
            }
        }
    }

    fn run_key(&self, op: &RunOp, below: &[ContentId]) -> StepKey {
        keys::run(op, below, &self.request.platform)
    }

    fn execute(&self, at: &At<'_>, op: &RunOp) -> Result<Layer, BuildError> {
        let spec = self.specify(at, op)?;
        let mut output = Tee {
            log: self
                .store
                .step_log(self.build, at.number, &at.step.display)?,
            warned: false,
            tracker: self.tracker,
            number: at.number,
        };
        let log: PathBuf = output.log.path().to_owned();
        self.executor
            .run(&spec, &mut output, self.cancel)
            .map(|done| done.layer)
            .map_err(|source| BuildError::Step {
                place: self.place(at),
                command: op.args.join(" "),
                log,
                source,
            })
    }

    /// Resolves what is written by name in the Dockerfile against the step's root.
    fn specify(&self, at: &At<'_>, op: &RunOp) -> Result<StepSpec, BuildError> {
        let root = self.root(&at.below)?;
        let user = root.user(&op.user).map_err(|source| BuildError::User {
            place: self.place(at),
            source,
        })?;
        let mut env: Vec<String> = op.env.iter().chain(&op.unkeyed_env).cloned().collect();
        if !env.iter().any(|var| var.starts_with("HOME=")) {
            let home = user.home.unwrap_or_else(|| "/".to_owned());
            env.push(format!("HOME={home}"));
        }
        Ok(StepSpec {
            name: at.step.display.clone(),
            layers: ids(&at.below),
            args: op.args.clone(),
            env,
            cwd: op.cwd.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            hostname: op.hostname.clone(),
            hosts: op.hosts.clone(),
            network: op.network,
            script: op.script.clone(),
        })
    }

    /// If the step behind `at` is a RUN without a result, its VM may boot while we still write.
    fn anticipate(&self, at: &At<'_>, layer: ContentId) -> Result<(), BuildError> {
        let (stage, index) = at.at;
        let next = self
            .plan
            .stages
            .get(stage)
            .and_then(|s| s.steps.get(index + 1));
        let Some(Step {
            op: Op::Run(op), ..
        }) = next
        else {
            return Ok(());
        };
        let mut below = contents(&at.below);
        below.push(layer);
        if self.request.no_cache || self.store.peek(self.run_key(op, &below))?.is_none() {
            self.executor.prepare();
        }
        Ok(())
    }
}

// COPY, ADD, WORKDIR
impl Steps<'_> {
    fn copy(&self, at: &At<'_>, spec: &CopySpec, done: &[Vec<StepDone>]) -> Tried {
        let target = self.root(&at.below)?;
        let source_root = match &spec.from {
            CopyFrom::Context => None,
            CopyFrom::Stage(stage) => Some(self.root(&self.chain(*stage, done))?),
            CopyFrom::Image(name) => {
                let key = ImageKey {
                    name: name.clone(),
                    platform: self.request.platform.clone(),
                };
                Some(self.root(self.images.get(&key).map_or(&[][..], Vec::as_slice))?)
            }
        };
        let source = source_root
            .as_deref()
            .map_or(SourceTree::Context(self.context), SourceTree::Rootfs);
        let plan = copy::plan(spec, &source, &target, self.cancel)
            .map_err(|source| self.copy_error(at, source))?;
        for warning in &plan.warnings {
            self.tracker.warn(warning.clone(), Some(at.step.line));
        }
        self.make(at, &plan, self.request.no_cache)
    }

    fn workdir(&self, at: &At<'_>, path: &str, user: &str) -> Tried {
        let target = self.root(&at.below)?;
        let plan = copy::plan_workdir(path, user, &target)
            .map_err(|source| self.copy_error(at, source))?;
        match plan {
            Some(plan) => self.make(at, &plan, false),
            None => Ok(Attempt::Done((None, Outcome::Cached))),
        }
    }

    /// Finds the planned layer, or writes it.
    fn make(&self, at: &At<'_>, plan: &CopyPlan, afresh: bool) -> Tried {
        let Some(content) = plan.content_id() else {
            return self.make_unknown(at, plan, afresh);
        };
        let key = keys::content(content);
        let claim = match self.claim(at, key, afresh)? {
            ControlFlow::Continue(claim) => claim,
            ControlFlow::Break(settled) => return settled,
        };
        self.anticipate(at, content)?;
        match self.write(at, plan) {
            // A file may have changed since it was planned: what was ingested decides the key.
            Ok(layer) if layer.content_id == content => made(claim.commit(&layer, &[], afresh)?),
            Ok(layer) => {
                claim.release()?;
                made(self.bind(keys::content(layer.content_id), layer, afresh)?)
            }
            Err(err) => {
                if let Err(release) = claim.release() {
                    log::warn!("cannot release a claim: {release}");
                }
                Err(err)
            }
        }
    }

    /// Some content was never read before: write first, then see whether that layer was known.
    fn make_unknown(&self, at: &At<'_>, plan: &CopyPlan, afresh: bool) -> Tried {
        let layer = self.write(at, plan)?;
        let key = keys::content(layer.content_id);
        let known = if afresh { None } else { self.store.peek(key)? };
        let outcome = if known.is_some() {
            Outcome::Cached
        } else {
            Outcome::Done
        };
        let layer = match known {
            Some(layer) => layer,
            None => self.bind(key, layer, afresh)?,
        };
        Ok(Attempt::Done((Some(layer), outcome)))
    }

    /// Binds a finished layer to a key. If another build has the key in hand, it will find the same
    /// content by itself.
    fn bind(&self, key: StepKey, layer: Layer, replace: bool) -> Result<Layer, BuildError> {
        match self.store.claim(key)? {
            Lookup::Claimed(claim) => Ok(claim.commit(&layer, &[], replace)?),
            Lookup::Hit(_) | Lookup::Busy(_) => Ok(layer),
        }
    }

    fn write(&self, at: &At<'_>, plan: &CopyPlan) -> Result<Layer, BuildError> {
        let mut writer = self.store.layer_writer(&at.step.display)?;
        if let Err(err) = plan.write(&mut writer, self.cancel) {
            writer.abandon();
            return Err(self.copy_error(at, err));
        }
        let layer = writer.finish().map_err(|source| BuildError::Ingest {
            place: self.place(at),
            source: Box::new(source),
        })?;
        plan.learn(&*self.store.index(layer.diff_id)?);
        Ok(layer)
    }

    fn copy_error(&self, at: &At<'_>, source: copy::CopyError) -> BuildError {
        BuildError::Copy {
            place: self.place(at),
            source: Box::new(source),
        }
    }
}

/// Sends a step's output to its log file and to whoever watches.
struct Tee<'a> {
    log: store::StepLog,
    warned: bool,
    tracker: &'a Tracker<'a>,
    number: StepId,
}

impl Output for Tee<'_> {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        let tag = match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        self.log.append(tag, data);
        // A log that cannot be written must not stop the step, but it must not be silent either.
        if self.log.dropped() > 0 && !self.warned {
            self.warned = true;
            let log = self.log.path().display();
            let text = format!("the log {log} is incomplete: the disk may be full");
            self.tracker.warn(text, None);
        }
        self.tracker.log(self.number, stream, data);
    }
}
