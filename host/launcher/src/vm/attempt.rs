//! One attempt to boot a VM, with one engine.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exec::Cancel;
use nix::sys::signal::Signal;
use thiserror::Error;
use vsock_device::{Config, Device, DeviceError, GuestCid};

use super::boot::Context;
use super::home::{HomeError, Thing};
use super::{END_SHOWS, End, Parts, Vm, last_words, limits};
use crate::bridge::{self, Bridge, SocketDoor};
use crate::disk::{Disk, DiskError};
use crate::image::ImageError;
use crate::monitor::process::{Monitor, Spec};
use crate::monitor::qemu::{Engine, Machine, QemuError, Vsock};
use crate::patience::{Clock, Patience};
use crate::session::{Door, Link, Lost, Pulse, Session, Terms};

/// The context id of every guest: each has a device of its own.
const CID: u32 = 3;

/// Connections of a guest at a time: control, two per step that runs, a few that just end. Each may
/// hold a receive window of the host's memory.
const MAX_CONNECTIONS: usize = 2 * wire::limits::MAX_STEPS + 32;

/// Name of the device's socket in the VM's directory, which is the monitor's working directory:
/// the path of a socket must be short, and that of the directory may be long.
const SOCKET: &str = "vsock";

/// A guest that runs on the processor reaches its agent in about a second. One that has not
/// written a byte to its console by then never will: some nested hosts hang a guest silently.
const SILENCE: Duration = Duration::from_secs(10);

/// How often a boot looks at its monitor and at the cancel.
const TICK: Duration = Duration::from_millis(20);

/// Why a VM did not boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The VM image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// QEMU cannot be used.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// There is no guest disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The vsock device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The agent's connections cannot arrive where they should.
    #[error("cannot listen at {door} for the builder VM")]
    Door {
        /// Where.
        door: String,
        /// Why.
        source: io::Error,
    },
    /// The host cannot do its part.
    #[error("cannot start the builder VM")]
    Host(#[from] io::Error),
    /// The store cannot record what would be made.
    #[error("cannot record the builder VM")]
    Record(#[source] HomeError),
    /// The monitor ended before the agent said hello.
    #[error("the monitor of the builder VM ended ({status}) before the agent was ready{words}")]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it and the console said, each line indented.
        words: String,
    },
    /// The guest never said anything.
    #[error("the builder VM stays silent for {} s{words}", after.as_secs())]
    Silent {
        /// How long it had.
        after: Duration,
        /// What the monitor said.
        words: String,
    },
    /// The agent was there, but no conversation came about.
    #[error("the agent in the builder VM cannot be used{words}")]
    Agent {
        /// Why.
        source: Lost,
        /// What the console said.
        words: String,
    },
}

impl BootError {
    /// Whether the monitor ended by a fault of its own.
    pub(super) fn is_a_crash(&self) -> bool {
        let Self::Ended { status, .. } = self else {
            return false;
        };
        let signal = status.signal().map(Signal::try_from);
        let faults = [
            Signal::SIGABRT,
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
        ];
        signal.is_some_and(|signal| signal.is_ok_and(|signal| faults.contains(&signal)))
    }

    /// Whether another engine or disk may help: everything that shows only in the guest. What is
    /// wrong with the host itself does not change.
    pub(super) fn is_the_guests(&self) -> bool {
        match self {
            Self::Ended { .. } | Self::Silent { .. } => true,
            Self::Agent { source, .. } => !matches!(source, Lost::Version { .. } | Lost::Nonce),
            Self::Cancelled
            | Self::Image(_)
            | Self::Qemu(_)
            | Self::Disk(_)
            | Self::Device(_)
            | Self::Door { .. }
            | Self::Host(_)
            | Self::Record(_) => false,
        }
    }
}

/// Boots a VM on this disk. Whatever happens, nothing of a failed attempt stays.
pub(super) fn attempt(
    context: &Context<'_>,
    engine: Engine,
    disk: Disk,
    stop: &Cancel,
) -> Result<Vm, BootError> {
    let mut parts = Parts::default();
    match assemble(context, engine, disk, stop, &mut parts) {
        Ok((session, monitor, boot)) => Ok(Vm {
            session,
            monitor,
            limits: limits(engine),
            boot,
            engine,
            parts: Mutex::new(parts),
        }),
        Err(err) => {
            let err = blamed(err, &parts);
            parts.end(End::Kill);
            Err(err)
        }
    }
}

/// If our device cut the connections or shut the door, it knows why, and they do not.
fn blamed(err: BootError, parts: &Parts) -> BootError {
    let (BootError::Host(_)
    | BootError::Agent {
        source: Lost::Closed | Lost::Connection(_),
        ..
    }) = &err
    else {
        return err;
    };
    let Some(source) = parts.device_failure() else {
        return err;
    };
    let monitor = parts.monitor.as_deref();
    let words = monitor.map(last_words).unwrap_or_default();
    BootError::Agent { source, words }
}

