//! Waits for another build that runs the same step. The output of its command is shown and logged here
//! as it comes, and its result is shared, unless that build was cancelled or lost its VM: then the step
//! is done here.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use exec::{Output, Stream};
use store::{Claim, Failure, LogReader, Owner, Run, StepLog};

use super::{StepContext, Steps};
use crate::build::error::BuildError;
use crate::build::step::run::Tee;
use crate::event::StepId;

/// Frames that are shown per attempt, so that a log that grows as fast as it is read stops nobody.
const FRAMES: usize = 1024;

/// A run in another build, and how much of it was shown.
pub(in crate::build) struct Followed<'a> {
    owner: Owner,
    reader: Option<LogReader>,
    /// To the log of this build, once there is output.
    tee: Option<Tee<'a>>,
}

impl<'a> Steps<'a> {
    /// Shows what the other build has printed since the last attempt.
    pub(super) fn follow(&self, step: &StepContext<'_>, owner: Owner) -> Result<(), BuildError> {
        let mut followed = match self.followed().remove(&step.number) {
            Some(known) if known.owner == owner => known,
            known => Followed {
                reader: None,
                tee: known.and_then(|known| known.tee),
                owner,
            },
        };
        self.show(step, &mut followed, FRAMES)?;
        self.followed().insert(step.number, followed);
        Ok(())
    }

    /// The result is available: shows the rest. Returns whether another build was followed.
    pub(super) fn finish_following(&self, step: &StepContext<'_>) -> Result<bool, BuildError> {
        let Some(mut followed) = self.followed().remove(&step.number) else {
            return Ok(false);
        };
        self.show(step, &mut followed, usize::MAX)?;
        // A rebuild appends to the log.
        self.followed().insert(step.number, followed);
        Ok(true)
    }

    /// There is no result, and this build has the claim: the failure of the command in the build that
    /// was followed, if it failed there, and the complete log.
    pub(super) fn failure_elsewhere(
        &self,
        step: &StepContext<'_>,
    ) -> Result<Option<(Failure, Tee<'a>)>, BuildError> {
        let Some(mut followed) = self.followed().remove(&step.number) else {
            return Ok(None);
        };
        let Some(failure) = self.store.failure(&followed.owner, self.trust())? else {
            let command = &followed.owner.command;
            let text =
                format!("`{command}` ended without a result; running the step in this build");
            self.tracker.warn(text, None);
            // Its output stays in the log, before that of this build.
            self.followed().insert(step.number, followed);
            return Ok(None);
        };
        self.show(step, &mut followed, usize::MAX)?;
        Ok(Some((failure, self.tee(step, followed.tee)?)))
    }

    /// The log of the step: the one that following began, or a new one.
    pub(super) fn log(&self, step: &StepContext<'_>) -> Result<Tee<'a>, BuildError> {
        let begun = self.followed().remove(&step.number);
        self.tee(step, begun.and_then(|followed| followed.tee))
    }

    /// Publishes to the builds that wait which run the claim stands for.
    pub(super) fn publish_run(
        &self,
        step: &StepContext<'_>,
        claim: &Claim,
    ) -> Result<(), BuildError> {
        let (build, step) = (self.build, step.number);
        Ok(claim.set_run(Run { build, step })?)
    }

    fn show(
        &self,
        step: &StepContext<'_>,
        followed: &mut Followed<'a>,
        most: usize,
    ) -> Result<(), BuildError> {
        let Some(run) = followed.owner.run else {
            return Ok(());
        };
        if followed.reader.is_none() {
            // There is none before the run writes anything, and none if it was pruned.
            followed.reader = self.store.open_step_log(run)?;
        }
        let Some(reader) = &mut followed.reader else {
            return Ok(());
        };
        for _ in 0..most {
            if self.cancel.is_cancelled() {
                break;
            }
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    log::warn!("cannot read the log of {run:?}: {error}");
                    break;
                }
            };
            let stream = match frame.stream {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                StepLog::DROPPED | StepLog::LEFT_OUT => {
                    let mut tee = self.tee(step, followed.tee.take())?;
                    tee.log.append(frame.stream, &frame.data);
                    followed.tee = Some(tee);
                    continue;
                }
                _ => continue,
            };
            let tee = self.tee(step, followed.tee.take())?;
            followed.tee.insert(tee).write(stream, &frame.data);
        }
        Ok(())
    }

    /// A log that was begun already, or a new one.
    fn tee(&self, step: &StepContext<'_>, begun: Option<Tee<'a>>) -> Result<Tee<'a>, BuildError> {
        if let Some(begun) = begun {
            return Ok(begun);
        }
        let log = self
            .store
            .step_log(self.build, step.number, &step.planned.display)?;
        Ok(Tee {
            log: log.with_limit(self.request.log_limit),
            warned: false,
            tracker: self.tracker,
            number: step.number,
            store: self.store,
            build: self.build,
        })
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<StepId, Followed<'a>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
