//! The RUN steps that run now, to end them when the host's disk gets too full.
//!
//! The disk of a VM is a file of the host that grows with what is written in the VM. So a step that
//! fills it would let every other program of the host pay; instead it ends, with the limit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ::store::LowSpace;
use exec::{Cancel, StepError};

/// The steps that run now.
#[derive(Debug, Default)]
pub(super) struct RunningSteps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// One for each step, those that have ended included.
    cancels: Vec<Cancel>,
    /// Why they were stopped.
    why: Option<LowSpace>,
}

impl RunningSteps {
    /// Stops all steps.
    pub(super) fn stop(&self, why: LowSpace) {
        let mut state = self.lock();
        state.why = Some(why);
        for step in state.cancels.drain(..) {
            step.cancel();
        }
    }

    /// Runs a step, unless there is too little space already, as `low` says.
    pub(super) fn run<T>(
        &self,
        low: impl FnOnce() -> Option<LowSpace>,
        cancel: &Cancel,
        step: impl FnOnce(&Cancel) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let limit = |why: LowSpace| StepError::Limit(why.to_string());
        let own = cancel.child();
        self.lock().cancels.push(own.clone());
        // Whoever stops the steps has said so before, and looks at them afterwards.
        if let Some(why) = low() {
            return Err(limit(why));
        }
        let done = step(&own);
        let stopped = own.is_cancelled() && !cancel.is_cancelled();
        match self.lock().why {
            Some(why) if stopped && done.is_err() => Err(limit(why)),
            Some(_) | None => done,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: LowSpace = LowSpace {
        free: 1 << 20,
        floor: 2 << 20,
    };

    fn cancelled(cancel: &Cancel) -> Result<(), StepError> {
        assert!(cancel.is_cancelled());
        Err(StepError::Cancelled)
    }

    #[test]
    fn a_step_that_fills_the_disk_ends_with_the_limit() {
        let (steps, build) = (RunningSteps::default(), Cancel::new());
        let done = steps.run(
            || None,
            &build,
            |cancel| {
                assert!(!cancel.is_cancelled());
                steps.stop(LOW);
                cancelled(cancel)
            },
        );
        let Err(StepError::Limit(text)) = done else {
            panic!("{done:?}");
        };
        assert!(
            text.contains("only 1 MiB") && text.contains("--min-free-space"),
            "{text}"
        );
        assert!(!build.is_cancelled());
        // With space again, a step may run.
        assert!(steps.run(|| None, &build, |_| Ok(())).is_ok());
    }

    #[test]
    fn no_step_begins_without_space() {
        let steps = RunningSteps::default();
        let done = steps.run(
            || Some(LOW),
            &Cancel::new(),
            |_| -> Result<(), _> { panic!("it ran") },
        );
        assert!(matches!(done, Err(StepError::Limit(_))), "{done:?}");
    }

    #[test]
    fn a_cancelled_build_stays_cancelled_and_a_result_stays_one() {
        let (steps, build) = (RunningSteps::default(), Cancel::new());
        let done = steps.run(
            || None,
            &build,
            |_| {
                steps.stop(LOW);
                Ok(())
            },
        );
        assert!(done.is_ok(), "it was faster");
        let done = steps.run(
            || None,
            &build,
            |cancel| {
                build.cancel();
                steps.stop(LOW);
                cancelled(cancel)
            },
        );
        assert!(matches!(done, Err(StepError::Cancelled)), "{done:?}");
    }
}
