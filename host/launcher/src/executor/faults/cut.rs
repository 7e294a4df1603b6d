//! Connections that end after so many frames, or in the middle of one, wherever a build stands.

use super::{BOUND, build_on, chain, within};
use crate::session::proxy::{Fate, Seam};
use crate::transport::Transport;
use engine::executor::StepError;

/// Frames of a build with one step, without heartbeats: greetings, list, put, run, take, seal,
/// discard. Later ones are of the end.
const FRAMES: u64 = 23;

/// The first VM's connection that carries frame `n` ends there, the second VM's one frame later.
/// The build has the right layer or fails as the host's, in bound.
fn check_cut(path: Transport, n: u64) {
    let seam = Seam::judged(move |passing| {
        let at = n + passing.vm as u64 - 1;
        match passing.number == at {
            true if at.is_multiple_of(2) => Fate::CutInside,
            true => Fate::CutAfter,
            false => Fate::Passes,
        }
    });
    let Some(build) = build_on(path, seam) else {
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
}

#[test]
fn a_connection_that_is_cut_at_any_frame_ends_in_bound_on_the_ring() {
    (1..=FRAMES)
        .step_by(2)
        .for_each(|n| check_cut(Transport::Ring, n));
}

/// What the host sees is the same as on the ring, what the guest sees is not.
#[test]
fn a_connection_that_is_cut_at_some_frames_ends_in_bound_on_the_kernels_driver() {
    [6, 11, 16]
        .into_iter()
        .for_each(|n| check_cut(Transport::Kernel, n));
}
