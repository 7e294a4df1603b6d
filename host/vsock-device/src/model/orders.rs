//! Scripts that end well in every order.

use super::check;
use super::script::{Opener, Quit, SLOT, Script, Talk};

fn down(lines: &[u32]) -> Talk {
    Talk {
        down: lines.to_vec(),
        hands: 1,
        ..Talk::default()
    }
}

fn up(lines: &[u32]) -> Talk {
    Talk {
        up: lines.to_vec(),
        hands: 1,
        ..Talk::default()
    }
}

fn both(lines: &[u32], more: &[u32]) -> Talk {
    Talk {
        up: more.to_vec(),
        ..down(lines)
    }
}

fn quits(quit: Quit, talk: Talk) -> Talk {
    Talk {
        quits: Some(quit),
        ..talk
    }
}

#[test]
fn bytes_for_the_guest_arrive_in_slots_that_a_reader_holds() {
    check(Script::one(Talk {
        hands: 2,
        ..down(&[3 * SLOT])
    }));
}

#[test]
fn slivers_and_slots_for_the_guest_take_turns() {
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
        places: 1,
        ..Script::one(both(&[2 * SLOT], &[2, 3]))
    });
}

#[test]
fn the_host_may_open_too() {
    check(Script::one(Talk {
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
        places: 1,
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
fn a_reader_that_sleeps_in_the_guest_stops_nobody_else() {
    let sleeper = Talk {
        hands: 0,
        ..down(&[2 * SLOT])
    };
    check(Script::two(sleeper, down(&[SLOT, 1])));
}

#[test]
fn a_reader_that_sleeps_on_the_host_stops_nobody_else() {
    let sleeper = Talk {
        host_sleeps: true,
        ..up(&[6])
    };
    check(Script::two(sleeper, up(&[3])));
}

#[test]
fn whoever_quits_at_any_time_leaves_nothing_behind() {
    for quit in [
        Quit::GuestHangsUp,
        Quit::GuestResets,
        Quit::HostHangsUp,
        Quit::HostResets,
    ] {
        check(Script::one(quits(quit, both(&[2 * SLOT], &[3]))));
    }
}

#[test]
fn whoever_quits_disturbs_nobody_else() {
    for quit in [
        Quit::GuestHangsUp,
        Quit::GuestResets,
        Quit::HostHangsUp,
        Quit::HostResets,
    ] {
        let witness = Talk {
            is_prompt: true,
            ..down(&[SLOT])
        };
        check(Script::two(quits(quit, down(&[SLOT])), witness));
    }
}
