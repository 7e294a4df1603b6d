//! One attempt to boot a VM, with one accelerator.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exec::Cancel;

use super::connect::{first_connection, open_listener};
use super::context::BootContext;
use super::error::BootError;
use super::registry::Resource;
use super::{End, Parts, Vm, limits};
use crate::disk::Disk;
use crate::monitor::machine::{Accelerator, Machine, Vsock};
use crate::monitor::process::{Monitor, Spec};
use crate::session::{Heartbeat, Lost, Session, SessionConfig};
use crate::time_budget::Clock;

/// Boots a VM on this disk. If it fails, nothing of the attempt stays.
pub(super) fn attempt(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    disk: Disk,
    stop: &Cancel,
) -> Result<Vm, BootError> {
    let mut parts = Parts::default();
    match assemble(context, accelerator, disk, stop, &mut parts) {
        Ok((session, monitor, boot)) => Ok(Vm {
            session,
            monitor,
            limits: limits(accelerator),
            boot,
            accelerator,
            parts: Mutex::new(parts),
        }),
        Err(err) => {
            let err = with_device_failure(err, &parts);
            parts.end(End::Kill);
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
    disk: Disk,
    stop: &Cancel,
    parts: &mut Parts,
) -> Result<(Arc<Session>, Arc<Monitor>, Duration), BootError> {
    let disk_path = disk.path().to_owned();
    let recorded = context.registry.record(&Resource::Disk(disk_path.clone()));
    parts.disk = Some(disk);
    parts.disk_record = Some(recorded.map_err(BootError::Record)?);
    let dir = make_dir(context, parts)?;
    let (vsock, listener) = open_listener(&context.options.vsock, &dir, parts)?;
    #[cfg(test)]
    let listener = context.options.failpoints.listener(listener);
    let began = Instant::now();
    let monitor = start_monitor(context, accelerator, &dir, &disk_path, vsock, parts)?;
    let clock = Clock::default();
    let control = first_connection(&monitor, &*listener, accelerator, &clock, stop)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let config = SessionConfig {
        nonce,
        limits: limits(accelerator),
        heartbeat: Heartbeat::default(),
        clock,
    };
    #[cfg(test)]
    let config = context.options.failpoints.adjust(config);
    let session = Session::open(control, listener, config).map_err(|source| BootError::Agent {
        source,
        words: monitor.last_words(),
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

fn start_monitor(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    dir: &Path,
    disk: &Path,
    vsock: Vsock<'_>,
    parts: &mut Parts,
) -> Result<Arc<Monitor>, BootError> {
    let image = &context.options.image;
    let cmdline = image.manifest.cmdline.clone() + context.options.driver().cmdline();
    let machine = Machine {
        accelerator,
        memory_mib: context.memory_mib,
        cpus: context.cpus,
        kernel: &fs::canonicalize(&image.kernel)?,
        initramfs: &fs::canonicalize(&image.initramfs)?,
        cmdline: &cmdline,
        disk,
        vsock,
    };
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
