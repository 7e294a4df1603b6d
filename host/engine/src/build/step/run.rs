//! RUN: looked for by key, run by the executor.

use exec::{Output, StepError, StepSpec, Stream};
use store::{Claim, ContentId, Layer, Lookup, StepKey, StepLog};

use super::{At, Steps, Tried, contents, explain, ids, made};
use crate::build::error::BuildError;
use crate::build::track::Tracker;
use crate::event::{Explanation, Outcome, StepId};
use crate::keys;
use crate::plan::{Op, RunOp, Step};
use crate::solver::Attempt;

impl Steps<'_> {
    pub(super) fn run(&self, at: &At<'_>, op: &RunOp) -> Tried {
        self.check_depth(at)?;
        let key = self.run_key(op, &contents(&at.below));
        let afresh = self.request.no_cache;
        let claim = match self.claim(key, afresh)? {
            Lookup::Claimed(claim) => claim,
            Lookup::Busy(owner) => {
                self.wait_for(at, &owner);
                // Who wants it done afresh takes nothing over.
                if !afresh {
                    self.follow(at, owner)?;
                }
                return Ok(Attempt::Busy);
            }
            Lookup::Hit(layer) => {
                let shared = self.arrive(at)?;
                let found = self.found(at, key, layer, || {
                    self.executor.prepare();
                    self.execute(at, op)
                });
                return match found {
                    Ok(Attempt::Done((Some(layer), Outcome::Cached))) if shared => made(layer),
                    found => found,
                };
            }
        };
        if let Some((failure, tee)) = self.failed_there(at)? {
            claim.release()?;
            let build = failure.run.build;
            self.tracker
                .warn(format!("the command ran and failed in build {build}"), None);
            let source = StepError::Failed {
                status: failure.status,
                out_of_memory: None,
            };
            return Err(self.step_error(at, op, &tee.log, source));
        }
        self.tell(at, &claim)?;
        self.explain(at, afresh, || self.why(at, key));
        self.executor.prepare();
        match self.execute(at, op) {
            Ok(layer) => {
                let layer = claim.commit(&layer, &ids(&at.below), afresh)?;
                self.notes.note(at.at, key, Some(&layer));
                made(layer)
            }
            Err(err) => {
                let_go(claim, &err);
                Err(err)
            }
        }
    }

    /// Why there is no result.
    fn why(&self, at: &At<'_>, key: StepKey) -> Explanation {
        let (stage, _) = at.at;
        let Some(planned) = self.plan.stages.get(stage) else {
            return Explanation::default();
        };
        let now = explain::Now {
            stage: planned,
            step: at.step,
            key,
            below: contents(&at.below),
            makers: self.makers(stage, at.done),
        };
        explain::missed(&now, self.notes.remembered(at.at))
    }

    fn run_key(&self, op: &RunOp, below: &[ContentId]) -> StepKey {
        keys::run(op, below, &self.request.platform)
    }

    fn execute(&self, at: &At<'_>, op: &RunOp) -> Result<Layer, BuildError> {
        let spec = self.specify(at, op)?;
        let mut output = self.own_log(at)?;
        let run = self.executor.run(&spec, &mut output, self.cancel);
        output.log.report_dropped();
        match run {
            Ok(done) => Ok(done.layer),
            Err(source) => Err(self.step_error(at, op, &output.log, source)),
        }
    }

    fn step_error(&self, at: &At<'_>, op: &RunOp, log: &StepLog, source: StepError) -> BuildError {
        BuildError::Step {
            place: self.place(at),
            command: op.args.join(" "),
            log: log.path().to_owned(),
            source,
        }
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
    pub(super) fn anticipate(&self, at: &At<'_>, layer: ContentId) -> Result<(), BuildError> {
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
        if self.request.no_cache
            || self.request.rebuild.is_some()
            || self.store.peek(self.run_key(op, &below))?.is_none()
        {
            self.executor.prepare();
        }
        Ok(())
    }
}

/// Ends a claim without a result, in the way that those who wait are to learn of.
fn let_go(claim: Claim, err: &BuildError) {
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
    // The step's own error matters more; a claim that stays is reaped with us.
    if let Err(error) = ended {
        log::warn!("cannot release a claim: {error}");
    }
}

/// Sends a step's output to its log file and to whoever watches.
pub(super) struct Tee<'a> {
    pub(super) log: StepLog,
    pub(super) warned: bool,
    pub(super) tracker: &'a Tracker<'a>,
    pub(super) number: StepId,
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
