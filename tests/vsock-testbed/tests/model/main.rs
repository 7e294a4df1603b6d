//! The protocol of driver and device, checked in every order in which it can run.
//!
//! The state machines are those of both crates: the driver's multiplexer and the device's, with
//! everything below them. Around them are two applications that follow a script, and two rings that are
//! queues of packets. A [`World`] is all of this as a value; [stateright] visits every world that some
//! order of [`Action`]s leads to.
//!
//! In each world every invariant holds, no slot is lost, and no more bytes are in flight than the
//! receiver has space for. Where no action is left, everything is done: all bytes arrived in order,
//! followed by the end of the stream, no connection is left, and the device has every slot.
//!
//! Sizes are small: slots are just large enough that a full one is not copied. The model leaves out
//! locks and wake-ups, which loom checks (`docs/checking.md`), and the memory of the rings.

#[cfg(test)]
mod faults;
#[cfg(test)]
mod orders;
#[cfg(test)]
mod script;
#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "each match is about a few of many actions or faults"
)]
mod world;

use stateright::{Checker, Model, Property};

use script::{Fault, Script};
use world::{Action, World};

/// Packets without payload that may follow each other before a byte moves or an application acts. Two
/// ends that answered each other for ever would exceed any number.
const CHATTER: u8 = 12;

impl Model for Script {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            world.actions(self, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every invariant holds", |_, world: &World| {
                world.broken.is_none()
            }),
            Property::always("no slot is lost", |script: &Self, world: &World| {
                world.slots() == script.slots
            }),
            Property::always("control packets end", |_, world: &World| {
                world.chatter <= CHATTER
            }),
            Property::always(
                "everything is done in the end",
                |script: &Self, world: &World| {
                    let mut actions = Vec::new();
                    script.actions(world, &mut actions);
                    !actions.is_empty() || world.is_complete(script)
                },
            ),
        ]
    }
}

/// Visits every world of a script. Returns the properties that do not hold, and how many worlds there
/// were.
fn visit(script: Script) -> (Vec<&'static str>, usize) {
    let checker = script.checker().spawn_dfs().join();
    let mut found: Vec<&str> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    (found, checker.unique_state_count())
}

/// Every order of a script keeps all properties.
#[track_caller]
#[expect(clippy::print_stdout, reason = "docs/checking.md quotes it")]
fn check(script: Script) {
    let checker = script.checker().spawn_dfs().join();
    println!("{} worlds", checker.unique_state_count());
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let last = path.last_state().clone();
        panic!(
            "`{property}` does not hold after {:#?}\nwhich leads to {last:#?}",
            path.into_actions()
        );
    }
}

/// Some order of a script breaks `property`.
#[track_caller]
fn check_found(script: Script, property: &str) {
    let fault: Fault = script.fault;
    let (found, worlds) = visit(script);
    assert!(
        found.contains(&property),
        "{fault:?} was not found in {worlds} worlds, but {found:?}"
    );
}
