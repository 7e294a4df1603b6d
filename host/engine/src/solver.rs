//! Runs the stages of a plan: in parallel, each stage's steps in order.
//!
//! The law: what may run is computed from the present state, never remembered from an event, and
//! every worker looks again at least once per [`TICK`]. The stages form a DAG in file order, so the
//! earliest unfinished stage can always go on: nothing waits for ever. A stage that waits for
//! another process gives its worker back. The first failure cancels everything else.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;

/// Longest sleep of a worker before it looks at the state again.
const TICK: Duration = Duration::from_millis(100);

/// How long a stage rests after it met a step that another process is running.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// What came of an attempt at a step.
#[derive(Debug)]
pub(crate) enum Attempt<D> {
    /// The step is done.
    Done(D),
    /// Another process runs the same step: try again later.
    Busy,
}

/// A stage as the solver sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    /// Stages that must be complete before step `n` of this one can start, for each step.
    pub(crate) needs: Vec<Vec<usize>>,
}

/// What is known about a stage.
#[derive(Debug)]
struct Progress<D> {
    done: Vec<D>,
    running: bool,
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct State<D, E> {
    stages: Vec<Progress<D>>,
    failure: Option<E>,
}

/// Solves a plan. `D` is what a step yields.
#[derive(Debug)]
pub(crate) struct Solver<'a, D, E> {
    shapes: &'a [Shape],
    cancel: &'a Cancel,
    state: Mutex<State<D, E>>,
    changed: Condvar,
}

/// How solving ended short of success.
#[derive(Debug)]
pub(crate) enum Unsolved<E> {
    /// A step failed.
    Failed(E),
    /// The build was cancelled.
    Cancelled,
}

