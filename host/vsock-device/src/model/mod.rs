//! The protocol of driver and device, checked in every order in which it can run.
//!
//! The state machines are the real ones of both crates: the driver's multiplexer and the device's,
//! with everything below them. Around them stand two applications that follow a script, and two
//! rings that are queues of packets. A [`World`] is all of this as a value; [stateright] visits
//! every world that some order of [`Action`]s leads to.
//!
//! In each world no law is broken, no slot is lost, and no more is on its way than there was room
//! for; and where nothing can happen any more, everything has: all bytes arrived in order and the
//! end mark behind them, nothing is remembered, and every slot is with the device.
//!
//! Sizes are small but not toys: slots are just large enough that a full one is not copied. What
//! the model leaves out: locks and wake-ups, which `tests/wakeup` checks, and the rings' memory.

mod faults;
mod orders;
mod script;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "each match is about a few of many actions or faults"
)]
mod world;

use stateright::{Checker, Model, Property};

use script::{Fault, Script};
use world::{Action, World};

/// Packets without payload that may follow each other before a byte moves or an application does
/// something. Two ends that answered each other for ever would exceed any number.
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
            Property::always("every law holds", |_, world: &World| world.broken.is_none()),
            Property::always("no slot is lost", |script: &Self, world: &World| {
                world.slots() == script.slots
            }),
            Property::always("talk leads somewhere", |_, world: &World| {
                world.chatter <= CHATTER
            }),
            Property::always("who stops has finished", |script: &Self, world: &World| {
                let mut actions = Vec::new();
                script.actions(world, &mut actions);
                !actions.is_empty() || world.is_complete(script)
            }),
        ]
    }
}

/// Visits every world of a script. Returns what was found wrong, and how many worlds there were.
fn visit(script: Script) -> (Vec<&'static str>, usize) {
    let checker = script.checker().spawn_dfs().join();
    let mut found: Vec<&str> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    (found, checker.unique_state_count())
}

/// Every order of a script is right.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn check(script: Script) {
    let checker = script.checker().spawn_dfs().join();
    println!("{} worlds", checker.unique_state_count());
    if let Some((law, path)) = checker.discoveries().into_iter().next() {
        let last = path.last_state().clone();
        panic!(
            "`{law}` does not hold after {:#?}\nwhich leads to {last:#?}",
            path.into_actions()
        );
    }
}

/// Some order of a script shows what is wrong with it.
#[track_caller]
fn check_found(script: Script, law: &str) {
    let fault: Fault = script.fault;
    let (found, worlds) = visit(script);
    assert!(
        found.contains(&law),
        "{fault:?} was not found in {worlds} worlds, but {found:?}"
    );
}
