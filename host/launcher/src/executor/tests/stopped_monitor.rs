//! Monitors that are stopped.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{BOUND, build_on, end_on, losses, say, within};
use crate::session::testing::failpoints::Failpoints;
use crate::transport::Transport;

/// Longer than a guest that works takes to answer, on any machine that runs tests.
const LIMIT: Duration = Duration::from_secs(10);

/// A monitor that is stopped while a step runs is detected by the heartbeat and killed; the step runs
/// again in a new VM.
fn stopped(driver: Transport) {
    let build = build_on(
        driver,
        Failpoints::with_heartbeat(Duration::from_millis(500), LIMIT),
    );
    say(&build, "echo ready");
    let first = build.guest().vm.monitor_pid();
    thread::scope(|scope| {
        let run = scope.spawn(|| build.run(&[build.base], "sleep 2; echo done"));
        thread::sleep(Duration::from_secs(1));
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGSTOP).unwrap();
        let (_, said) = within(BOUND, || run.join().unwrap().unwrap());
        assert!(said.ends_with("\ndone\n"), "{said}");
    });
    let losses = losses(&build);
    assert!(
        matches!(&losses[..], [why] if why.contains("did not answer")),
        "{losses:?}"
    );
    assert_ne!(build.guest().vm.monitor_pid(), first);
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists());
    end_on(driver, build);
}

#[test]
#[ignore = "needs a VM"]
fn a_stopped_monitor_is_lost_within_a_limit_on_the_ring() {
    stopped(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn a_stopped_monitor_is_lost_within_a_limit_on_the_kernels_driver() {
    stopped(Transport::Kernel);
}
