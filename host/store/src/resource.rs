//! Resources: what an instance has made outside the database, such as VMs and sockets.
//!
//! The law: the row is on disk before the resource is made, and is deleted only after the resource was
//! seen to be gone. So nothing is left behind that no row names.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::db::{Commit, Db, one_row};
use crate::lock::{Lock, Probe};
use crate::{Removal, Store, StoreError, disk};

/// How long to wait for a monitor that was killed, and how often to check. A monitor needs tens of
/// milliseconds to release its memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
const KILL_PAUSE: Duration = Duration::from_millis(10);

/// The id of a resource, for [`Store::drop_resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResourceId(i64);

/// A resource. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceKind {
    /// A VM. Its monitor holds a lock on the file `lock` as long as it lives.
    Vm {
        /// Process id of the monitor; used only if that process has `lock` open.
        pid: u32,
        /// The lock file, which is removed with the VM.
        lock: PathBuf,
    },
    /// A directory with everything below it.
    Directory(PathBuf),
    /// A Unix socket.
    Socket(PathBuf),
    /// A file.
    File(PathBuf),
}

impl ResourceKind {
    fn parts(&self) -> (&'static str, &Path, Option<u32>) {
        match self {
            Self::Vm { pid, lock } => ("vm", lock, Some(*pid)),
            Self::Directory(path) => ("directory", path, None),
            Self::Socket(path) => ("socket", path, None),
            Self::File(path) => ("file", path, None),
        }
    }

    fn from_parts(kind: &str, path: Vec<u8>, pid: Option<u32>) -> Result<Self, StoreError> {
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        Ok(match (kind, pid) {
            ("vm", Some(pid)) => Self::Vm { pid, lock: path },
            ("directory", _) => Self::Directory(path),
            ("socket", _) => Self::Socket(path),
            // Older versions had a kind of its own for guest disks.
            ("file" | "disk", _) => Self::File(path),
            _ => {
                return Err(StoreError::corrupt(format!(
                    "`{kind}` is not a kind of resource"
                )));
            }
        })
    }

    /// Whether this is a VM that has ended: nobody holds its lock.
    ///
    /// # Errors
    /// If the lock cannot be read.
    pub fn is_ended_vm(&self) -> Result<bool, StoreError> {
        match self {
            Self::Vm { lock, .. } => Ok(!matches!(Lock::probe(lock)?, Probe::Held)),
            Self::Directory(_) | Self::Socket(_) | Self::File(_) => Ok(false),
        }
    }

    /// Removes it on behalf of its dead owner.
    fn tear_down(&self) -> Result<Removal, StoreError> {
        match self {
            Self::Vm { pid, lock } => stop(*pid, lock),
            Self::Directory(path) => Ok(disk::remove_tree(path)),
            Self::Socket(path) | Self::File(path) => Ok(disk::remove_file(path)),
        }
    }
}

/// Kills a VM whose owner is dead. Monitors end with their owner, so this is for those that did not, or
/// are about to. The lock proves that a VM is alive; the process id identifies its monitor only if that
/// process has the lock file open.
fn stop(pid: u32, path: &Path) -> Result<Removal, StoreError> {
    let give_up = Instant::now() + KILL_TIMEOUT;
    loop {
        match Lock::probe(path)? {
            Probe::Missing => return Ok(Removal::Gone),
            Probe::Free(lock) => return Ok(lock.remove(path)),
            Probe::Held => {}
        }
        if has_open(pid, path)
            && let Ok(number) = i32::try_from(pid)
            && let Err(errno) = kill(Pid::from_raw(number), Signal::SIGKILL)
            && errno != Errno::ESRCH
        {
            return Ok(Removal::Failed(format!(
                "cannot kill process {pid}: {errno}"
            )));
        }
        // The next process that looks will find that it has ended.
        if Instant::now() >= give_up {
            return Ok(Removal::Busy(format!("the VM of process {pid} still runs")));
        }
        thread::sleep(KILL_PAUSE);
    }
}

fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

