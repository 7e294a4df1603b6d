//! The model can fail: whatever a broken driver or device would do, some order shows it.

use super::check_found;
use super::script::{Fault, SLOT, Script, Talk};

const LAW: &str = "every law holds";
const SLOTS: &str = "no slot is lost";
const END: &str = "who stops has finished";

fn script() -> Script {
    Script::one(Talk {
        down: vec![SLOT + SLOT / 2, SLOT, SLOT / 2],
        up: vec![],
        hands: 1,
        ..Talk::default()
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
    check_found(script().with(Fault::InflatedWindow), LAW);
}

#[test]
fn a_slot_that_is_not_posted_again_is_missed() {
    check_found(script().with(Fault::ForgottenSlot), SLOTS);
}

#[test]
fn a_piece_that_is_dropped_in_silence_is_a_deadlock() {
    check_found(script().with(Fault::LeakedPiece), END);
}

#[test]
fn an_end_mark_that_gets_lost_is_waited_for() {
    check_found(script().with(Fault::LostEnd), END);
}

#[test]
fn packets_that_overtake_each_other_are_noticed() {
    check_found(script().with(Fault::Overtaking), LAW);
}

#[test]
fn a_packet_that_comes_twice_is_noticed() {
    check_found(script().with(Fault::Twice), LAW);
}

#[test]
fn a_device_that_never_announces_credit_is_a_deadlock() {
    let script = Script::one(Talk {
        up: vec![9],
        hands: 1,
        ..Talk::default()
    });
    check_found(script.with(Fault::DeafDevice), END);
}
