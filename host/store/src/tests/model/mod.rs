//! Claims, leases and condemning in every order, with a crash at any moment.
//!
//! A [`World`] is the database, the object files and what each process is at; one [`Action`] is one
//! transaction or one effect on the files, as they stand in `action.rs`, `object.rs`, `instance.rs`
//! and `prune.rs`. [stateright] visits every world. [`schedule`] lets the real code run in random
//! orders of the same steps, under the same laws.

mod schedule;
mod world;

use stateright::{Checker, Model, Property};

use world::{Action, Phase, World};

/// What a wrong store would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    None,
    /// An object is found in one transaction and leased in the next.
    LeaseLater,
    /// A key is claimed without looking for a result again.
    NoSecondLook,
    /// Prune removes the bytes first.
    BytesFirst,
    /// Who has a claim for long counts as dead.
    ImpatientWaiter,
    /// The claims of the dead stay.
    ClaimsOfTheDead,
    /// The row of a draft of the dead goes with its claim, and not after its bytes.
    RowFirst,
    /// Who has a claim takes the next one before it begins to work.
    HoldAndWait,
}

/// Who does what, and what may happen.
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
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one works at a key", |script: &Self, world: &World| {
                (0..script.keys()).all(|key| world.at_work(key) <= 1)
            }),
            Property::always("no work is done twice", |script: &Self, world: &World| {
                let spare = script.crashes - world.crashes + world.condemned;
                (0..script.keys()).all(|key| world.begun[key] <= 1 + spare)
            }),
            Property::always("a valid object has its bytes", |_, world: &World| {
                world
                    .rows
                    .iter()
                    .all(|row| !row.is_valid() || row.is_whole())
            }),
            Property::always("a leased object stays", |_, world: &World| {
                let leased = |row: &world::Row| row.leases.iter().any(|who| world.lives(*who));
                world
                    .rows
                    .iter()
                    .all(|row| !leased(row) || (row.is_valid() && row.is_whole()))
            }),
            Property::always("bytes have a row", |_, world: &World| !world.orphan),
            Property::always("a result is an object", |_, world: &World| {
                world
                    .results
                    .iter()
                    .flatten()
                    .all(|id| world.row(*id).is_some_and(world::Row::is_valid))
            }),
            Property::always("who stops has finished", |script: &Self, world: &World| {
                let mut actions = Vec::new();
                script.actions(world, &mut actions);
                actions.retain(|action| !matches!(action, Action::Crash(_)));
                !actions.is_empty() || world.is_complete(script)
            }),
            Property::sometimes("a dead one is taken over from", |_, world: &World| {
                world
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
    println!("{} worlds", checker.unique_state_count());
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

/// Some order shows what is wrong.
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
fn two_that_want_the_same_beside_two_prunes_and_two_crashes() {
    check(Script {
        prunes: 2,
        crashes: 2,
        ..two(Fault::None)
    });
}

#[test]
fn two_that_want_the_same_in_opposite_order_beside_a_prune_and_two_crashes() {
    check(Script {
        prunes: 1,
        crashes: 2,
        ..crossed(Fault::None)
    });
}

#[test]
fn three_that_want_the_same_beside_a_prune_and_two_crashes() {
    check(Script {
        builders: vec![vec![0], vec![0], vec![0]],
        prunes: 1,
        crashes: 2,
        fault: Fault::None,
    });
}

#[test]
fn a_lease_after_the_look_is_too_late() {
    check_found(two(Fault::LeaseLater), "a leased object stays");
}

#[test]
fn a_claim_without_a_second_look_does_work_twice() {
    check_found(two(Fault::NoSecondLook), "no work is done twice");
}

#[test]
fn bytes_that_go_before_the_row_is_condemned_are_missed() {
    check_found(two(Fault::BytesFirst), "a valid object has its bytes");
}

#[test]
fn a_waiter_without_patience_makes_two_work_at_once() {
    check_found(two(Fault::ImpatientWaiter), "one works at a key");
}

#[test]
fn claims_that_outlive_their_owner_are_waited_for_for_ever() {
    check_found(two(Fault::ClaimsOfTheDead), "who stops has finished");
}

#[test]
fn a_row_that_goes_before_its_bytes_leaves_them_to_nobody() {
    check_found(two(Fault::RowFirst), "bytes have a row");
}

#[test]
fn a_claim_that_is_held_while_another_is_waited_for_is_a_deadlock_of_two() {
    check_found(crossed(Fault::HoldAndWait), "who stops has finished");
}
