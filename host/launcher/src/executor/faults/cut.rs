//! Connections that end after so many frames, or in the middle of one, wherever a build stands.

use super::{BOUND, build_on, chain, within};
use crate::session::proxy::{Fate, Seam};
use crate::transport::Transport;
use engine::executor::StepError;

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

/// Every frame in one of two ways, and each way at odd and at even ones: 1 inside and 2 after it, 3
/// after it and 4 inside, and so on.
#[test]
fn a_connection_that_is_cut_at_any_frame_ends_in_bound_on_the_ring() {
    (1..=FRAMES)
        .step_by(2)
        .for_each(|n| check_cut(Transport::Ring, n, n % 4 == 1));
}

/// What the host sees is the same as on the ring, what the guest sees is not.
#[test]
fn a_connection_that_is_cut_at_some_frames_ends_in_bound_on_the_kernels_driver() {
    [(6, true), (11, false), (16, true)]
        .into_iter()
        .for_each(|(n, inside)| check_cut(Transport::Kernel, n, inside));
}
