//! The same in a VM whose device is a daemon that somebody else wrote, `vhost-device-vsock`, with the
//! settings that it has by default.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::Lab;
use crate::obey::STREAMS;
use crate::vm::{BOOT, Process, boot};
use crate::{Outcome, PORT, Plan, links};

/// No start of a daemon takes this long.
const START: Duration = Duration::from_secs(20);

/// Starts the daemon and a VM whose first program obeys, and measures.
pub(crate) fn run(plan: &Plan, files: [&str; 3], device: &str) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let [socket, uds, console] = ["device", "host", "console"].map(|name| dir.path().join(name));
    // What the guest connects to a port arrives at a socket of that name.
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
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut caller = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut caller, PollTimeout::try_from(BOOT)?)? == 0 {
            let said = std::fs::read(&console)?;
            let said = String::from_utf8_lossy(&said);
            return Err(format!("the guest does not connect; its console:\n{said}").into());
        }
        streams.push(listener.accept()?.0);
    }
    let helpers = &[monitor.0.id(), daemon.0.id()];
    let links = links(&streams)?;
    Lab { links, helpers }.run(plan)
}
