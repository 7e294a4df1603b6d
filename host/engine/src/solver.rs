//! Runs the stages of a plan: in parallel, each stage's steps in order.
//!
//! The law: what may run is computed from the current state, never remembered from an event, and
//! every worker looks at the state at least once per [`TICK`]. The stages form a DAG in file order, so
//! the earliest incomplete stage can always continue: nothing waits for ever. A stage that waits for
//! another process releases its worker. The first failure cancels everything else. The cost is linear in
//! the number of steps and of edges between stages, however many paths lead through them, unless
//! steps are deferred: each of these is attempted again when another one is done.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use exec::{Cancel, TICK};

/// How long a stage waits before it attempts a step again that another process is running: at least
/// this, and up to half as much again, so that several waiters spread out.
const BUSY_DELAY: Duration = Duration::from_millis(200);

/// The outcome of an attempt at a step.
#[derive(Debug)]
pub(crate) enum Attempt<D> {
    /// The step is done.
    Done(D),
    /// Another process runs the same step: try again later.
    Busy,
    /// Only if [`At::may_defer`]: try again when another step is done, or when no other can be done
    /// without work.
    Deferred,
}

/// A step to attempt.
pub(crate) struct At<'a> {
    pub(crate) stage: usize,
    pub(crate) step: usize,
    /// Whether the attempt may be deferred.
    pub(crate) may_defer: bool,
    working: &'a (dyn Fn() + Sync),
}

impl At<'_> {
    /// The attempt has found no result and begins to work, perhaps for long: nothing is deferred
    /// because of it any more.
    pub(crate) fn working(&self) {
        (self.working)();
    }
}

/// What a stage waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageDependencies {
    /// The stage below it, if any. A stage is complete when that one and all its own steps are.
    pub(crate) base: Option<usize>,
    /// For each step, further stages that must be complete before it can start.
    pub(crate) needs: Vec<Vec<usize>>,
}

/// The results so far. Each is written once, and read without a lock.
#[derive(Debug)]
pub(crate) struct Results<D>(Vec<Vec<OnceLock<D>>>);

impl<D> Results<D> {
    fn new(dependencies: &[StageDependencies]) -> Self {
        let slots =
            |stage: &StageDependencies| stage.needs.iter().map(|_| OnceLock::new()).collect();
        Self(dependencies.iter().map(slots).collect())
    }

    /// The results of the steps of a stage, in order, as far as they are done.
    pub(crate) fn of(&self, stage: usize) -> impl DoubleEndedIterator<Item = &D> {
        let slots = self.0.get(stage).map_or(&[][..], Vec::as_slice);
        slots.iter().filter_map(OnceLock::get)
    }

    fn set(&self, stage: usize, step: usize, result: D) {
        // A step runs once at a time, so the slot is empty.
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

/// How far a stage is.
#[derive(Debug, Clone, Default)]
struct StageState {
    /// The next step, or the number of steps.
    next: usize,
    /// How many incomplete stages the next step waits for, or the end of the stage.
    missing: usize,
    complete: bool,
    /// Stages whose next step waits for this one to be complete.
    waiting: Vec<usize>,
}

#[derive(Debug)]
struct State<E> {
    stages: Vec<StageState>,
    /// Stages whose next step may start.
    ready: BTreeSet<usize>,
    /// Stages whose step is running in another process, and when to attempt it again.
    backing_off: BTreeSet<(Instant, usize)>,
    /// Stages whose step was deferred.
    deferred: BTreeSet<usize>,
    /// Stages whose step is being attempted and has not begun to work.
    looking: BTreeSet<usize>,
    incomplete: usize,
    failure: Option<E>,
}

/// Solves a plan. `D` is what a step yields.
#[derive(Debug)]
pub(crate) struct Solver<'a, D, E> {
    dependencies: &'a [StageDependencies],
    cancel: &'a Cancel,
    results: Results<D>,
    state: Mutex<State<E>>,
    changed: Condvar,
}

/// Why there are not all results.
#[derive(Debug)]
pub(crate) enum SolveError<E> {
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
    pub(crate) fn new(dependencies: &'a [StageDependencies], cancel: &'a Cancel) -> Self {
        Self {
            dependencies,
            cancel,
            results: Results::new(dependencies),
            state: Mutex::new(State::new(dependencies)),
            changed: Condvar::new(),
        }
    }

