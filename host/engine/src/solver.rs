//! Runs the stages of a plan: in parallel, each stage's steps in order.
//!
//! The law: what may run is computed from the present state, never remembered from an event, and
//! every worker looks again at least once per [`TICK`]. The stages form a DAG in file order, so the
//! earliest unfinished stage can always go on: nothing waits for ever. A stage that waits for
//! another process gives its worker back. The first failure cancels everything else. The cost grows
//! with the number of steps and of edges between stages, however many paths lead through them.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use exec::{Cancel, TICK};

/// How long a stage rests after it met a step that another process is running: at least this, and
/// up to half as much again, so that those who wait for one step do not all look at once, again and
/// again.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

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
    /// The stage that it stands on, if any. It is complete when that is, and all its own steps are.
    pub(crate) base: Option<usize>,
    /// Further stages that must be complete before step `n` of this one can start, for each step.
    pub(crate) needs: Vec<Vec<usize>>,
}

/// What the steps came to so far. Written once each, and read without a lock.
#[derive(Debug)]
pub(crate) struct Results<D>(Vec<Vec<OnceLock<D>>>);

impl<D> Results<D> {
    fn new(shapes: &[Shape]) -> Self {
        let slots = |shape: &Shape| shape.needs.iter().map(|_| OnceLock::new()).collect();
        Self(shapes.iter().map(slots).collect())
    }

    /// What the steps of a stage came to, in order, as far as they are done.
    pub(crate) fn of(&self, stage: usize) -> impl DoubleEndedIterator<Item = &D> {
        let slots = self.0.get(stage).map_or(&[][..], Vec::as_slice);
        slots.iter().filter_map(OnceLock::get)
    }

    fn set(&self, stage: usize, step: usize, result: D) {
        // A step runs once at a time, so nobody was there before.
        let slot = self.0.get(stage).and_then(|steps| steps.get(step));
        slot.map(|slot| slot.set(result).ok());
    }

    fn into_inner(self) -> Vec<Vec<D>> {
        let done = |steps: Vec<OnceLock<D>>| {
            let steps = steps.into_iter();
            steps.filter_map(OnceLock::into_inner).collect()
        };
        self.0.into_iter().map(done).collect()
    }
}

/// How a stage stands.
#[derive(Debug, Clone, Default)]
struct Standing {
    /// The next step, or their number.
    next: usize,
    /// How many incomplete stages the next step, or else the end, waits for.
    missing: usize,
    complete: bool,
    /// Stages whose next step waits for this one to be complete.
    waiting: Vec<usize>,
}

#[derive(Debug)]
struct State<E> {
    stages: Vec<Standing>,
    /// Stages whose next step may start.
    ready: BTreeSet<usize>,
    /// Stages that met a step of another process, and until when they rest.
    resting: BTreeSet<(Instant, usize)>,
    incomplete: usize,
    failure: Option<E>,
}

