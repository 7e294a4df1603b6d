//! The benchmark in a VM whose device is the stock daemon, `vhost-device-vsock`, with its default
//! settings.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vsock_guest::bench::STREAMS;

use crate::host::Benchmark;
use crate::vm::{BOOT, Process, boot};
use crate::{Outcome, PORT, Plan, streams};

/// The daemon never takes this long to start.
const START: Duration = Duration::from_secs(20);

/// Starts the daemon and a VM with the benchmark guest, and measures.
pub(crate) fn run(plan: &Plan, files: [&str; 3], device: &str) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let [socket, uds, console] = ["device", "host", "console"].map(|name| dir.path().join(name));
    // Connections of the guest to a port arrive at the socket with that name.
    let listener = UnixListener::bind(format!("{}_{PORT}", uds.display()))?;
    let mut daemon = Command::new(device);
    daemon.arg("--socket").arg(&socket);
    daemon.arg("--uds-path").arg(&uds).stdin(Stdio::null());
    let daemon = Process(daemon.spawn()?);
    let deadline = Instant::now() + START;
    while !socket.exists() {
        if Instant::now() >= deadline {
            return Err("the daemon does not listen".into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let monitor = boot(&socket, &console, files)?;
    let mut accepted = Vec::new();
    for _ in 0..STREAMS {
        let mut caller = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut caller, PollTimeout::try_from(BOOT)?)? == 0 {
            let said = std::fs::read(&console)?;
            let said = String::from_utf8_lossy(&said);
            return Err(format!("the guest does not connect; its console:\n{said}").into());
        }
        accepted.push(listener.accept()?.0);
    }
    let helpers = &[monitor.0.id(), daemon.0.id()];
    let streams = streams(&accepted)?;
    Benchmark { streams, helpers }.run(plan)
}