fn assemble(
    context: &Context<'_>,
    engine: Engine,
    disk: Disk,
    stop: &Cancel,
    parts: &mut Parts,
) -> Result<(Arc<Session>, Arc<Monitor>, Duration), BootError> {
    let image = disk.image().to_owned();
    let recorded = context.home.record(&Thing::Disk(image.clone()));
    parts.disk = Some(disk);
    parts.disk_row = Some(recorded.map_err(BootError::Record)?);
    let dir = make_dir(context, parts)?;
    let (vsock, door) = open_door(&context.options.bridge, &dir, parts)?;
    #[cfg(test)]
    let door = context.options.seam.door(door);
    let began = Instant::now();
    let monitor = start_monitor(context, engine, &dir, &image, vsock, parts)?;
    let clock = Clock::default();
    let control = first_connection(&monitor, &*door, engine, &clock, stop)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let terms = Terms {
        nonce,
        limits: limits(engine),
        pulse: Pulse::default(),
        clock,
    };
    #[cfg(test)]
    let terms = context.options.seam.adjust(terms);
    let session = Session::open(control, door, terms).map_err(|source| BootError::Agent {
        source,
        words: last_words(&monitor),
    })?;
    let session = Arc::new(session);
    parts.session = Some(Arc::clone(&session));
    Ok((session, monitor, began.elapsed()))
}

/// Makes the VM's directory, which must not exist.
fn make_dir(context: &Context<'_>, parts: &mut Parts) -> Result<PathBuf, BootError> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let name = format!("vm-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir = context.home.scratch().join(name);
    let row = context
        .home
        .record(&Thing::Directory(dir.clone()))
        .map_err(BootError::Record)?;
    parts.dir_row = Some(row);
    DirBuilder::new().mode(0o700).create(&dir)?;
    parts.dir = Some(dir.clone());
    Ok(dir)
}

/// Opens the door for the guest's connections, with our device behind it or another one.
fn open_door<'a>(
    bridge: &'a Bridge,
    dir: &Path,
    parts: &mut Parts,
) -> Result<(Vsock<'a>, Box<dyn Door>), BootError> {
    match bridge {
        Bridge::Embedded => {
            let door = start_device(dir, parts)?;
            Ok((Vsock::Socket(Path::new(SOCKET)), door))
        }
        Bridge::Device(device, door) => {
            let door = SocketDoor::unix(door).map_err(|source| BootError::Door {
                door: door.display().to_string(),
                source,
            })?;
            Ok((Vsock::Socket(device), Box::new(door)))
        }
        Bridge::Host => {
            let cid = bridge::random_cid().map_err(io::Error::other)?;
            let door = SocketDoor::vsock(cid).map_err(|source| BootError::Door {
                door: format!("vsock port {}", wire::PORT),
                source,
            })?;
            Ok((Vsock::Host(cid), Box::new(door)))
        }
    }
}

fn start_device(dir: &Path, parts: &mut Parts) -> Result<Box<dyn Door>, BootError> {
    let fd = File::open(dir)?;
    let socket = format!("/proc/self/fd/{}/{SOCKET}", fd.as_raw_fd());
    parts.dir_fd = Some(fd.into());
    let cid = GuestCid::try_from(CID).map_err(io::Error::other)?;
    let config = Config {
        max_connections: MAX_CONNECTIONS,
        ..Config::new(cid)
    };
    let device = Device::start(Path::new(&socket), config)?;
    let door = device.listen(wire::PORT)?;
    parts.device = Some(device);
    Ok(Box::new(door))
}

fn start_monitor(
    context: &Context<'_>,
    engine: Engine,
    dir: &Path,
    disk: &Path,
    vsock: Vsock<'_>,
    parts: &mut Parts,
) -> Result<Arc<Monitor>, BootError> {
    let image = &context.options.image;
    let cmdline = image.manifest.cmdline.clone() + context.options.driver().cmdline();
    let machine = Machine {
        engine,
        memory_mib: context.memory_mib,
        cpus: context.cpus,
        kernel: &fs::canonicalize(&image.kernel)?,
        initramfs: &fs::canonicalize(&image.initramfs)?,
        cmdline: &cmdline,
        disk,
        vsock,
        network: context.options.network,
    };
    let path = dir.join("lock");
    let unborn = Thing::Monitor {
        lock: path.clone(),
        pid: 0,
    };
    parts.monitor_row = Some(context.home.record(&unborn).map_err(BootError::Record)?);
    let lock = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    lock.lock()?;
    let spec = Spec {
        program: context.qemu.program.clone(),
        args: machine.arguments(),
        dir: dir.into(),
        lock,
    };
    let monitor = Arc::new(Monitor::start(spec, &context.options.trampoline)?);
    parts.monitor = Some(Arc::clone(&monitor));
    // Now that it has a process id, its record says which: the lock alone proves that it lives,
    // but does not say whom to end.
    let born = Thing::Monitor {
        lock: path,
        pid: monitor.id(),
    };
    let row = context.home.record(&born).map_err(BootError::Record)?;
    if let Some(unborn) = parts.monitor_row.replace(row) {
        unborn.remove().map_err(BootError::Record)?;
    }
    Ok(monitor)
}

