//! Numbers the steps of a build and keeps what the summary needs.
//!
//! The law: every step that began ends exactly once, and a step that never began is said to be
//! "not run", never "cached".

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use exec::Stream;

use super::request::StepSummary;
use crate::event::{Comparison, Event, Explanation, Outcome, Reporter, StepId};

/// Passes events on and remembers how each step stands.
pub(super) struct Tracker<'a> {
    reporter: &'a dyn Reporter,
    steps: Mutex<BTreeMap<StepId, Standing>>,
}

struct Standing {
    name: String,
    began: Option<Instant>,
    ended: Option<(Outcome, Duration)>,
    why: Option<Explanation>,
    compared: Option<Comparison>,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(reporter: &'a dyn Reporter) -> Self {
        Self {
            reporter,
            steps: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StepId, Standing>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a step that will have to be done, and gives it the next number.
    pub(super) fn announce(&self, name: impl Into<String>) -> StepId {
        let mut steps = self.lock();
        let step = steps.last_key_value().map_or(1, |(last, _)| last + 1);
        steps.insert(
            step,
            Standing {
                name: name.into(),
                began: None,
                ended: None,
                why: None,
                compared: None,
            },
        );
        step
    }

    /// The step begins. Saying it again, as after a wait, changes nothing.
    pub(super) fn start(&self, step: StepId) {
        let mut steps = self.lock();
        let Some(standing) = steps.get_mut(&step).filter(|s| s.began.is_none()) else {
            return;
        };
        standing.began = Some(Instant::now());
        let name = standing.name.clone();
        drop(steps);
        self.reporter.report(Event::Started { step, name });
    }

    /// The step ended.
    pub(super) fn end(&self, step: StepId, outcome: Outcome) {
        let mut steps = self.lock();
        let Some(standing) = steps.get_mut(&step).filter(|s| s.ended.is_none()) else {
            return;
        };
        let took = standing
            .began
            .map_or(Duration::ZERO, |began| began.elapsed());
        standing.ended = Some((outcome.clone(), took));
        let unheard = standing.began.is_none().then(|| standing.name.clone());
        drop(steps);
        if let Some(name) = unheard {
            self.reporter.report(Event::Started { step, name });
        }
        self.reporter.report(Event::Ended {
            step,
            outcome,
            took,
        });
    }

    /// Does `work` as the step.
    pub(super) fn during<T, E: std::error::Error>(
        &self,
        step: StepId,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.start(step);
        let done = work();
        self.end(
            step,
            match &done {
                Ok(_) => Outcome::Done,
                Err(err) => Outcome::Failed(err.to_string()),
            },
        );
        done
    }

    pub(super) fn log(&self, step: StepId, stream: Stream, data: &[u8]) {
        self.reporter.report(Event::Log {
            step,
            stream,
            data: data.to_vec(),
        });
    }

    pub(super) fn status(&self, step: StepId, what: String, current: u64, total: u64) {
        self.reporter.report(Event::Status {
            step,
            what,
            current,
            total,
        });
    }

    /// Says why a step is found or not.
    pub(super) fn explained(&self, step: StepId, why: Explanation) {
        if let Some(standing) = self.lock().get_mut(&step) {
            standing.why = Some(why.clone());
        }
        self.reporter.report(Event::Explained { step, why });
    }

    /// Says what came of doing a step again.
    pub(super) fn compared(&self, step: StepId, comparison: Comparison) {
        if let Some(standing) = self.lock().get_mut(&step) {
            standing.compared = Some(comparison.clone());
        }
        self.reporter.report(Event::Compared { step, comparison });
    }

    pub(super) fn warn(&self, text: String, line: Option<usize>) {
        self.reporter.report(Event::Warning { text, line });
    }

    /// Ends what is still open after a failure or a cancel: what ran was cancelled, the rest never
    /// began.
    pub(super) fn close(&self) {
        let open: Vec<_> = self
            .lock()
            .iter()
            .filter(|(_, standing)| standing.ended.is_none())
            .map(|(step, standing)| (*step, standing.began.is_some()))
            .collect();
        for (step, began) in open {
            self.end(
                step,
                if began {
                    Outcome::Cancelled
                } else {
                    Outcome::NotRun
                },
            );
        }
    }

    /// How every step stands, in order.
    pub(super) fn summary(&self) -> Vec<StepSummary> {
        self.lock()
            .values()
            .map(|standing| {
                let (outcome, took) = standing
                    .ended
                    .clone()
                    .unwrap_or((Outcome::NotRun, Duration::ZERO));
                StepSummary {
                    name: standing.name.clone(),
                    outcome,
                    took,
                    why: standing.why.clone(),
                    compared: standing.compared.clone(),
                }
            })
            .collect()
    }
}
