//! The parts of a VM, and the only code that takes them apart.
//!
//! Success, failure, cancel and a boot that stopped half-way end here. Each part was recorded before
//! it was made, and its record is removed only after its absence was observed. A step of the cleanup
//! that fails is reported and leaves its record, and the next steps are done all the same. The
//! process that reaps this one then finishes the work.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use exec::poll;
use vsock_device::Device;

use super::registry::{Record, RegistryError};
use crate::disk::Disk;
use crate::monitor::process::Monitor;
use crate::session::{Limits, Lost, Session, SessionError};

/// How long the kernel may take to end a killed monitor: it frees all of the guest's memory.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// The parts that exist so far.
#[derive(Default)]
pub(crate) struct Parts {
    pub(super) session: Option<Arc<Session>>,
    pub(super) monitor: Option<Arc<Monitor>>,
    pub(super) monitor_record: Option<Box<dyn Record>>,
    pub(super) device: Option<Device>,
    pub(super) disk: Option<Disk>,
    pub(super) disk_record: Option<Box<dyn Record>>,
    pub(super) dir: Option<PathBuf>,
    pub(super) dir_record: Option<Box<dyn Record>>,
    /// Keeps the path of the device's socket valid.
    pub(super) dir_fd: Option<OwnedFd>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("monitor", &self.monitor.is_some())
            .field("disk", &self.disk)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// How to end a VM.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Ask the guest to sync, unmount and power off first, within these bounds.
    Orderly(Limits),
    /// At once.
    Kill,
}

impl Parts {
    /// Why the device below the connections gave up on the guest, if it did.
    pub(super) fn device_failure(&self) -> Option<Lost> {
        self.device.as_ref()?.failure().map(Lost::Device)
    }

    /// Ends the VM and removes what it left on the host. Returns what could not be cleaned up; a
    /// second call changes nothing.
    pub(crate) fn end(&mut self, how: End) -> Vec<RegistryError> {
        let mut problems = Vec::new();
        let clean = match how {
            End::Orderly(limits) => self.quit(limits),
            End::Kill => false,
        };
        if let Some(session) = self.session.take() {
            session.close();
        }
        let dead = self.end_monitor(&mut problems);
        if let Some(device) = self.device.take() {
            device.shutdown();
        }
        if dead {
            self.end_disk(clean, &mut problems);
            self.end_dir(&mut problems);
        } else {
            // The process that reaps this one kills the monitor and then removes the rest.
            problems.push("cannot kill the monitor of the VM; its disk stays in use".into());
            self.disk = None;
        }
        for problem in &problems {
            log::warn!("cannot clean up after the builder VM: {problem}");
        }
        problems
    }

    /// Asks the guest to power off. Returns whether its disk is clean.
    fn quit(&self, limits: Limits) -> bool {
        let (Some(session), Some(monitor)) = (&self.session, &self.monitor) else {
            return false;
        };
        if session.lost().is_some() {
            return false;
        }
        match session.quit(limits.short) {
            Ok(()) => {}
            Err(SessionError::Cancelled) => return false,
            Err(err) => {
                log::warn!("the builder VM did not power off: {err}");
                return false;
            }
        }
        // The guest synced and unmounted its disk before it replied, so nothing is written any more,
        // and the monitor need not end by itself.
        let began = Instant::now();
        let waited = poll(
            || {
                if began.elapsed() > limits.kill || session.is_cancelled() {
                    return Err(());
                }
                Ok(())
            },
            |tick| monitor.wait(tick).transpose(),
        );
        match waited {
            Ok(Ok(_)) => {}
            Ok(Err(err)) => log::debug!("cannot wait for the monitor: {err}"),
            Err(()) => log::debug!("the monitor did not end by itself"),
        }
        true
    }

    /// Kills the monitor unless it ended already. Returns whether no monitor is left.
    fn end_monitor(&mut self, problems: &mut Vec<RegistryError>) -> bool {
        let Some(monitor) = self.monitor.take() else {
            remove_record(&mut self.monitor_record, problems);
            return true;
        };
        match monitor.kill(KILL_LIMIT) {
            Ok(Some(_)) => {
                remove_record(&mut self.monitor_record, problems);
                true
            }
            Ok(None) => false,
            Err(err) => {
                problems.push(err.into());
                false
            }
        }
    }

    fn end_disk(&mut self, clean: bool, problems: &mut Vec<RegistryError>) {
        let Some(disk) = self.disk.take() else {
            remove_record(&mut self.disk_record, problems);
            return;
        };
        match if clean {
            disk.release()
        } else {
            disk.discard()
        } {
            Ok(()) => remove_record(&mut self.disk_record, problems),
            Err(err) => problems.push(err.into()),
        }
    }

    fn end_dir(&mut self, problems: &mut Vec<RegistryError>) {
        self.dir_fd = None;
        if let Some(dir) = self.dir.take() {
            match fs::remove_dir_all(&dir) {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    problems.push(format!("cannot remove `{}`: {err}", dir.display()).into());
                    return;
                }
                Ok(()) | Err(_) => {}
            }
        }
        remove_record(&mut self.dir_record, problems);
    }
}

fn remove_record(record: &mut Option<Box<dyn Record>>, problems: &mut Vec<RegistryError>) {
    if let Some(record) = record.take()
        && let Err(err) = record.remove()
    {
        problems.push(err);
    }
}
