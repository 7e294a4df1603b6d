//! RUN: looked up by key, run by the executor.
//!
//! The law: a build that waits for others until its VM may start holds no claim meanwhile. Others that have a
//! VM may wait for that claim, and would never end theirs.

use std::time::Duration;

use exec::{Output, StepDone, StepError, StepSpec, Stream};
use store::{BuildId, Claim, Connections, ContentId, Layer, Lookup, StepKey, StepLog, Store};

use super::{Finished, StepAttempt, StepContext, Steps, contents, explain, ids};
use crate::build::error::BuildError;
use crate::build::time_limit::{ActiveOutput, Activity, TimeLimits, within};
use crate::build::track::Tracker;
use crate::event::{Explanation, Outcome, StepId};
use crate::keys;
use crate::plan::{Op, RunOp, Step};
use crate::solver::Attempt;

/// How long a step waits for the admission of its VM before it is attempted again later: long enough if
/// there is nothing to wait for.
const PATIENCE: Duration = Duration::from_millis(250);

impl Steps<'_> {
    pub(super) fn run(&self, step: &StepContext<'_>, op: &RunOp) -> StepAttempt {
        self.check_depth(step)?;
        let key = self.run_key(op, &contents(&step.below));
        self.known.add(key);
        let force = self.request.no_cache;
        let claim = match self.claim(key, self.trust(), force)? {
            Lookup::Claimed(claim) => claim,
            Lookup::Busy(owner) => {
                self.report_wait(step, &owner);
                // With `force`, the result of another build is not shared.
                if !force {
                    self.follow(step, owner)?;
                }
                return Ok(Attempt::Busy);
            }
            Lookup::Hit(_) if self.request.rebuild.is_some() && !self.admit(step) => {
                return Ok(Attempt::Busy);
            }
            Lookup::Hit(hit) => {
                let shared = self.finish_following(step)?;
                let found = self.found(step, key, self.trust(), hit, || {
                    self.executor.prepare();
                    Ok(self.execute(step, key, op)?.layer)
                });
                return found.map(|mut attempt| {
                    if let Attempt::Done(finished) = &mut attempt
                        && shared
                    {
                        finished.outcome = Outcome::Done;
                    }
                    attempt
                });
            }
        };
        // It may be trusted once more of this build's steps are known.
        if claim.distrusted().is_some() && step.at.may_defer && !force {
            claim.release()?;
            return Ok(Attempt::Deferred);
        }
        if let Some((failure, tee)) = self.failure_elsewhere(step)? {
            claim.release()?;
            let build = failure.run.build;
            let text =
                format!("the step already failed in build {build}, which ran it at the same time");
            self.tracker.warn(text, None);
            let source = StepError::Failed {
                status: failure.status,
                out_of_memory: None,
            };
            return Err(self.step_error(step, op, &tee.log, source));
        }
        if !self.executor.is_admitted(Duration::ZERO) {
            claim.release()?;
            return self.run_once_admitted(step, op);
        }
        self.run_here(step, op, key, claim)
    }

    /// Attempts a step again once its VM may start, at once or later.
    fn run_once_admitted(&self, step: &StepContext<'_>, op: &RunOp) -> StepAttempt {
        if self.admit(step) {
            self.run(step, op)
        } else {
            Ok(Attempt::Busy)
        }
    }

    /// Whether the executor may run steps; asks it to get ready, and waits for a moment.
    fn admit(&self, step: &StepContext<'_>) -> bool {
        self.executor.prepare();
        let admitted = self.executor.is_admitted(PATIENCE);
        if !admitted {
            let what = "waiting until the builder VM may start";
            self.tracker.status(step.number, what.to_owned(), 0, 0);
        }
        admitted
    }

    /// Runs a step that has no result, or none that counts.
    fn run_here(
        &self,
        step: &StepContext<'_>,
        op: &RunOp,
        key: StepKey,
        claim: Claim,
    ) -> StepAttempt {
        let force = self.request.no_cache;
        self.publish_run(step, &claim)?;
        self.explain(step, force, || match claim.distrusted() {
            Some(result) => explain::distrusted(result),
            None => self.why(step, key),
        });
        self.executor.prepare();
        step.at.working();
        match self.execute(step, key, op) {
            Ok(done) => {
                let mut provenance = done.provenance;
                provenance.merge(&step.provenance);
                let below = ids(&step.below);
                let made = claim.commit(&done.layer, &below, &provenance, force)?;
                self.records.record(step.position, key, Some(&made.layer));
                Ok(Attempt::Done(Finished {
                    layer: Some(made.layer),
                    outcome: Outcome::Done,
                    provenance: made.provenance,
                }))
            }
            Err(err) => {
                end_claim(claim, &err);
                Err(err)
            }
        }
    }

    /// Why there is no result.
    fn why(&self, step: &StepContext<'_>, key: StepKey) -> Explanation {
        let (stage, _) = step.position;
        let Some(planned) = self.plan.stages.get(stage) else {
            return Explanation::default();
        };
        let now = explain::CurrentStep {
            stage: planned,
            step: step.planned,
            key,
            below: contents(&step.below),
            origins: self.origins(stage, step.done),
        };
        explain::miss(&now, self.records.last(step.position))
    }

    fn run_key(&self, op: &RunOp, below: &[ContentId]) -> StepKey {
        keys::run(op, below, &self.request.platform)
    }

    fn execute(
        &self,
        step: &StepContext<'_>,
        key: StepKey,
        op: &RunOp,
    ) -> Result<StepDone, BuildError> {
        let spec = self.step_spec(step, key, op)?;
        let mut output = self.log(step)?;
        let limits = TimeLimits {
            total: self.request.step_timeout,
            idle: self.request.idle_timeout,
        };
        let (activity, cancel) = (Activity::default(), self.cancel.child());
        let (run, expired) = within(limits, &activity, &cancel, || {
            let mut output = ActiveOutput {
                inner: &mut output,
                activity: &activity,
            };
            self.executor.run(&spec, &mut output, &cancel)
        });
        output.log.finish();
        let run = match expired {
            Some(limit) if run.is_err() && !self.cancel.is_cancelled() => {
                Err(StepError::Limit(limit.to_string()))
            }
            Some(_) | None => run,
        };
        run.map_err(|source| self.step_error(step, op, &output.log, source))
    }

    fn step_error(
        &self,
        step: &StepContext<'_>,
        op: &RunOp,
        log: &StepLog,
        source: StepError,
    ) -> BuildError {
        BuildError::Step {
            location: self.location(step),
            command: op.args.join(" "),
            log: log.path().to_owned(),
            source,
        }
    }

    /// Resolves the names in the Dockerfile against the root of the step.
    fn step_spec(
        &self,
        step: &StepContext<'_>,
        key: StepKey,
        op: &RunOp,
    ) -> Result<StepSpec, BuildError> {
        let root = self.root(&step.below)?;
        let user = root.user(&op.user).map_err(|source| BuildError::User {
            location: self.location(step),
            source,
        })?;
        let mut env: Vec<String> = op.env.iter().chain(&op.unkeyed_env).cloned().collect();
        if !env.iter().any(|var| var.starts_with("HOME=")) {
            let home = user.home.unwrap_or_else(|| "/".to_owned());
            env.push(format!("HOME={home}"));
        }
        Ok(StepSpec {
            name: step.planned.display.clone(),
            key,
            layers: ids(&step.below),
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

    /// If the next step is a RUN without a result, its VM may boot while the layer is written.
    pub(super) fn prepare_next(
        &self,
        step: &StepContext<'_>,
        layer: ContentId,
    ) -> Result<(), BuildError> {
        let (stage, index) = step.position;
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
        let mut below = contents(&step.below);
        below.push(layer);
        if self.request.no_cache
            || self.request.rebuild.is_some()
            || self.peek_run(op, &below)?.is_none()
        {
            self.executor.prepare();
        }
        Ok(())
    }
}

impl Steps<'_> {
    /// The result of a RUN, if there is one.
    fn peek_run(&self, op: &RunOp, below: &[ContentId]) -> Result<Option<Layer>, BuildError> {
        let key = self.run_key(op, below);
        self.known.add(key);
        Ok(self.store.peek(key, self.trust())?)
    }
}

/// Ends a claim without a result. The builds that wait learn of a failure of the command.
fn end_claim(claim: Claim, err: &BuildError) {
    let ended = if let BuildError::Step { source, .. } = err
        && let StepError::Failed {
            status,
            out_of_memory: None,
        } = source
    {
        claim.fail(*status)
    } else {
        claim.release()
    };
    // The error of the step matters more. A claim that stays is reaped with this process.
    if let Err(error) = ended {
        log::warn!("cannot release a claim: {error}");
    }
}

/// Sends the output of a step to its log file and to the reporter.
pub(super) struct Tee<'a> {
    pub(super) log: StepLog,
    pub(super) warned: bool,
    pub(super) tracker: &'a Tracker<'a>,
    pub(super) number: StepId,
    pub(super) store: &'a Store,
    pub(super) build: BuildId,
}

impl Output for Tee<'_> {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        let tag = match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        self.log.append(tag, data);
        // A log that cannot be written does not stop the step, but there is a warning.
        if self.log.dropped() > 0 && !self.warned {
            self.warned = true;
            let log = self.log.path().display();
            let text = format!("the log {log} is incomplete: the disk may be full");
            self.tracker.warn(text, None);
        }
        self.tracker.log(self.number, stream, data);
    }

    fn connections(&mut self, connections: Connections) {
        let (build, step) = (self.build, self.number);
        // What the step made does not depend on it, but the user may.
        if let Err(error) = self.store.record_connections(build, step, &connections) {
            let text = format!("cannot record what step {step} connected to: {error}");
            self.tracker.warn(text, None);
        }
    }
}