/// Waits until the agent connects.
fn first_connection(
    monitor: &Monitor,
    door: &dyn Door,
    engine: Engine,
    clock: &Clock,
    stop: &Cancel,
) -> Result<Arc<dyn Link>, BootError> {
    let mut boot = Patience::new(boot_limit(engine), clock.now());
    let mut first_byte = Patience::new(SILENCE, clock.now());
    loop {
        match door.accept(TICK) {
            Ok(control) => return Ok(control),
            Err(_) if stop.is_cancelled() => return Err(BootError::Cancelled),
            Err(err) => may_still_come(monitor, err)?,
        }
        let now = clock.now();
        let mute = engine == Engine::Kvm && monitor.console.total() == 0;
        let over = match (boot.ends(now), first_byte.ends(now) && mute) {
            (true, _) => boot,
            (false, true) => first_byte,
            (false, false) => continue,
        };
        return Err(BootError::Silent {
            after: over.limit(),
            words: last_words(monitor),
        });
    }
}

/// Nobody came through the door: fails if nobody will.
fn may_still_come(monitor: &Monitor, err: io::Error) -> Result<(), BootError> {
    let is_shut = err.kind() != io::ErrorKind::TimedOut;
    // The device also ends when the monitor does, which says more.
    let shows = if is_shut { END_SHOWS } else { Duration::ZERO };
    if let Some(status) = monitor.wait(shows)? {
        monitor.kill(TICK)?;
        return Err(BootError::Ended {
            status,
            words: last_words(monitor),
        });
    }
    if is_shut { Err(err.into()) } else { Ok(()) }
}

/// How long a boot may take. Emulation takes four seconds on an idle host, and many times that on
/// one where several VMs share few processors.
fn boot_limit(engine: Engine) -> Duration {
    match engine {
        Engine::Kvm => Duration::from_secs(40),
        Engine::Tcg => Duration::from_secs(240),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::vm::tests::trampoline;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A door through which the agent comes after so many looks. Each time when somebody looks,
    /// this process was stopped for a while.
    struct Late {
        clock: Clock,
        stop: Duration,
        looks: AtomicU64,
    }

    impl Door for Late {
        fn accept(&self, _: Duration) -> io::Result<Arc<dyn Link>> {
            self.clock.stop_for(self.stop);
            match self.looks.fetch_sub(1, Ordering::Relaxed) {
                0 => panic!("the agent is there already"),
                1 => Ok(Arc::new(UnixStream::pair()?.0)),
                _ => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Waits for an agent in a VM with this engine, whose monitor says nothing.
    fn wait_for(engine: Engine, looks: u64, stop: Duration) -> Result<Arc<dyn Link>, BootError> {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec {
            program: "sleep".into(),
            args: vec!["600".into()],
            dir: dir.path().into(),
            lock: File::create(dir.path().join("lock")).unwrap(),
        };
        let monitor = Monitor::start(spec, &trampoline()).unwrap();
        let clock = Clock::default();
        let door = Late {
            clock: clock.clone(),
            stop,
            looks: AtomicU64::new(looks),
        };
        let came = first_connection(&monitor, &door, engine, &clock, &Cancel::new());
        monitor.kill(Duration::from_secs(10)).unwrap().unwrap();
        came
    }

    /// Otherwise KVM would count as broken until the host boots again.
    #[test]
    fn a_boot_during_which_this_process_was_stopped_for_long_goes_on() {
        for engine in [Engine::Kvm, Engine::Tcg] {
            wait_for(engine, 5, HOUR).unwrap();
        }
    }

    #[test]
    fn a_guest_that_stays_silent_is_given_up_with_the_time_that_it_had() {
        for (engine, seconds) in [(Engine::Kvm, 10), (Engine::Tcg, 240)] {
            let silent = wait_for(engine, u64::MAX, Duration::from_millis(200)).unwrap_err();
            assert!(
                matches!(silent, BootError::Silent { after, .. } if after.as_secs() == seconds),
                "{silent}"
            );
        }
    }
}