    /// Runs `attempt(step, results so far)` for every step, at most `jobs` at a time. The results come
    /// back per stage.
    pub(crate) fn solve<F>(self, jobs: usize, attempt: F) -> Result<Vec<Vec<D>>, SolveError<E>>
    where
        F: Fn(&At<'_>, &Results<D>) -> Result<Attempt<D>, E> + Sync,
    {
        let workers = jobs.min(self.dependencies.len()).max(1);
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
            Some(failure) => Err(SolveError::Failed(failure)),
            None if state.incomplete == 0 => Ok(self.results.into_inner()),
            None => Err(SolveError::Cancelled),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker: takes steps until nothing is left to do.
    fn work<F>(&self, attempt: &F)
    where
        F: Fn(&At<'_>, &Results<D>) -> Result<Attempt<D>, E> + Sync,
    {
        // A panic in a step must end the build, and not leave the other workers waiting.
        let guard = CancelOnPanic(self.cancel);
        let mut state = self.lock();
        while !self.cancel.is_cancelled() && state.incomplete > 0 {
            let Some((stage, step, may_defer)) = state.take(Instant::now()) else {
                let next_wakeup = state.next_wakeup(Instant::now());
                state = self
                    .changed
                    .wait_timeout(state, next_wakeup)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            };
            drop(state);
            let at = At {
                stage,
                step,
                may_defer,
                working: &|| self.stop_looking(stage),
            };
            let outcome = attempt(&at, &self.results);
            state = self.lock();
            self.record_outcome(&mut state, stage, step, outcome);
            self.changed.notify_all();
        }
        drop(state);
        guard.disarm();
        self.changed.notify_all();
    }

    fn stop_looking(&self, stage: usize) {
        self.lock().looking.remove(&stage);
        self.changed.notify_all();
    }

    /// Records the outcome of an attempt.
    fn record_outcome(
        &self,
        state: &mut State<E>,
        stage: usize,
        step: usize,
        outcome: Result<Attempt<D>, E>,
    ) {
        state.looking.remove(&stage);
        match outcome {
            Ok(Attempt::Done(result)) => {
                self.results.set(stage, step, result);
                state.advance(self.dependencies, stage, step + 1);
                let deferred = std::mem::take(&mut state.deferred);
                state.ready.extend(deferred);
            }
            Ok(Attempt::Deferred) => {
                state.deferred.insert(stage);
            }
            Ok(Attempt::Busy) => {
                state
                    .backing_off
                    .insert((Instant::now() + busy_delay(), stage));
            }
            Err(failure) => {
                // Only the first failure counts: later ones are caused by the cancel.
                if state.failure.is_none() && !self.cancel.is_cancelled() {
                    state.failure = Some(failure);
                }
                self.cancel.cancel();
            }
        }
    }
}

impl<E> State<E> {
    fn new(dependencies: &[StageDependencies]) -> Self {
        let mut state = Self {
            stages: vec![StageState::default(); dependencies.len()],
            ready: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            deferred: BTreeSet::new(),
            looking: BTreeSet::new(),
            incomplete: dependencies.len(),
            failure: None,
        };
        for stage in 0..dependencies.len() {
            state.advance(dependencies, stage, 0);
        }
        state
    }

    /// How long an idle worker sleeps: until the first delayed attempt, so that delays stay spread out.
    fn next_wakeup(&self, now: Instant) -> Duration {
        let first = self.backing_off.first().map(|(until, _)| *until);
        first.map_or(TICK, |until| until.saturating_duration_since(now).min(TICK))
    }

    /// Takes the first stage in the file whose next step may start now, and gives that step and
    /// whether it may be deferred. One that was deferred starts if nothing else can make progress
    /// without work.
    fn take(&mut self, now: Instant) -> Option<(usize, usize, bool)> {
        while let Some(&(until, stage)) =
            self.backing_off.first().filter(|(until, _)| *until <= now)
        {
            self.backing_off.remove(&(until, stage));
            self.ready.insert(stage);
        }
        let (stage, may_defer) = match self.ready.pop_first() {
            Some(stage) => (stage, true),
            None if self.looking.is_empty() => (self.deferred.pop_first()?, false),
            None => return None,
        };
        self.looking.insert(stage);
        Some((stage, self.stages.get(stage)?.next, may_defer))
    }

    /// A stage reaches its step `next`, or its end. Each edge of the graph is visited once here, and
    /// once when the stage that it leads to is complete.
    fn advance(&mut self, dependencies: &[StageDependencies], stage: usize, next: usize) {
        let Some(planned) = dependencies.get(stage) else {
            return;
        };
        let needs = planned.needs.get(next).map_or(&[][..], Vec::as_slice);
        let base = planned.base.filter(|_| next == 0);
        let mut missing = 0;
        for need in needs.iter().copied().chain(base) {
            if let Some(needed) = self.stages.get_mut(need).filter(|s| !s.complete) {
                needed.waiting.push(stage);
                missing += 1;
            }
        }
        if let Some(entry) = self.stages.get_mut(stage) {
            (entry.next, entry.missing) = (next, missing);
        }
        if missing == 0 {
            self.release(dependencies, stage);
        }
    }

    /// A stage waits for nothing more. If it has reached its end, the stages that wait for it may
    /// continue, too. This uses a list instead of recursion, since chains of stages may be long.
    fn release(&mut self, dependencies: &[StageDependencies], stage: usize) {
        let mut released = vec![stage];
        while let Some(stage) = released.pop() {
            let steps = dependencies
                .get(stage)
                .map_or(0, |planned| planned.needs.len());
            let Some(entry) = self.stages.get_mut(stage) else {
                continue;
            };
            if entry.next < steps {
                self.ready.insert(stage);
                continue;
            }
            entry.complete = true;
            self.incomplete = self.incomplete.saturating_sub(1);
            for waiting in std::mem::take(&mut entry.waiting) {
                let Some(entry) = self.stages.get_mut(waiting) else {
                    continue;
                };
                entry.missing = entry.missing.saturating_sub(1);
                if entry.missing == 0 {
                    released.push(waiting);
                }
            }
        }
    }
}

/// A delay of random length. Without randomness from the system, the shortest.
fn busy_delay() -> Duration {
    let mut chance = [0];
    getrandom::fill(&mut chance).ok();
    let [chance] = chance;
    BUSY_DELAY.mul_f64(1.0 + f64::from(chance) / 512.0)
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

    /// Far longer than any of these takes, even on a slow machine under load.
    const BOUND: Duration = Duration::from_secs(60);

    fn stage(needs: &[&[usize]]) -> StageDependencies {
        StageDependencies {
            base: None,
            needs: needs.iter().map(|n| n.to_vec()).collect(),
        }
    }

    #[test]
    fn a_stage_waits_for_the_stage_it_copies_from() {
        let dependencies = [stage(&[&[], &[]]), stage(&[&[], &[0], &[]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&dependencies, &cancel);
        let solved = solver.solve(4, |&At { stage, step, .. }, results| {
            if (stage, step) == (1, 1) {
                assert_eq!(results.of(0).count(), 2);
            }
            Ok(Attempt::Done(step))
        });
        assert_eq!(solved.unwrap(), vec![vec![0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn the_first_failure_cancels_the_rest_and_is_the_one_reported() {
        let dependencies = [stage(&[&[]]), stage(&[&[]]), stage(&[&[0, 1]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, (), &str> = Solver::new(&dependencies, &cancel);
        let solved = solver.solve(2, |&At { stage, .. }, _| {
            if stage == 0 {
                return Err("boom");
            }
            let _cancelled = cancel.sleep(Duration::from_secs(60));
            Err("cancelled")
        });
        assert!(matches!(solved, Err(SolveError::Failed("boom"))));
        assert!(cancel.is_cancelled());
    }

    #[test]
    fn a_busy_step_is_tried_again_and_its_worker_serves_others() {
        let dependencies = [stage(&[&[]]), stage(&[&[], &[]])];
        let cancel = Cancel::new();
        let other_done = AtomicUsize::new(0);
        let solver: Solver<'_, (), ()> = Solver::new(&dependencies, &cancel);
        let solved = solver.solve(1, |&At { stage, .. }, _| {
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
    fn a_deferred_step_waits_for_all_that_can_be_done_without_work_and_for_nothing_else() {
        let dependencies = [stage(&[&[]]), stage(&[&[], &[]]), stage(&[&[]])];
        for jobs in [1, 3] {
            let (cancel, found) = (Cancel::new(), AtomicUsize::new(0));
            let released = Cancel::new();
            let solver: Solver<'_, (), ()> = Solver::new(&dependencies, &cancel);
            let solved = solver.solve(jobs, |at, _| {
                match at.stage {
                    0 if at.may_defer => return Ok(Attempt::Deferred),
                    0 => {
                        assert_eq!(found.load(Ordering::SeqCst), 2);
                        released.cancel();
                    }
                    1 => {
                        found.fetch_add(1, Ordering::SeqCst);
                    }
                    // Works until the deferred step was done, if another worker can do that.
                    _ => {
                        at.working();
                        assert!(jobs == 1 || released.sleep(Duration::from_secs(60)));
                    }
                }
                Ok(Attempt::Done(()))
            });
            assert!(solved.is_ok());
        }
    }

    #[test]
    fn waiting_stages_spread_out() {
        let delays: BTreeSet<Duration> = (0..100).map(|_| busy_delay()).collect();
        assert!(delays.len() > 10, "{delays:?}");
        let (shortest, longest) = (delays.first().unwrap(), delays.last().unwrap());
        assert!(*shortest >= BUSY_DELAY && *longest <= BUSY_DELAY * 3 / 2);
        // A worker wakes when the pause ends, and not at a multiple of its tick.
        let mut state: State<()> = State::new(&[stage(&[&[]])]);
        let now = Instant::now();
        assert_eq!(state.take(now), Some((0, 0, true)));
        assert_eq!(state.next_wakeup(now), TICK);
        for (left, next_wakeup) in [(30, 30), (130, 50)] {
            let until = now + Duration::from_millis(left);
            state.backing_off = BTreeSet::from([(until, 0)]);
            assert_eq!(state.next_wakeup(now), Duration::from_millis(next_wakeup));
        }
        assert_eq!(state.take(now + Duration::from_millis(129)), None);
        assert_eq!(
            state.take(now + Duration::from_millis(130)),
            Some((0, 0, true))
        );
    }

    #[test]
    fn a_panic_in_a_step_does_not_leave_the_others_waiting() {
        let dependencies = [stage(&[&[]]), stage(&[&[0]])];
        let cancel = Cancel::new();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let solver: Solver<'_, (), ()> = Solver::new(&dependencies, &cancel);
            solver.solve(2, |_, _| panic!("a step panicked"))
        }));
        assert!(caught.is_err());
    }

    #[test]
    fn a_stage_without_steps_is_complete_when_its_base_is() {
        let empty = |base| StageDependencies {
            base: Some(base),
            needs: Vec::new(),
        };
        let dependencies = [stage(&[&[]]), empty(0), empty(1), stage(&[&[2]])];
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&dependencies, &cancel);
        let solved = solver.solve(3, |&At { stage, .. }, results| {
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
        let diamond = |n: usize| StageDependencies {
            base: n.checked_sub(3),
            needs: vec![
                n.checked_sub(1)
                    .into_iter()
                    .chain(n.checked_sub(2))
                    .collect(),
            ],
        };
        let mut dependencies: Vec<StageDependencies> = (0..50_000).map(diamond).collect();
        dependencies.push(StageDependencies {
            base: Some(49_999),
            needs: vec![Vec::new(); 50_000],
        });
        let cancel = Cancel::new();
        let solver: Solver<'_, usize, ()> = Solver::new(&dependencies, &cancel);
        let solved = solver.solve(2, |&At { stage, step, .. }, results| {
            let before = stage
                .checked_sub(2)
                .map_or(1, |n| results.of(n).take(1).count());
            assert_eq!(before, 1);
            Ok(Attempt::Done(step))
        });
        let steps: usize = solved.unwrap().iter().map(Vec::len).sum();
        assert_eq!(steps, 100_000);
        assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    }

    proptest! {
        /// Any DAG in file order is solved whatever the number of workers, and never more than
        /// that many steps run at once.
        #[test]
        fn every_dag_is_solved_within_the_job_limit(
            edges in proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 0..4), 1..12),
            jobs in 1usize..5,
            deferring in any::<u16>(),
        ) {
            let dependencies: Vec<StageDependencies> = edges
                .iter()
                .enumerate()
                .map(|(stage, needs)| StageDependencies {
                    base: None,
                    needs: needs
                        .iter()
                        .map(|n| if stage == 0 { vec![] } else { vec![n.index(stage)] })
                        .collect(),
                })
                .collect();
            let cancel = Cancel::new();
            let at_work = AtomicUsize::new(0);
            let solver: Solver<'_, (), ()> = Solver::new(&dependencies, &cancel);
            let solved = solver.solve(jobs, |at, results| {
                let &At { stage, step, may_defer, .. } = at;
                if may_defer && deferring & (1 << stage) != 0 {
                    return Ok(Attempt::Deferred);
                }
                let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= jobs);
                for need in &dependencies[stage].needs[step] {
                    assert_eq!(results.of(*need).count(), dependencies[*need].needs.len());
                }
                at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(Attempt::Done(()))
            });
            prop_assert!(solved.is_ok());
        }
    }
}
