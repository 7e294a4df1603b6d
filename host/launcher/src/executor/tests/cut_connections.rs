//! Connections that end after so many frames, or in the middle of one, at any point of a build.

use super::support::{BOUND, build_on, chain, within};
use crate::session::testing::failpoints::{Failpoints, Fault};
use crate::transport::Transport;
use exec::StepError;

/// Frames of a build with one step, without heartbeats: hellos, stat, import, run, export diff,
/// commit, discard. Later ones are of the shutdown.
const FRAMES: u64 = 23;

/// The first VM's connection that carries frame `n` ends there, in the middle of it (`inside`) or
/// after it. If the VM is lost, the same happens to the next one, a frame later and the other way
/// round, and so on. Within the bound, the build has the right layer or fails as a host error.
fn check_cut(driver: Transport, n: u64, inside: bool) {
    let failpoints = Failpoints::deciding(move |passing| {
        let later = passing.vm as u64 - 1;
        match (passing.number == n + later, inside ^ (later % 2 == 1)) {
            (true, true) => Fault::CutInside,
            (true, false) => Fault::CutAfter,
            (false, _) => Fault::None,
        }
    });
    let build = build_on(driver, failpoints.clone());
    let run = within(BOUND, || {
        build.run(&[build.base], "echo said; echo kept >/kept")
    });
    match run {
        Ok((layer, said)) => {
            assert!(said.ends_with("said\n"), "{n}: {said}");
            assert_eq!(layer.entries, 1);
        }
        Err(StepError::Host(_)) => {}
        Err(other) => panic!("cut at {n}: {}", chain(&other)),
    }
    within(BOUND, || build.end());
    assert!(failpoints.cuts() > 0, "there is no frame {n}");
}

/// Cuts at every fourth frame from `first` on, or at every second one if `COFFERDAM_EVERY_FRAME` is set; by
/// turns after the frame and in the middle of it.
fn check_some(first: u64) {
    let every = std::env::var_os("COFFERDAM_EVERY_FRAME").is_some();
    let frames = (first..=FRAMES).step_by(if every { 2 } else { 4 });
    let ways = [true, false].into_iter().cycle();
    frames
        .zip(ways)
        .for_each(|(n, inside)| check_cut(Transport::Ring, n, inside));
}

#[test]
#[ignore = "needs a VM"]
fn a_connection_that_is_cut_at_an_odd_frame_ends_within_a_limit_on_the_ring() {
    check_some(1);
}

#[test]
#[ignore = "needs a VM"]
fn a_connection_that_is_cut_at_an_even_frame_ends_within_a_limit_on_the_ring() {
    check_some(2);
}

/// The host sees the same as with the ring, the guest does not.
#[test]
#[ignore = "needs a VM"]
fn a_connection_that_is_cut_at_some_frames_ends_within_a_limit_on_the_kernels_driver() {
    [(6, true), (11, false), (16, true)]
        .into_iter()
        .for_each(|(n, inside)| check_cut(Transport::Kernel, n, inside));
}
