//! Claims, leases and tombstones in every order, with a crash at any point.
//!
//! A [`ModelState`] is the database, the object files and what each process is doing. An [`Action`] is one
//! transaction or one I/O operation on the files, as in `action.rs`, `object.rs`, `reap.rs` and
//! `prune.rs`. [stateright] visits every state. [`schedule`] runs the real code in random orders of the
//! same steps, under the same laws.

mod schedule;
mod state;

use stateright::{Checker, Model, Property};

use state::{Action, ModelState, Phase};

/// A deliberate fault, which the model must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    None,
    /// An object is found in one transaction and leased in the next.
    LeaseLater,
    /// A key is claimed without looking for a result again.
    NoSecondLook,
    /// Prune removes the file before the tombstone.
    BytesFirst,
    /// The owner of an old claim counts as dead.
    ImpatientWaiter,
    /// The claims of dead instances stay.
    ClaimsOfTheDead,
    /// The row of a pending object of a dead instance is deleted with its claim, not after its file.
    RowFirst,
    /// The owner of a claim takes the next one before it begins to work.
    HoldAndWait,
}

/// What the processes do, and what may happen.
#[derive(Debug, Clone)]
struct Script {
    /// The keys that each builder wants, one after the other.
    builders: Vec<Vec<usize>>,
    prunes: usize,
    crashes: usize,
    fault: Fault,
}

impl Script {
    fn keys(&self) -> usize {
        let keys = self.builders.iter().flatten().max();
        keys.map_or(0, |key| key + 1)
    }
}

impl Model for Script {
    type State = ModelState;
    type Action = Action;

    fn init_states(&self) -> Vec<ModelState> {
        vec![ModelState::new(self)]
    }

    fn actions(&self, state: &ModelState, actions: &mut Vec<Action>) {
        state.actions(self, actions);
    }

    fn next_state(&self, state: &ModelState, action: Action) -> Option<ModelState> {
        let mut next = state.clone();
        next.apply(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one works at a key", |script: &Self, state: &ModelState| {
                (0..script.keys()).all(|key| state.at_work(key) <= 1)
            }),
            Property::always(
                "no work is done twice",
                |script: &Self, state: &ModelState| {
                    let spare = script.crashes - state.crashes + state.tombstoned;
                    (0..script.keys()).all(|key| state.begun[key] <= 1 + spare)
                },
            ),
            Property::always("a valid object has its bytes", |_, state: &ModelState| {
                state
                    .rows
                    .iter()
                    .all(|row| !row.is_valid() || row.is_whole())
            }),
            Property::always("a leased object stays", |_, state: &ModelState| {
                let leased = |row: &state::Object| row.leases.iter().any(|who| state.lives(*who));
                state
                    .rows
                    .iter()
                    .all(|row| !leased(row) || (row.is_valid() && row.is_whole()))
            }),
            Property::always("bytes have a row", |_, state: &ModelState| !state.orphan),
            Property::always("a result is an object", |_, state: &ModelState| {
                state
                    .results
                    .iter()
                    .flatten()
                    .all(|id| state.row(*id).is_some_and(state::Object::is_valid))
            }),
            Property::always(
                "who stops has finished",
                |script: &Self, state: &ModelState| {
                    let mut actions = Vec::new();
                    script.actions(state, &mut actions);
                    actions.retain(|action| !matches!(action, Action::Crash(_)));
                    !actions.is_empty() || state.is_complete(script)
                },
            ),
            Property::sometimes("a dead one is taken over from", |_, state: &ModelState| {
                state
                    .processes
                    .iter()
                    .any(|it| matches!(it.phase, Phase::Reap(..)))
            }),
        ]
    }
}

fn two(fault: Fault) -> Script {
    Script {
        builders: vec![vec![0], vec![0]],
        prunes: 1,
        crashes: 1,
        fault,
    }
}

fn crossed(fault: Fault) -> Script {
    Script {
        builders: vec![vec![0, 1], vec![1, 0]],
        prunes: 0,
        crashes: 1,
        fault,
    }
}

#[track_caller]
#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn check(script: Script) {
    let checker = script.checker().spawn_dfs().join();
    println!("{} states", checker.unique_state_count());
    for (law, path) in checker.discoveries() {
        if law == "a dead one is taken over from" {
            continue;
        }
        let last = path.last_state().clone();
        let actions = path.into_actions();
        panic!("`{law}` does not hold after {actions:?}\nwhich leads to {last:#?}");
    }
    checker.assert_any_discovery("a dead one is taken over from");
}

/// A fault is found in some order.
#[track_caller]
fn check_found(script: Script, law: &'static str) {
    let fault = script.fault;
    let checker = script.checker().spawn_bfs().join();
    let found: Vec<&str> = checker.discoveries().into_keys().collect();
    assert!(
        found.contains(&law),
        "{fault:?} was not found, but {found:?}"
    );
}

#[test]
fn two_builders_of_one_key_with_two_prunes_and_two_crashes() {
    check(Script {
        prunes: 2,
        crashes: 2,
        ..two(Fault::None)
    });
}

#[test]
fn two_builders_of_two_keys_in_opposite_order_with_a_prune_and_two_crashes() {
    check(Script {
        prunes: 1,
        crashes: 2,
        ..crossed(Fault::None)
    });
}

#[test]
fn three_builders_of_one_key_with_a_prune_and_two_crashes() {
    check(Script {
        builders: vec![vec![0], vec![0], vec![0]],
        prunes: 1,
        crashes: 2,
        fault: Fault::None,
    });
}

#[test]
fn a_lease_in_a_later_transaction_is_too_late() {
    check_found(two(Fault::LeaseLater), "a leased object stays");
}

#[test]
fn a_claim_without_a_second_look_does_work_twice() {
    check_found(two(Fault::NoSecondLook), "no work is done twice");
}

#[test]
fn a_file_that_is_removed_before_the_tombstone_is_missed() {
    check_found(two(Fault::BytesFirst), "a valid object has its bytes");
}

#[test]
fn a_waiter_that_takes_a_live_claim_makes_two_work_at_once() {
    check_found(two(Fault::ImpatientWaiter), "one works at a key");
}

#[test]
fn a_claim_that_outlives_its_owner_is_waited_for_without_end() {
    check_found(two(Fault::ClaimsOfTheDead), "who stops has finished");
}

#[test]
fn a_row_that_is_deleted_before_its_file_leaves_an_orphan() {
    check_found(two(Fault::RowFirst), "bytes have a row");
}

#[test]
fn a_claim_that_is_held_while_waiting_for_another_is_a_deadlock() {
    check_found(crossed(Fault::HoldAndWait), "who stops has finished");
}
