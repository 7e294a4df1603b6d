//! One attempt to boot a VM, with one accelerator.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exec::Cancel;

use super::connect::{first_connection, open_listener};
use super::context::BootContext;
use super::error::BootError;
use super::registry::Resource;
use super::{Parts, Vm, limits};
use crate::disk;
use crate::monitor::confine::{Confinement, Wall};
use crate::monitor::machine::{self, Accelerator, Machine, Vsock};
use crate::monitor::process::{Monitor, Spec};
use crate::notice::Notice;
use crate::session::{Heartbeat, Lost, Session, SessionConfig};
use crate::time_budget::Clock;

/// Name of the disk in the VM's directory.
pub(crate) const DISK: &str = "disk.img";

/// Boots a VM on a new disk. If it fails, nothing of the attempt stays.
pub(super) fn attempt(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    stop: &Cancel,
) -> Result<Vm, BootError> {
    let mut parts = Parts::default();
    match assemble(context, accelerator, stop, &mut parts) {
        Ok((session, monitor, boot)) => Ok(Vm {
            session,
            monitor,
            boot,
            accelerator,
            parts: Mutex::new(parts),
        }),
        Err(err) => {
            let err = with_device_failure(err, &parts);
            parts.end();
            Err(err)
        }
    }
}

/// If our device cut the connections or closed the listener, the error is the reason of the device.
fn with_device_failure(err: BootError, parts: &Parts) -> BootError {
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
    let words = monitor.map(Monitor::last_words).unwrap_or_default();
    BootError::Agent { source, words }
}

fn assemble(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    stop: &Cancel,
    parts: &mut Parts,
) -> Result<(Arc<Session>, Arc<Monitor>, Duration), BootError> {
    let dir = make_dir(context, parts)?;
    let disk = dir.join(DISK);
    disk::create(&disk, context.options.disk_size).map_err(|source| BootError::Disk {
        path: disk.clone(),
        source,
    })?;
    let (vsock, listener) = open_listener(&context.options.vsock, &dir, parts)?;
    #[cfg(test)]
    let listener = context.options.failpoints.listener(listener);
    let began = Instant::now();
    let monitor = start_monitor(context, accelerator, &dir, &disk, vsock, parts)?;
    let clock = Clock::default();
    let control = first_connection(&monitor, &*listener, accelerator, &clock, stop)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let config = SessionConfig {
        nonce,
        limits: limits(accelerator),
        heartbeat: Heartbeat::default(),
        clock,
        cancel: context.options.cancel.clone(),
    };
    #[cfg(test)]
    let config = context.options.failpoints.adjust(config);
    let session = Session::open(control, listener, config).map_err(|source| {
        if matches!(source, Lost::Ended) {
            return BootError::Cancelled;
        }
        BootError::Agent {
            source,
            words: monitor.last_words(),
        }
    })?;
    let session = Arc::new(session);
    parts.session = Some(Arc::clone(&session));
    Ok((session, monitor, began.elapsed()))
}

/// Makes the VM's directory, which must not exist.
fn make_dir(context: &BootContext<'_>, parts: &mut Parts) -> Result<PathBuf, BootError> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let name = format!("vm-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir = context.registry.scratch().join(name);
    let record = context
        .registry
        .record(&Resource::Directory(dir.clone()))
        .map_err(BootError::Record)?;
    parts.dir_record = Some(record);
    DirBuilder::new().mode(0o700).create(&dir)?;
    parts.dir = Some(dir.clone());
    Ok(dir)
}

/// The arguments of a monitor, and what it is confined to.
fn plan_monitor(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    disk: &Path,
    vsock: Vsock<'_>,
) -> Result<(Vec<OsString>, Confinement), BootError> {
    let options = context.options;
    let devices = machine::devices(accelerator, &options.vsock);
    let walls = context.walls(&devices);
    let filter = walls
        .missing
        .iter()
        .find(|(wall, _)| *wall == Wall::Seccomp);
    if let Some((_, why)) = filter {
        options.watcher.tell(&Notice::NoFilter(why.clone()));
    }
    let image = &options.image;
    let cmdline = image.manifest.cmdline.clone() + options.driver().cmdline();
    let machine = Machine {
        qemu: context.qemu.number,
        sandbox: walls.have(Wall::Seccomp),
        accelerator,
        memory_mib: context.memory_mib,
        cpus: context.cpus,
        kernel: &fs::canonicalize(&image.kernel)?,
        initramfs: &fs::canonicalize(&image.initramfs)?,
        cmdline: &cmdline,
        disk,
        vsock,
    };
    let confinement = Confinement {
        walls,
        inherited: machine.inherited(),
        devices,
        // The guest's memory is a file too.
        file_size: fs::metadata(disk)?.len().max(context.memory_mib << 20),
    };
    Ok((machine.arguments(), confinement))
}

fn start_monitor(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    dir: &Path,
    disk: &Path,
    vsock: Vsock<'_>,
    parts: &mut Parts,
) -> Result<Arc<Monitor>, BootError> {
    let (args, confinement) = plan_monitor(context, accelerator, disk, vsock)?;
    let path = dir.join("lock");
    let unborn = Resource::Monitor {
        lock: path.clone(),
        pid: 0,
    };
    let record = context.registry.record(&unborn);
    parts.monitor_record = Some(record.map_err(BootError::Record)?);
    let lock = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    lock.lock()?;
    let spec = Spec {
        program: context.qemu.program.clone(),
        args,
        dir: dir.into(),
        lock,
        confinement,
    };
    let monitor = Arc::new(Monitor::start(spec, &context.options.trampoline)?);
    parts.monitor = Some(Arc::clone(&monitor));
    // The record with the process id replaces the first one: the lock alone proves that the monitor
    // lives, but does not say which process to kill.
    let born = Resource::Monitor {
        lock: path,
        pid: monitor.id(),
    };
    let record = context.registry.record(&born).map_err(BootError::Record)?;
    if let Some(unborn) = parts.monitor_record.replace(record) {
        unborn.remove().map_err(BootError::Record)?;
    }
    Ok(monitor)
}
