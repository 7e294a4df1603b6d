//! The audit of monitors, for `store check`.
//!
//! The law: each monitor belongs to a live build, and each VM of a live build has a monitor. Both are
//! compared with the records of the store. Builds start and end meanwhile: so a finding counts only if
//! it persists for longer than any process waits for the database.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::{ResourceKind, Store};

use crate::vm::DISK;

/// How often the audit is repeated while a finding persists: eight seconds in all, and waiting for
/// the database ends after five.
const REPEATS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(200);

/// How the process of a monitor is named.
const MONITOR: &str = "qemu-system";

/// Something of a VM that should not be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Finding {
    /// A process that has a guest disk open, and belongs to no live build.
    Monitor(i32, PathBuf),
    /// The VM of a live build, whose monitor with this process id has ended.
    LostVm(u32),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monitor(pid, disk) => write!(
                f,
                "process {pid} holds guest disk {} but belongs to no build",
                disk.display()
            ),
            Self::LostVm(pid) => write!(f, "the VM of a build, process {pid}, has ended"),
        }
    }
}

/// Audits the monitors of a store. With `repair`, kills those that belong to no build; the flag of a
/// finding says whether that worked.
///
/// # Errors
/// If the processes or the records cannot be read.
pub fn audit(store: &Store, repair: bool) -> io::Result<Vec<(Finding, bool)>> {
    audit_repeatedly(store, repair, REPEATS)
}

fn audit_repeatedly(store: &Store, repair: bool, repeats: u32) -> io::Result<Vec<(Finding, bool)>> {
    let mut found = find(store)?;
    for _ in 0..repeats {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        thread::sleep(PAUSE);
        let now = find(store)?;
        found.retain(|finding| now.contains(finding));
    }
    let mut still: Vec<Finding> = found.into_iter().collect();
    still.sort_by_key(ToString::to_string);
    let repaired = |finding: Finding| {
        let done = repair && repair_one(store, &finding);
        (finding, done)
    };
    Ok(still.into_iter().map(repaired).collect())
}

/// All findings at this moment.
fn find(store: &Store) -> io::Result<HashSet<Finding>> {
    // The processes first, then their records, so that fewer builds that start now are caught in
    // between.
    let monitors = monitors_of(store)?;
    let records = store.live_resources().map_err(io::Error::other)?;
    let mut owned = HashSet::new();
    let mut found = HashSet::new();
    for record in records {
        let is_lost = record.is_ended_vm().map_err(io::Error::other)?;
        match record {
            ResourceKind::Directory(path) => {
                owned.insert(path);
            }
            ResourceKind::Vm { pid, .. } if is_lost => {
                found.insert(Finding::LostVm(pid));
            }
            ResourceKind::Vm { .. } | ResourceKind::Socket(_) | ResourceKind::File(_) => {}
        }
    }
    let is_orphan = |disk: &Path| disk.parent().is_none_or(|dir| !owned.contains(dir));
    let orphans = monitors.into_iter().filter(|(_, disk)| is_orphan(disk));
    found.extend(orphans.map(|(pid, disk)| Finding::Monitor(pid, disk)));
    Ok(found)
}

/// The monitors of this user that have a guest disk in this store open for writing. Processes that
/// only read one, such as a backup, do not matter.
fn monitors_of(store: &Store) -> io::Result<Vec<(i32, PathBuf)>> {
    // Links of open files name the real path.
    let root = fs::canonicalize(store.root())?;
    let mut users = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse().ok())
        else {
            continue;
        };
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        // Some distributions wrap programs, and prefix the name of the wrapped one with a dot.
        if !name.trim_start_matches('.').starts_with(MONITOR) {
            continue;
        }
        // Processes of other users cannot be read, and cannot have opened files of this user alone.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let written = descriptors.flatten().filter_map(|fd| {
            let file = fs::read_link(fd.path()).ok()?;
            let info = process.path().join("fdinfo").join(fd.file_name());
            is_writable(&fs::read_to_string(info).ok()?).then_some(file)
        });
        let mut disks = written.filter(|file| file.starts_with(&root) && file.ends_with(DISK));
        users.extend(disks.next().map(|disk| (pid, disk)));
    }
    Ok(users)
}

/// Whether a descriptor is open for writing, from its `fdinfo` (proc(5), octal flags).
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| {
        OFlag::from_bits_truncate(flags).intersects(OFlag::O_WRONLY | OFlag::O_RDWR)
    })
}

/// Returns whether the finding is repaired.
fn repair_one(store: &Store, finding: &Finding) -> bool {
    match finding {
        // Only if it still has that file open: its process id may have been reused.
        Finding::Monitor(pid, disk) => {
            let monitors = monitors_of(store).unwrap_or_default();
            monitors.contains(&(*pid, disk.clone()))
                && kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()
        }
        // A build that lost its VM fails by itself.
        Finding::LostVm(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command};
    use std::time::Instant;

    use store::OpenOptions;

    use super::*;
    use crate::disk;

    /// No build starts or ends here, so two repeats are enough.
    fn audit_quickly(store: &Store, repair: bool) -> io::Result<Vec<(Finding, bool)>> {
        audit_repeatedly(store, repair, 2)
    }

    /// A process that is named like a monitor and has the disk open. It is a link to a program, not a
    /// copy: a file that was just written cannot be executed while a child of another test has it open.
    fn monitor(dir: &Path, disk: &Path) -> Child {
        let program = dir.join(format!("{MONITOR}-test"));
        symlink("/bin/sleep", &program).unwrap();
        let file = File::options().read(true).write(true).open(disk).unwrap();
        let child = Command::new(program)
            .arg("600")
            .stdin(file)
            .spawn()
            .unwrap();
        // The kernel resumes the parent a moment before it gives the child its new name.
        let comm = format!("/proc/{}/comm", child.id());
        let end = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&comm).unwrap().starts_with(MONITOR) {
            assert!(Instant::now() < end, "{comm}");
            thread::yield_now();
        }
        child
    }

    #[test]
    fn monitors_are_compared_with_the_live_builds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &OpenOptions::default()).unwrap();
        assert_eq!(audit_quickly(&store, false).unwrap(), []);
        let lock = dir.path().join("vm");
        let held = File::create(&lock).unwrap();
        held.lock().unwrap();
        let vm = ResourceKind::Vm { pid: 7, lock };
        let record = store.add_resource(vm).unwrap();
        assert_eq!(audit_quickly(&store, false).unwrap(), []);
        drop(held);
        assert_eq!(
            audit_quickly(&store, true).unwrap(),
            [(Finding::LostVm(7), false)]
        );
        store.drop_resource(record).unwrap();
        let vm = fs::canonicalize(store.scratch()).unwrap().join("vm-1");
        let record = store
            .add_resource(ResourceKind::Directory(vm.clone()))
            .unwrap();
        fs::create_dir(&vm).unwrap();
        let path = vm.join(DISK);
        disk::create(&path, 1 << 20).unwrap();
        let mut process = monitor(dir.path(), &path);
        assert_eq!(audit_quickly(&store, true).unwrap(), []);
        store.drop_resource(record).unwrap();
        let monitor = Finding::Monitor(i32::try_from(process.id()).unwrap(), path.clone());
        assert_eq!(audit_quickly(&store, true).unwrap(), [(monitor, true)]);
        assert!(!process.wait().unwrap().success());
        // Another program may read a disk, also for long.
        let reader = File::open(&path).unwrap();
        assert_eq!(audit_quickly(&store, true).unwrap(), []);
        drop(reader);
        store.close().unwrap();
    }
}
