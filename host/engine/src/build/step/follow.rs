//! Waiting for another build that runs the same step: what the command prints there is shown and
//! logged here as it comes, and how it ended is taken over, unless that build was cancelled or lost
//! its machine: then the step is done here.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use exec::{Output, Stream};
use store::{Claim, Failure, LogReader, Owner, Run};

use super::{At, Steps};
use crate::build::error::BuildError;
use crate::build::step::run::Tee;
use crate::event::StepId;

/// Frames that are shown at a look, so that a log that grows as fast as it is read holds nobody up.
const FRAMES: usize = 1024;

/// A run in another build, and how far it was shown.
pub(in crate::build) struct Followed<'a> {
    owner: Owner,
    reader: Option<LogReader>,
    /// To our own log and who watches us, once there is something to be told.
    tee: Option<Tee<'a>>,
}

impl<'a> Steps<'a> {
    /// Shows what the one that the step waits for has printed since the last look.
    pub(super) fn follow(&self, at: &At<'_>, owner: Owner) -> Result<(), BuildError> {
        let mut followed = match self.followed().remove(&at.number) {
            Some(known) if known.owner == owner => known,
            known => Followed {
                reader: None,
                tee: known.and_then(|known| known.tee),
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
        Ok(Some((failure, self.own_tee(at, followed.tee)?)))
    }

    /// The log of the step: the one that was begun while somebody was followed, or a new one.
    pub(super) fn own_log(&self, at: &At<'_>) -> Result<Tee<'a>, BuildError> {
        let begun = self.followed().remove(&at.number);
        self.own_tee(at, begun.and_then(|followed| followed.tee))
    }

    /// Says to those who wait which run a claim stands for.
    pub(super) fn tell(&self, at: &At<'_>, claim: &Claim) -> Result<(), BuildError> {
        let (build, step) = (self.build, at.number);
        Ok(claim.set_run(Run { build, step })?)
    }

    fn show(
        &self,
        at: &At<'_>,
        followed: &mut Followed<'a>,
        most: usize,
    ) -> Result<(), BuildError> {
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
            let tee = self.own_tee(at, followed.tee.take())?;
            followed.tee.insert(tee).write(stream, &frame.data);
        }
        Ok(())
    }

    /// What was begun already, or a new log of the step.
    fn own_tee(&self, at: &At<'_>, begun: Option<Tee<'a>>) -> Result<Tee<'a>, BuildError> {
        if let Some(begun) = begun {
            return Ok(begun);
        }
        let log = self
            .store
            .step_log(self.build, at.number, &at.step.display)?;
        Ok(Tee {
            log,
            warned: false,
            tracker: self.tracker,
            number: at.number,
        })
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<StepId, Followed<'a>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
