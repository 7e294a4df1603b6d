//! Connections that end after so many frames, or in the middle of one, wherever a build stands.

use exec::StepError;

use super::{BOUND, build_on, chain, within};
use crate::session::proxy::{Fate, Seam};
use crate::transport::Transport;

/// Frames of a build with one step, without heartbeats: greetings, list, put, run, take, seal,
/// discard. Later ones are of the end.
const FRAMES: u64 = 23;

/// The first VM's connection that carries frame `n` ends there, in the middle of it (`inside`) or
/// after it. If that costs the VM, the same happens to the next one, a frame later and in the other
/// way, and so on. The build has the right layer or fails as the host's, in bound.
fn check_cut(path: Transport, n: u64, inside: bool) {
    let seam = Seam::judged(move |passing| {
        let later = passing.vm as u64 - 1;
        match (passing.number == n + later, inside ^ (later % 2 == 1)) {
            (true, true) => Fate::CutInside,
            (true, false) => Fate::CutAfter,
            (false, _) => Fate::Passes,
        }
    });
    let Some(build) = build_on(path, seam.clone()) else {
        return;
    };
    let run = within(BOUND, || {
        build.run(&[build.base], "echo said; echo kept >/kept")
    });
    match run {
        Ok((layer, said)) => {
            assert!(said.ends_with("said\n"), "{n}: {said}");
            assert_eq!(layer.entries, 1);
        }
        Err(failed @ StepError::Host(_)) => eprintln!("cut at {n}: {}", chain(&failed)),
        Err(other) => panic!("cut at {n}: {other:?}"),
    }
    within(BOUND, || build.end());
    assert!(seam.cuts() > 0, "there is no frame {n}");
}

/// Every second frame from `first` on, in one way and the other by turns.
fn check_every_second(first: u64) {
    let frames = (first..=FRAMES).step_by(2);
    let ways = [true, false].into_iter().cycle();
    frames
        .zip(ways)
        .for_each(|(n, inside)| check_cut(Transport::Ring, n, inside));
}

#[test]
fn a_connection_that_is_cut_at_an_odd_frame_ends_in_bound_on_the_ring() {
    check_every_second(1);
}

#[test]
fn a_connection_that_is_cut_at_an_even_frame_ends_in_bound_on_the_ring() {
    check_every_second(2);
}

/// What the host sees is the same as on the ring, what the guest sees is not.
#[test]
fn a_connection_that_is_cut_at_some_frames_ends_in_bound_on_the_kernels_driver() {
    [(6, true), (11, false), (16, true)]
        .into_iter()
        .for_each(|(n, inside)| check_cut(Transport::Kernel, n, inside));
}
