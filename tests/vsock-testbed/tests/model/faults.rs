//! The model can fail: for each fault of a driver or device, some order breaks a property.

use super::check_found;
use super::script::{Fault, Plan, SLOT, Script};

const INVARIANTS: &str = "every invariant holds";
const SLOTS: &str = "no slot is lost";
const END: &str = "everything is done in the end";

fn script() -> Script {
    Script::one(Plan {
        down: vec![SLOT + SLOT / 2, SLOT, SLOT / 2],
        up: vec![],
        max_held: 1,
        ..Plan::default()
    })
}

#[test]
fn credit_that_is_never_announced_is_a_deadlock() {
    check_found(script().with(Fault::NoCreditUpdate), END);
}

#[test]
fn credit_that_is_announced_only_for_a_whole_window_is_a_deadlock() {
    check_found(script().with(Fault::CreditAtFullWindow), END);
}

#[test]
fn a_window_larger_than_the_grant_is_overrun() {
    check_found(script().with(Fault::InflatedWindow), INVARIANTS);
}

#[test]
fn a_slot_that_is_not_posted_again_is_noticed() {
    check_found(script().with(Fault::ForgottenSlot), SLOTS);
}

#[test]
fn a_drop_that_is_not_reported_is_a_deadlock() {
    check_found(script().with(Fault::LeakedPiece), END);
}

#[test]
fn a_lost_end_of_the_stream_is_a_deadlock() {
    check_found(script().with(Fault::LostEnd), END);
}

#[test]
fn reordered_packets_are_noticed() {
    check_found(script().with(Fault::Reordered), INVARIANTS);
}

#[test]
fn a_duplicated_packet_is_noticed() {
    check_found(script().with(Fault::Duplicated), INVARIANTS);
}

#[test]
fn a_device_that_never_announces_credit_is_a_deadlock() {
    let script = Script::one(Plan {
        up: vec![9],
        max_held: 1,
        ..Plan::default()
    });
    check_found(script.with(Fault::DeviceNoCreditUpdate), END);
}