/// Solves a plan. `D` is what a step yields.
#[derive(Debug)]
pub(crate) struct Solver<'a, D, E> {
    shapes: &'a [Shape],
    cancel: &'a Cancel,
    results: Results<D>,
    state: Mutex<State<E>>,
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
    D: Send + Sync,
    E: Send,
{
    pub(crate) fn new(shapes: &'a [Shape], cancel: &'a Cancel) -> Self {
        Self {
            shapes,
            cancel,
            results: Results::new(shapes),
            state: Mutex::new(State::new(shapes)),
            changed: Condvar::new(),
        }
    }

    /// Runs `attempt(stage, step, results so far)` for every step, at most `jobs` at a time. The
    /// results come back per stage.
    pub(crate) fn solve<F>(self, jobs: usize, attempt: F) -> Result<Vec<Vec<D>>, Unsolved<E>>
    where
        F: Fn(usize, usize, &Results<D>) -> Result<Attempt<D>, E> + Sync,
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
            None if state.incomplete == 0 => Ok(self.results.into_inner()),
            None => Err(Unsolved::Cancelled),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker: takes steps until nothing is left to do.
    fn work<F>(&self, attempt: &F)
    where
        F: Fn(usize, usize, &Results<D>) -> Result<Attempt<D>, E> + Sync,
    {
        // A panic in a step must end the build, not leave the other workers waiting for it.
        let guard = CancelOnPanic(self.cancel);
        let mut state = self.lock();
        while !self.cancel.is_cancelled() && state.incomplete > 0 {
            let Some((stage, step)) = state.take(Instant::now()) else {
                let nap = state.nap(Instant::now());
                state = self
                    .changed
                    .wait_timeout(state, nap)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            };
            drop(state);
            let outcome = attempt(stage, step, &self.results);
            state = self.lock();
            self.settle(&mut state, stage, step, outcome);
            self.changed.notify_all();
        }
        drop(state);
        guard.disarm();
        self.changed.notify_all();
    }

    /// Writes down what came of an attempt.
    fn settle(
        &self,
        state: &mut State<E>,
        stage: usize,
        step: usize,
        outcome: Result<Attempt<D>, E>,
    ) {
        match outcome {
            Ok(Attempt::Done(result)) => {
                self.results.set(stage, step, result);
                state.advance(self.shapes, stage, step + 1);
            }
            Ok(Attempt::Busy) => {
                state.resting.insert((Instant::now() + pause(), stage));
            }
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

impl<E> State<E> {
    fn new(shapes: &[Shape]) -> Self {
        let mut state = Self {
            stages: vec![Standing::default(); shapes.len()],
            ready: BTreeSet::new(),
            resting: BTreeSet::new(),
            incomplete: shapes.len(),
            failure: None,
        };
        for stage in 0..shapes.len() {
            state.advance(shapes, stage, 0);
        }
        state
    }

    /// How long there is nothing to do for a worker that found nothing: until the first stage has
    /// rested, so that an uneven pause stays uneven.
    fn nap(&self, now: Instant) -> Duration {
        let rested = self.resting.first().map(|(until, _)| *until);
        rested.map_or(TICK, |until| until.saturating_duration_since(now).min(TICK))
    }

    /// The first stage in the file whose next step may start now, and that step. It is taken out.
    fn take(&mut self, now: Instant) -> Option<(usize, usize)> {
        while let Some(&(until, stage)) = self.resting.first().filter(|(until, _)| *until <= now) {
            self.resting.remove(&(until, stage));
            self.ready.insert(stage);
        }
        let stage = self.ready.pop_first()?;
        Some((stage, self.stages.get(stage)?.next))
    }

    /// A stage comes to its step `next`, or to its end. Each edge of the graph is looked at once
    /// here, and once when the stage that it leads to is complete.
    fn advance(&mut self, shapes: &[Shape], stage: usize, next: usize) {
        let Some(shape) = shapes.get(stage) else {
            return;
        };
        let needs = shape.needs.get(next).map_or(&[][..], Vec::as_slice);
        let base = shape.base.filter(|_| next == 0);
        let mut missing = 0;
        for need in needs.iter().copied().chain(base) {
            if let Some(needed) = self.stages.get_mut(need).filter(|s| !s.complete) {
                needed.waiting.push(stage);
                missing += 1;
            }
        }
        if let Some(standing) = self.stages.get_mut(stage) {
            (standing.next, standing.missing) = (next, missing);
        }
        if missing == 0 {
            self.release(shapes, stage);
        }
    }

    /// What a stage waited for is there. If it was the end of the stage, whoever waits for that
    /// goes on, too: a list and no recursion, since stages may stand on each other by thousands.
    fn release(&mut self, shapes: &[Shape], stage: usize) {
        let mut released = vec![stage];
        while let Some(stage) = released.pop() {
            let steps = shapes.get(stage).map_or(0, |shape| shape.needs.len());
            let Some(standing) = self.stages.get_mut(stage) else {
                continue;
            };
            if standing.next < steps {
                self.ready.insert(stage);
                continue;
            }
            standing.complete = true;
            self.incomplete = self.incomplete.saturating_sub(1);
            for waiting in std::mem::take(&mut standing.waiting) {
                let Some(standing) = self.stages.get_mut(waiting) else {
                    continue;
                };
                standing.missing = standing.missing.saturating_sub(1);
                if standing.missing == 0 {
                    released.push(waiting);
                }
            }
        }
    }
}

/// A pause of uneven length. Without the system's chance it is as good as any other.
fn pause() -> Duration {
    let mut chance = [0];
    getrandom::fill(&mut chance).ok();
    let [chance] = chance;
    BUSY_PAUSE.mul_f64(1.0 + f64::from(chance) / 512.0)
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

    /// Far more than any of these takes, even on a slow machine under load.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn shape(needs: &[&[usize]]) -> Shape {
        Shape {
            base: None,
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
                assert_eq!(results.of(0).count(), 2);
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
    fn those_who_wait_do_not_look_in_step() {
        let pauses: BTreeSet<Duration> = (0..100).map(|_| pause()).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
        let (shortest, longest) = (pauses.first().unwrap(), pauses.last().unwrap());
        assert!(*shortest >= BUSY_PAUSE && *longest <= BUSY_PAUSE * 3 / 2);
        // A worker wakes when the pause ends, and not at a multiple of its tick.
        let mut state: State<()> = State::new(&[shape(&[&[]])]);
        let now = Instant::now();
        assert_eq!(state.take(now), Some((0, 0)));
        assert_eq!(state.nap(now), TICK);
        for (left, nap) in [(30, 30), (130, 50)] {
            let until = now + Duration::from_millis(left);
            state.resting = BTreeSet::from([(until, 0)]);
            assert_eq!(state.nap(now), Duration::from_millis(nap));
        }
        assert_eq!(state.take(now + Duration::from_millis(129)), None);
        assert_eq!(state.take(now + Duration::from_millis(130)), Some((0, 0)));
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

    #[test]
    fn a_stage_without_steps_is_complete_when_what_it_stands_on_is() {
        let empty = |base| Shape {
            base: Some(base),
            needs: Vec::new(),
        };
        let shapes = [shape(&[&[]]), empty(0), empty(1), shape(&[&[2]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&shapes, &cancel);
        let solved = solver.solve(3, |stage, _, results| {
            if stage == 3 {
                assert_eq!(results.of(0).count(), 1);
            }
            Ok(Attempt::Done(stage))
        });
        assert_eq!(solved.unwrap(), [vec![0], vec![], vec![], vec![3]]);
    }

    /// Each stage needs the two before it, so 2^n paths lead to the last one; and one stage that
    /// everything stands on, one step after the other.
    #[test]
    fn a_hundred_thousand_vertices_with_diamonds_are_solved() {
        let begin = Instant::now();
        let diamond = |n: usize| Shape {
            base: n.checked_sub(3),
            needs: vec![
                n.checked_sub(1)
                    .into_iter()
                    .chain(n.checked_sub(2))
                    .collect(),
            ],
        };
        let mut shapes: Vec<Shape> = (0..50_000).map(diamond).collect();
        shapes.push(Shape {
            base: Some(49_999),
            needs: vec![Vec::new(); 50_000],
        });
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&shapes, &cancel);
        let solved = solver.solve(2, |stage, step, results| {
            let before = stage
                .checked_sub(2)
                .map_or(1, |n| results.of(n).take(1).count());
            assert_eq!(before, 1);
            Ok(Attempt::Done(step))
        });
        let steps: usize = solved.unwrap().iter().map(Vec::len).sum();
        assert_eq!(steps, 100_000);
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
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
                    base: None,
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
                    assert_eq!(results.of(*need).count(), shapes[*need].needs.len());
                }
                at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(Attempt::Done(()))
            });
            prop_assert!(solved.is_ok());
        }
    }
}