impl<'a, D, E> Solver<'a, D, E>
where
    D: Clone + Send,
    E: Send,
{
    pub(crate) fn new(shapes: &'a [Shape], cancel: &'a Cancel) -> Self {
        let stages = shapes
            .iter()
            .map(|shape| Progress {
                done: Vec::with_capacity(shape.needs.len()),
                running: false,
                rests_until: None,
            })
            .collect();
        Self {
            shapes,
            cancel,
            state: Mutex::new(State {
                stages,
                failure: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Runs `attempt(stage, step, results so far of all stages)` for every step, at most `jobs` at
    /// a time. The results come back per stage.
    pub(crate) fn solve<F>(self, jobs: usize, attempt: F) -> Result<Vec<Vec<D>>, Unsolved<E>>
    where
        F: Fn(usize, usize, &[Vec<D>]) -> Result<Attempt<D>, E> + Sync,
    {
        let workers = jobs.min(self.shapes.len()).max(1);
        if workers == 1 {
            self.work(&attempt);
        } else {
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| self.work(&attempt));
                }
            });
        }
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match state.failure {
            Some(failure) => Err(Unsolved::Failed(failure)),
            None if complete(&state.stages, self.shapes) => {
                Ok(state.stages.into_iter().map(|stage| stage.done).collect())
            }
            None => Err(Unsolved::Cancelled),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<D, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker: takes steps until nothing is left to do.
    fn work<F>(&self, attempt: &F)
    where
        F: Fn(usize, usize, &[Vec<D>]) -> Result<Attempt<D>, E> + Sync,
    {
        // A panic in a step must end the build, not leave the other workers waiting for it.
        let guard = CancelOnPanic(self.cancel);
        let mut state = self.lock();
        while !self.cancel.is_cancelled() && !complete(&state.stages, self.shapes) {
            let now = Instant::now();
            let Some(stage) = ready(&state.stages, self.shapes, now) else {
                state = self
                    .changed
                    .wait_timeout(state, TICK)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            };
            let Some(progress) = state.stages.get_mut(stage) else {
                break;
            };
            progress.running = true;
            let step = progress.done.len();
            let results: Vec<Vec<D>> = state.stages.iter().map(|s| s.done.clone()).collect();
            drop(state);
            let outcome = attempt(stage, step, &results);
            state = self.lock();
            self.settle(&mut state, stage, outcome);
            self.changed.notify_all();
        }
        drop(state);
        guard.disarm();
        self.changed.notify_all();
    }

    /// Writes down what came of an attempt.
    fn settle(&self, state: &mut State<D, E>, stage: usize, outcome: Result<Attempt<D>, E>) {
        let Some(progress) = state.stages.get_mut(stage) else {
            return;
        };
        progress.running = false;
        match outcome {
            Ok(Attempt::Done(result)) => {
                progress.rests_until = None;
                progress.done.push(result);
            }
            Ok(Attempt::Busy) => progress.rests_until = Some(Instant::now() + BUSY_PAUSE),
            Err(failure) => {
                // The first failure counts: what fails afterwards fails because of the cancel.
                if state.failure.is_none() && !self.cancel.is_cancelled() {
                    state.failure = Some(failure);
                }
                self.cancel.cancel();
            }
        }
    }
}

/// Whether every stage has done all its steps.
fn complete<D>(stages: &[Progress<D>], shapes: &[Shape]) -> bool {
    stages
        .iter()
        .zip(shapes)
        .all(|(stage, shape)| stage.done.len() == shape.needs.len())
}

/// The first stage whose next step may start now.
fn ready<D>(stages: &[Progress<D>], shapes: &[Shape], now: Instant) -> Option<usize> {
    let finished = |&of: &usize| {
        stages
            .get(of)
            .zip(shapes.get(of))
            .is_some_and(|(s, shape)| s.done.len() == shape.needs.len())
    };
    stages.iter().zip(shapes).position(|(stage, shape)| {
        !stage.running
            && stage.rests_until.is_none_or(|until| now >= until)
            && shape
                .needs
                .get(stage.done.len())
                .is_some_and(|needs| needs.iter().all(finished))
    })
}

/// Cancels the build if the thread that holds it unwinds.
struct CancelOnPanic<'a>(&'a Cancel);

impl CancelOnPanic<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for CancelOnPanic<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn shape(needs: &[&[usize]]) -> Shape {
        Shape {
            needs: needs.iter().map(|n| n.to_vec()).collect(),
        }
    }

    #[test]
    fn a_stage_waits_for_the_stage_it_copies_from() {
        let shapes = [shape(&[&[], &[]]), shape(&[&[], &[0], &[]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&shapes, &cancel);
        let solved = solver.solve(4, |stage, step, results| {
            if (stage, step) == (1, 1) {
                assert_eq!(results[0].len(), 2);
            }
            Ok(Attempt::Done(step))
        });
        assert_eq!(solved.unwrap(), vec![vec![0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn the_first_failure_cancels_the_rest_and_is_the_one_reported() {
        let shapes = [shape(&[&[]]), shape(&[&[]]), shape(&[&[0, 1]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, (), &str> = Solver::new(&shapes, &cancel);
        let solved = solver.solve(2, |stage, _, _| {
            if stage == 0 {
                return Err("boom");
            }
            let _cancelled = cancel.sleep(Duration::from_secs(60));
            Err("cancelled")
        });
        assert!(matches!(solved, Err(Unsolved::Failed("boom"))));
        assert!(cancel.is_cancelled());
    }

    #[test]
    fn a_busy_step_is_tried_again_and_its_worker_serves_others() {
        let shapes = [shape(&[&[]]), shape(&[&[], &[]])];
        let cancel = Cancel::new();
        let other_done = AtomicUsize::new(0);
        let solver: Solver<'_, (), ()> = Solver::new(&shapes, &cancel);
        let solved = solver.solve(1, |stage, _, _| {
            if stage == 0 && other_done.load(Ordering::SeqCst) < 2 {
                return Ok(Attempt::Busy);
            }
            if stage == 1 {
                other_done.fetch_add(1, Ordering::SeqCst);
            }
            Ok(Attempt::Done(()))
        });
        assert!(solved.is_ok());
    }

    #[test]
    fn a_panic_in_a_step_does_not_leave_the_others_waiting() {
        let shapes = [shape(&[&[]]), shape(&[&[0]])];
        let cancel = Cancel::new();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let solver: Solver<'_, (), ()> = Solver::new(&shapes, &cancel);
            solver.solve(2, |_, _, _| panic!("a step panicked"))
        }));
        assert!(caught.is_err());
    }

    proptest! {
        /// Any DAG in file order is solved whatever the number of workers, and never more than
        /// that many steps run at once.
        #[test]
        fn every_dag_is_solved_within_the_job_limit(
            edges in proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 0..4), 1..12),
            jobs in 1usize..5,
        ) {
            let shapes: Vec<Shape> = edges
                .iter()
                .enumerate()
                .map(|(stage, needs)| Shape {
                    needs: needs
                        .iter()
                        .map(|n| if stage == 0 { vec![] } else { vec![n.index(stage)] })
                        .collect(),
                })
                .collect();
            let cancel = Cancel::new();
            let at_work = AtomicUsize::new(0);
            let solver: Solver<'_, (), ()> = Solver::new(&shapes, &cancel);
            let solved = solver.solve(jobs, |stage, step, results| {
                let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= jobs);
                for need in &shapes[stage].needs[step] {
                    assert_eq!(results[*need].len(), shapes[*need].needs.len());
                }
                at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(Attempt::Done(()))
            });
            prop_assert!(solved.is_ok());
        }
    }
}
