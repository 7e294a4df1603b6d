//! Where the guest connects, and the wait for its first connection.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use exec::{Cancel, TICK, poll};
use vsock_device::{Config, Device, GuestCid};

use super::error::BootError;
use super::{END_SHOWS, Parts};
use crate::monitor::machine::{Accelerator, Vsock};
use crate::monitor::process::Monitor;
use crate::session::{GuestConnection, GuestListener};
use crate::time_budget::{Clock, TimeBudget};
use crate::vsock::{self, SocketListener, VsockBackend};

/// The context id of every guest: each has a device of its own.
const CID: u32 = 3;

/// Connections of a guest at a time: control, two per step that runs, a few that are just ending.
/// Each may hold a receive window of the host's memory.
const MAX_CONNECTIONS: usize = 2 * wire::limits::MAX_STEPS + 32;

/// Name of the device's socket in the VM's directory, which is the monitor's working directory:
/// the path of a socket must be short, and that of the directory may be long.
const SOCKET: &str = "vsock";

/// Under KVM the agent starts in about a second. A guest that has not written a byte to its console
/// by then never will: some nested hosts hang a guest silently.
const SILENCE: Duration = Duration::from_secs(10);

/// Opens the listener for the guest's connections, with the backend's device behind it.
pub(super) fn open_listener<'a>(
    backend: &'a VsockBackend,
    dir: &Path,
    parts: &mut Parts,
) -> Result<(Vsock<'a>, Box<dyn GuestListener>), BootError> {
    match backend {
        VsockBackend::Embedded => {
            let listener = start_device(dir, parts)?;
            Ok((Vsock::Socket(Path::new(SOCKET)), listener))
        }
        VsockBackend::Device { device, listener } => {
            let path = listener;
            let listener = SocketListener::unix(path).map_err(|source| BootError::Listen {
                address: path.display().to_string(),
                source,
            })?;
            Ok((Vsock::Socket(device), Box::new(listener)))
        }
        VsockBackend::Host => {
            let cid = vsock::random_cid().map_err(io::Error::other)?;
            let listener = SocketListener::vsock(cid).map_err(|source| BootError::Listen {
                address: format!("vsock port {}", wire::PORT),
                source,
            })?;
            Ok((Vsock::Host(cid), Box::new(listener)))
        }
    }
}

fn start_device(dir: &Path, parts: &mut Parts) -> Result<Box<dyn GuestListener>, BootError> {
    let fd = File::open(dir)?;
    let socket = format!("/proc/self/fd/{}/{SOCKET}", fd.as_raw_fd());
    parts.dir_fd = Some(fd.into());
    let cid = GuestCid::try_from(CID).map_err(io::Error::other)?;
    let config = Config {
        max_connections: MAX_CONNECTIONS,
        ..Config::new(cid)
    };
    let device = Device::start(Path::new(&socket), config)?;
    let listener = device.listen(wire::PORT)?;
    parts.device = Some(device);
    Ok(Box::new(listener))
}

/// Waits until the agent connects.
pub(super) fn first_connection(
    monitor: &Monitor,
    listener: &dyn GuestListener,
    accelerator: Accelerator,
    clock: &Clock,
    stop: &Cancel,
) -> Result<Arc<dyn GuestConnection>, BootError> {
    let mut boot = TimeBudget::new(boot_limit(accelerator), clock.now());
    let mut first_byte = TimeBudget::new(SILENCE, clock.now());
    let check = || {
        if stop.is_cancelled() {
            return Err(BootError::Cancelled);
        }
        check_alive(monitor, Duration::ZERO)?;
        let now = clock.now();
        let mute = accelerator == Accelerator::Kvm && monitor.console.total() == 0;
        let used_up = match (boot.elapse(now), first_byte.elapse(now) && mute) {
            (true, _) => boot,
            (false, true) => first_byte,
            (false, false) => return Ok(()),
        };
        Err(BootError::Silent {
            after: used_up.limit(),
            words: monitor.last_words(),
        })
    };
    let accepted = poll(check, |tick| match listener.accept(tick) {
        Err(err) if err.kind() == io::ErrorKind::TimedOut => None,
        accepted => Some(accepted),
    })?;
    match accepted {
        Ok(control) => Ok(control),
        Err(_) if stop.is_cancelled() => Err(BootError::Cancelled),
        Err(err) => {
            // The device also ends when the monitor does, and the end of the monitor says more.
            check_alive(monitor, END_SHOWS)?;
            Err(err.into())
        }
    }
}

/// Fails if the monitor ends within `timeout`.
fn check_alive(monitor: &Monitor, timeout: Duration) -> Result<(), BootError> {
    let Some(status) = monitor.wait(timeout)? else {
        return Ok(());
    };
    monitor.kill(TICK)?;
    Err(BootError::Ended {
        status,
        words: monitor.last_words(),
    })
}

/// How long a boot may take. Emulation takes four seconds on an idle host, and many times that on
/// one where several VMs share few processors.
fn boot_limit(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_secs(40),
        Accelerator::Tcg => Duration::from_secs(240),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::monitor::confine::Confinement;
    use crate::monitor::process::Spec;
    use crate::vm::tests::trampoline;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A listener at which the agent arrives after so many calls. In each call this process was
    /// stopped for a while.
    struct Late {
        clock: Clock,
        stop: Duration,
        calls: AtomicU64,
    }

    impl GuestListener for Late {
        fn accept(&self, _: Duration) -> io::Result<Arc<dyn GuestConnection>> {
            self.clock.stop_for(self.stop);
            match self.calls.fetch_sub(1, Ordering::Relaxed) {
                0 => panic!("the agent has connected already"),
                1 => Ok(Arc::new(UnixStream::pair()?.0)),
                _ => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Waits for an agent in a VM with this accelerator, whose monitor writes nothing.
    fn wait_for(
        accelerator: Accelerator,
        calls: u64,
        stop: Duration,
    ) -> Result<Arc<dyn GuestConnection>, BootError> {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec {
            program: "/bin/sleep".into(),
            args: vec!["600".into()],
            dir: dir.path().into(),
            lock: File::create(dir.path().join("lock")).unwrap(),
            confinement: Confinement::default(),
        };
        let monitor = Monitor::start(spec, &trampoline()).unwrap();
        let clock = Clock::default();
        let listener = Late {
            clock: clock.clone(),
            stop,
            calls: AtomicU64::new(calls),
        };
        let connected = first_connection(&monitor, &listener, accelerator, &clock, &Cancel::new());
        monitor.kill(Duration::from_secs(10)).unwrap().unwrap();
        connected
    }

    /// Otherwise KVM would count as broken until the host boots again.
    #[test]
    fn a_boot_during_which_this_process_was_stopped_for_long_continues() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            wait_for(accelerator, 5, HOUR).unwrap();
        }
    }

    #[test]
    fn a_guest_that_stays_silent_is_given_up_with_the_time_that_it_had() {
        for (accelerator, seconds) in [(Accelerator::Kvm, 10), (Accelerator::Tcg, 240)] {
            let silent = wait_for(accelerator, u64::MAX, Duration::from_millis(200)).unwrap_err();
            assert!(
                matches!(silent, BootError::Silent { after, .. } if after.as_secs() == seconds),
                "{silent}"
            );
        }
    }
}
