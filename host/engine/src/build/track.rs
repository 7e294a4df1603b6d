//! Numbers the steps of a build and keeps what the summary needs.
//!
//! The law: every step that began ends exactly once, and a step that never began is reported as
//! "not run", never as "cached".

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use exec::Stream;

use super::request::StepSummary;
use crate::event::{Comparison, Event, Explanation, Outcome, Reporter, StepId};

/// Passes events on and keeps the state of each step.
pub(super) struct Tracker<'a> {
    reporter: &'a dyn Reporter,
    steps: Mutex<BTreeMap<StepId, StepState>>,
}

struct StepState {
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StepId, StepState>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a step, and gives it the next number.
    pub(super) fn announce(&self, name: impl Into<String>) -> StepId {
        let mut steps = self.lock();
        let step = steps.last_key_value().map_or(1, |(last, _)| last + 1);
        steps.insert(
            step,
            StepState {
                name: name.into(),
                began: None,
                ended: None,
                why: None,
                compared: None,
            },
        );
        step
    }

    /// The step begins. Doing this again, as after a wait, changes nothing.
    pub(super) fn start(&self, step: StepId) {
        let mut steps = self.lock();
        let Some(state) = steps.get_mut(&step).filter(|s| s.began.is_none()) else {
            return;
        };
        state.began = Some(Instant::now());
        let name = state.name.clone();
        drop(steps);
        self.reporter.report(Event::Started { step, name });
    }

    /// The step ended.
    pub(super) fn end(&self, step: StepId, outcome: Outcome) {
        let mut steps = self.lock();
        let Some(state) = steps.get_mut(&step).filter(|s| s.ended.is_none()) else {
            return;
        };
        let took = state.began.map_or(Duration::ZERO, |began| began.elapsed());
        state.ended = Some((outcome.clone(), took));
        let unstarted = state.began.is_none().then(|| state.name.clone());
        drop(steps);
        if let Some(name) = unstarted {
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

    /// Reports why a step is cached or not.
    pub(super) fn explained(&self, step: StepId, why: Explanation) {
        if let Some(state) = self.lock().get_mut(&step) {
            state.why = Some(why.clone());
        }
        self.reporter.report(Event::Explained { step, why });
    }

    /// Reports how a rebuilt step compares.
    pub(super) fn compared(&self, step: StepId, comparison: Comparison) {
        if let Some(state) = self.lock().get_mut(&step) {
            state.compared = Some(comparison.clone());
        }
        self.reporter.report(Event::Compared { step, comparison });
    }

    pub(super) fn warn(&self, text: String, line: Option<usize>) {
        self.reporter.report(Event::Warning { text, line });
    }

    /// Ends the steps that are still open after a failure or a cancel: as cancelled if they began, else
    /// as not run.
    pub(super) fn close(&self) {
        let open: Vec<_> = self
            .lock()
            .iter()
            .filter(|(_, state)| state.ended.is_none())
            .map(|(step, state)| (*step, state.began.is_some()))
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

    /// The state of every step, in order.
    pub(super) fn summary(&self) -> Vec<StepSummary> {
        self.lock()
            .values()
            .map(|state| {
                let (outcome, took) = state
                    .ended
                    .clone()
                    .unwrap_or((Outcome::NotRun, Duration::ZERO));
                StepSummary {
                    name: state.name.clone(),
                    outcome,
                    took,
                    why: state.why.clone(),
                    compared: state.compared.clone(),
                }
            })
            .collect()
    }
}
