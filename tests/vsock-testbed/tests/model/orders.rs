//! Scripts that keep all properties in every order.

use super::check;
use super::script::{Abort, Opener, Plan, SLOT, Script};

fn down(lines: &[u32]) -> Plan {
    Plan {
        down: lines.to_vec(),
        max_held: 1,
        ..Plan::default()
    }
}

fn up(lines: &[u32]) -> Plan {
    Plan {
        up: lines.to_vec(),
        max_held: 1,
        ..Plan::default()
    }
}

fn both(lines: &[u32], more: &[u32]) -> Plan {
    Plan {
        up: more.to_vec(),
        ..down(lines)
    }
}

fn aborting(abort: Abort, plan: Plan) -> Plan {
    Plan {
        aborts: Some(abort),
        ..plan
    }
}

#[test]
fn bytes_for_the_guest_arrive_in_slots_that_a_reader_holds() {
    check(Script::one(Plan {
        max_held: 2,
        ..down(&[3 * SLOT])
    }));
}

#[test]
fn small_and_large_sends_to_the_guest_take_turns() {
    check(Script::one(down(&[SLOT, 1, SLOT + 7, 2])));
    check(Script::one(down(&[SLOT + SLOT / 2, SLOT, SLOT / 2])));
}

#[test]
fn a_window_of_one_slot_is_enough() {
    check(Script {
        slots: 2,
        window: 1,
        ..Script::one(down(&[2 * SLOT, 3]))
    });
}

#[test]
fn bytes_for_the_host_arrive_through_the_smallest_buffers() {
    for buf_alloc in [1, 2, 3] {
        check(Script {
            buf_alloc,
            ..Script::one(up(&[3, 4]))
        });
    }
}

#[test]
fn both_directions_at_once() {
    check(Script {
        ring_capacity: 1,
        ..Script::one(both(&[2 * SLOT], &[2, 3]))
    });
}

#[test]
fn the_host_may_open_the_connection() {
    check(Script::one(Plan {
        opened_by: Opener::Host,
        ..both(&[SLOT, 1], &[2])
    }));
}

#[test]
fn two_connections_share_three_slots() {
    check(Script::two(down(&[SLOT]), down(&[SLOT])));
}

#[test]
fn two_connections_in_opposite_directions() {
    check(Script {
        ring_capacity: 1,
        ..Script::two(down(&[SLOT]), up(&[2]))
    });
}

#[test]
fn a_connection_without_slots_of_its_own_has_its_bytes_copied() {
    check(Script {
        slots: 2,
        ..Script::two(down(&[SLOT]), down(&[3]))
    });
}

#[test]
fn a_sleeping_reader_in_the_guest_stops_no_other_connection() {
    let sleeper = Plan {
        max_held: 0,
        ..down(&[2 * SLOT])
    };
    check(Script::two(sleeper, down(&[SLOT, 1])));
}

#[test]
fn a_sleeping_reader_on_the_host_stops_no_other_connection() {
    let sleeper = Plan {
        host_sleeps: true,
        ..up(&[6])
    };
    check(Script::two(sleeper, up(&[3])));
}

#[test]
fn an_abort_at_any_time_leaves_nothing_behind() {
    for abort in [
        Abort::GuestCloses,
        Abort::GuestResets,
        Abort::HostCloses,
        Abort::HostResets,
    ] {
        check(Script::one(aborting(abort, both(&[2 * SLOT], &[3]))));
    }
}

#[test]
fn an_abort_at_any_time_affects_no_other_connection() {
    for abort in [
        Abort::GuestCloses,
        Abort::GuestResets,
        Abort::HostCloses,
        Abort::HostResets,
    ] {
        let witness = Plan {
            is_eager: true,
            ..down(&[SLOT])
        };
        check(Script::two(aborting(abort, down(&[SLOT])), witness));
    }
}
