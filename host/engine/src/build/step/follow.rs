//! Waiting for another build that runs the same step: what the command prints there is shown and
//! logged here as it comes, and how it ended is taken over, unless that build was cancelled or lost
//! its machine: then the step is done here.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use store::{Claim, Failure, LogReader, Owner, Run, StepLog};

use super::{At, Steps};
use crate::build::error::BuildError;
use crate::build::step::run::Tee;
use crate::event::StepId;
use crate::executor::{Output, Stream};

/// Frames that are shown at a look, so that a log that grows as fast as it is read holds nobody up.
const FRAMES: usize = 1024;

/// A run in another build, and how far it was shown.
pub(in crate::build) struct Followed {
    owner: Owner,
    reader: Option<LogReader>,
    /// Our own log, once there is something to write to it.
    log: Option<StepLog>,
}

impl<'a> Steps<'a> {
    /// Says whom the step waits for, and shows what that one has printed since the last look.
    pub(super) fn follow(&self, at: &At<'_>, owner: Owner) -> Result<(), BuildError> {
        self.wait_for(at, &owner);
        let mut followed = match self.followed().remove(&at.number) {
            Some(known) if known.owner == owner => known,
            known => Followed {
                reader: None,
                log: known.and_then(|known| known.log),
                owner,
            },
        };
        self.show(at, &mut followed, FRAMES)?;
        self.followed().insert(at.number, followed);
        Ok(())
    }

    /// The result is there: shows the rest. Returns whether somebody was followed.
    pub(super) fn arrive(&self, at: &At<'_>) -> Result<bool, BuildError> {
        let Some(mut followed) = self.followed().remove(&at.number) else {
            return Ok(false);
        };
        self.show(at, &mut followed, usize::MAX)?;
        // Whoever does the step again to compare goes on with the log.
        self.followed().insert(at.number, followed);
        Ok(true)
    }

    /// There is no result, and the claim is ours: tells whether that is because the command failed
    /// where it was followed, with the log up to its end.
    pub(super) fn failed_there(
        &self,
        at: &At<'_>,
    ) -> Result<Option<(Failure, Tee<'a>)>, BuildError> {
        let Some(mut followed) = self.followed().remove(&at.number) else {
            return Ok(None);
        };
        let Some(failure) = self.store.failure(&followed.owner)? else {
            let command = &followed.owner.command;
            let text = format!("`{command}` ended without a result; the step is done here");
            self.tracker.warn(text, None);
            // What it printed stays in our log, with ours behind it.
            self.followed().insert(at.number, followed);
            return Ok(None);
        };
        self.show(at, &mut followed, usize::MAX)?;
        let tee = self.tee(at, followed.log)?;
        Ok(Some((failure, tee)))
    }

    /// The log of the step: the one that was begun while somebody was followed, or a new one.
    pub(super) fn own_log(&self, at: &At<'_>) -> Result<Tee<'a>, BuildError> {
        let begun = self.followed().remove(&at.number);
        self.tee(at, begun.and_then(|followed| followed.log))
    }

    /// Says to those who wait which run a claim stands for.
    pub(super) fn tell(&self, at: &At<'_>, claim: &Claim) -> Result<(), BuildError> {
        let (build, step) = (self.build, at.number);
        Ok(claim.tell(Run { build, step })?)
    }

    fn show(&self, at: &At<'_>, followed: &mut Followed, most: usize) -> Result<(), BuildError> {
        let Some(run) = followed.owner.run else {
            return Ok(());
        };
        if followed.reader.is_none() {
            // There is none before the run has begun to write, and none if it was forgotten.
            followed.reader = self.store.open_step_log(run)?;
        }
        let Some(reader) = &mut followed.reader else {
            return Ok(());
        };
        let mut tee = None;
        for _ in 0..most {
            if self.cancel.is_cancelled() {
                break;
            }
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    log::warn!("the log of {run:?} cannot be read: {error}");
                    break;
                }
            };
            let stream = match frame.stream {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                _ => continue,
            };
            if tee.is_none() {
                tee = Some(self.tee(at, followed.log.take())?);
            }
            if let Some(tee) = &mut tee {
                tee.write(stream, &frame.data);
            }
        }
        if let Some(tee) = tee {
            followed.log = Some(tee.log);
        }
        Ok(())
    }

    fn tee(&self, at: &At<'_>, begun: Option<StepLog>) -> Result<Tee<'a>, BuildError> {
        let log = match begun {
            Some(log) => log,
            None => self
                .store
                .step_log(self.build, at.number, &at.step.display)?,
        };
        Ok(Tee {
            log,
            warned: false,
            tracker: self.tracker,
            number: at.number,
        })
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<StepId, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