/// Kills the VMs of a dead instance. Returns a reason if one is still alive: then nothing else may be
/// removed yet, since the VM's lock file, and files that it uses, are among the other resources.
pub(crate) fn remove_vms(db: &Db, instance: i64) -> Result<Option<String>, StoreError> {
    remove_all(db, instance, true)
}

/// Removes the other resources of a dead instance: newest first. Returns the
/// reason if one could not be removed; its row stays.
pub(crate) fn remove_others(db: &Db, instance: i64) -> Result<Option<String>, StoreError> {
    remove_all(db, instance, false)
}

fn remove_all(db: &Db, instance: i64, vms: bool) -> Result<Option<String>, StoreError> {
    let rows = db.read(|tx| {
        let mut found = tx.prepare_cached(
            "SELECT id, kind, path, pid FROM resource WHERE instance = ?1 AND (kind = 'vm') = ?2 \
             ORDER BY id DESC",
        )?;
        let rows = found.query_map((instance, vms), |row| {
            Ok((
                row.get(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                row.get(3)?,
            ))
        })?;
        Ok(rows.collect::<Result<Vec<(i64, _, _, _)>, _>>()?)
    })?;
    let mut left = None;
    for (id, kind, path, pid) in rows {
        let removal = ResourceKind::from_parts(&kind, path, pid).and_then(|it| it.tear_down());
        match removal {
            Ok(Removal::Gone) => delete(db, id)?,
            Ok(Removal::Busy(why) | Removal::Failed(why)) => left = Some(why),
            Err(error) => left = Some(error.to_string()),
        }
    }
    Ok(left)
}

fn delete(db: &Db, id: i64) -> Result<(), StoreError> {
    db.write(Commit::Relaxed, |tx| {
        let gone = tx
            .prepare_cached("DELETE FROM resource WHERE id = ?1")?
            .execute([id])?;
        one_row(gone, "end of a resource")
    })
}

impl Store {
    /// The resources of live instances. Some may not have been made yet.
    ///
    /// # Errors
    /// If the rows or the locks of instances cannot be read.
    pub fn live_resources(&self) -> Result<Vec<ResourceKind>, StoreError> {
        let rows = self.read(|tx| {
            let mut found = tx.prepare_cached(
                "SELECT instance.name, kind, path, resource.pid FROM resource \
                 JOIN instance ON instance.id = resource.instance ORDER BY resource.id",
            )?;
            let rows = found.query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get(2)?,
                    row.get(3)?,
                ))
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        let mut live = Vec::new();
        for (instance, kind, path, pid) in rows {
            if let Probe::Held = Lock::probe(&self.layout().instance_lock(&instance))? {
                live.push(ResourceKind::from_parts(&kind, path, pid)?);
            }
        }
        Ok(live)
    }

    /// Records a resource that is about to be made.
    ///
    /// # Errors
    /// If it cannot be recorded; then it must not be made.
    pub fn add_resource(&self, kind: ResourceKind) -> Result<ResourceId, StoreError> {
        let (name, path, pid) = kind.parts();
        if !path.is_absolute() {
            return Err(StoreError::corrupt(format!(
                "{} is not an absolute path",
                path.display()
            )));
        }
        self.write(Commit::Durable, |tx| {
            let id = tx
                .prepare_cached(
                    "INSERT INTO resource (instance, kind, path, pid) VALUES (?1, ?2, ?3, ?4)",
                )?
                .insert((self.instance_row(), name, path.as_os_str().as_bytes(), pid))?;
            Ok(ResourceId(id))
        })
    }

    /// Forgets a resource that is gone, or that now belongs to somebody else.
    ///
    /// # Errors
    /// If the record cannot be deleted.
    pub fn drop_resource(&self, id: ResourceId) -> Result<(), StoreError> {
        // Durable: a row that came back after a power failure would remove what is no longer ours.
        self.write(Commit::Durable, |tx| {
            let gone = tx
                .prepare_cached("DELETE FROM resource WHERE id = ?1")?
                .execute([id.0])?;
            one_row(gone, "end of a resource")
        })
    }
}
