//! What VMs have left behind: a look at guest disks and monitors, for `store check`.
//!
//! The law: each file among the disks belongs to a disk, each disk in use and each monitor to a build
//! that lives, and each VM of such a build has a monitor. Both are compared with the store's rows both
//! ways. Builds come and go meanwhile: a disk
//! is held a moment before its row is written, and given back a moment before the row goes. So what is
//! wrong is looked at again, for longer than anybody waits for the database.

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

use crate::disk;

/// Looks after the first one, only as long as something is wrong in all of them: eight seconds, and
/// waiting for the database ends after five.
const LOOKS: u32 = 40;
const MOMENT: Duration = Duration::from_millis(200);

/// How the process of a monitor is named.
const MONITOR: &str = "qemu-system";

/// Something of a VM that should not be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Finding {
    /// A file among the guest disks that belongs to none.
    StrayFile(PathBuf),
    /// A disk that somebody holds, but no build that lives.
    HeldDisk(PathBuf),
    /// A disk of a build that lives, which nobody holds or which is not there.
    LostDisk(PathBuf),
    /// A process that has a guest disk open, and belongs to no build that lives.
    Monitor(i32, PathBuf),
    /// The VM of a build that lives, whose monitor with this process number has ended.
    LostVm(u32),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StrayFile(path) => write!(f, "{} belongs to no guest disk", path.display()),
            Self::HeldDisk(path) => {
                write!(
                    f,
                    "guest disk {} is in use, but by no build",
                    path.display()
                )
            }
            Self::LostDisk(path) => {
                write!(f, "guest disk {} of a build is not there", path.display())
            }
            Self::Monitor(pid, disk) => write!(
                f,
                "process {pid} has guest disk {} open and belongs to no build",
                disk.display()
            ),
            Self::LostVm(pid) => write!(f, "the VM of a build, process {pid}, is not there"),
        }
    }
}

/// Looks at the disks and monitors of a store. With `repair`, removes stray files and ends monitors
/// that belong to nobody; a finding comes with whether that worked.
///
/// # Errors
/// If the disks or the rows cannot be read.
pub fn audit(store: &Store, repair: bool) -> io::Result<Vec<(Finding, bool)>> {
    audit_in(store, repair, LOOKS)
}

fn audit_in(store: &Store, repair: bool, looks: u32) -> io::Result<Vec<(Finding, bool)>> {
    let mut found = look(store)?;
    for _ in 0..looks {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        thread::sleep(MOMENT);
        let now = look(store)?;
        found.retain(|finding| now.contains(finding));
    }
    let mut still: Vec<Finding> = found.into_iter().collect();
    still.sort_by_key(ToString::to_string);
    let mended = |finding: Finding| {
        let done = repair && mend(&finding);
        (finding, done)
    };
    Ok(still.into_iter().map(mended).collect())
}

/// All that differs at this moment.
fn look(store: &Store) -> io::Result<HashSet<Finding>> {
    let dir = store.disks_dir();
    // The things first, then the rows, so that fewer of those who come are caught in between.
    let disks = disk::listed(&dir)?;
    let users = monitors_on(&dir)?;
    let rows = store.live_resources().map_err(io::Error::other)?;
    let mut owned = HashSet::new();
    let mut found: HashSet<Finding> = disks.strays.into_iter().map(Finding::StrayFile).collect();
    for row in rows {
        let is_lost = row.is_ended_vm().map_err(io::Error::other)?;
        match row {
            ResourceKind::Disk(path) => {
                owned.insert(path);
            }
            ResourceKind::Vm { pid, .. } if is_lost => {
                found.insert(Finding::LostVm(pid));
            }
            ResourceKind::Vm { .. }
            | ResourceKind::Directory(_)
            | ResourceKind::Socket(_)
            | ResourceKind::File(_) => {}
        }
    }
    let held = disks.held.iter().filter(|image| !owned.contains(*image));
    found.extend(held.cloned().map(Finding::HeldDisk));
    let lost = owned.iter().filter(|image| !disks.held.contains(image));
    found.extend(lost.cloned().map(Finding::LostDisk));
    let foreign = users
        .into_iter()
        .filter(|(_, image)| !owned.contains(image));
    found.extend(foreign.map(|(pid, image)| Finding::Monitor(pid, image)));
    Ok(found)
}

/// The monitors of this user that have a disk image of this pool open for writing. Who else looks at
/// an image, such as a backup, is none of our business.
fn monitors_on(dir: &Path) -> io::Result<Vec<(i32, PathBuf)>> {
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
        // Some distributions wrap programs, and put a dot before the name of what is wrapped.
        if !name.trim_start_matches('.').starts_with(MONITOR) {
            continue;
        }
        // Those of other users cannot be read, and cannot have opened what is this user's alone.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let written = descriptors.flatten().filter_map(|fd| {
            let file = fs::read_link(fd.path()).ok()?;
            let info = process.path().join("fdinfo").join(fd.file_name());
            is_writable(&fs::read_to_string(info).ok()?).then_some(file)
        });
        let mut images = written.filter(|file| {
            file.parent() == Some(dir) && file.extension().is_some_and(|end| end == "img")
        });
        users.extend(images.next().map(|image| (pid, image)));
    }
    Ok(users)
}

/// Whether a descriptor is open for writing, by what `/proc` says about it (proc(5), octal flags).
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| {
        OFlag::from_bits_truncate(flags).intersects(OFlag::O_WRONLY | OFlag::O_RDWR)
    })
}

/// Whether what is wrong is so no more.
fn mend(finding: &Finding) -> bool {
    match finding {
        Finding::StrayFile(path) => fs::remove_file(path).is_ok(),
        // By its number and the file that it has open just now, as a moment ago.
        Finding::Monitor(pid, image) => {
            let dir = image.parent().unwrap_or(image);
            let users = monitors_on(dir).unwrap_or_default();
            users.contains(&(*pid, image.clone()))
                && kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()
        }
        // Whoever holds it must end by itself; a build that lost its disk or VM will tell so.
        Finding::HeldDisk(_) | Finding::LostDisk(_) | Finding::LostVm(_) => false,
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
    use crate::disk::DiskPool;

    /// Nobody comes and goes here, so two looks are enough.
    fn look(store: &Store, repair: bool) -> io::Result<Vec<(Finding, bool)>> {
        audit_in(store, repair, 2)
    }

    /// A process that is named like a monitor and has the image open. It is a link to a program, not a
    /// copy: what was written just now cannot be run while a child of another test still has it open.
    fn monitor(dir: &Path, image: &Path) -> Child {
        let program = dir.join(format!("{MONITOR}-test"));
        symlink("/bin/sleep", &program).unwrap();
        let file = File::options().read(true).write(true).open(image).unwrap();
        let child = Command::new(program)
            .arg("600")
            .stdin(file)
            .spawn()
            .unwrap();
        // The kernel lets the parent go on a moment before it gives the child its new name.
        let comm = format!("/proc/{}/comm", child.id());
        let end = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&comm).unwrap().starts_with(MONITOR) {
            assert!(Instant::now() < end, "{comm}");
            thread::yield_now();
        }
        child
    }

    #[test]
    fn files_disks_and_processes_are_compared_with_the_builds_that_live() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &OpenOptions::default()).unwrap();
        let pool = DiskPool::new(&store.disks_dir(), "boot", 1 << 30, 3);
        assert_eq!(look(&store, false).unwrap(), []);
        let disk = pool.take().unwrap();
        let image = disk.image().to_owned();
        let held = Finding::HeldDisk(image.clone());
        assert_eq!(look(&store, false).unwrap(), [(held, false)]);
        let row = store
            .add_resource(ResourceKind::Disk(image.clone()))
            .unwrap();
        assert_eq!(look(&store, false).unwrap(), []);
        disk.release().unwrap();
        let lost = Finding::LostDisk(image.clone());
        assert_eq!(look(&store, false).unwrap(), [(lost, false)]);
        store.drop_resource(row).unwrap();
        let lock = dir.path().join("vm");
        let held = File::create(&lock).unwrap();
        held.lock().unwrap();
        let vm = ResourceKind::Vm { pid: 7, lock };
        let row = store.add_resource(vm).unwrap();
        assert_eq!(look(&store, false).unwrap(), []);
        drop(held);
        assert_eq!(look(&store, true).unwrap(), [(Finding::LostVm(7), false)]);
        store.drop_resource(row).unwrap();
        // Another program may look at an image, also for long.
        let reader = File::open(&image).unwrap();
        assert_eq!(look(&store, true).unwrap(), []);
        drop(reader);
        let mut process = monitor(dir.path(), &image);
        let monitor = Finding::Monitor(i32::try_from(process.id()).unwrap(), image);
        assert_eq!(look(&store, true).unwrap(), [(monitor, true)]);
        assert!(!process.wait().unwrap().success());
        let stray = store.disks_dir().join("ext4-1-0000.img");
        fs::write(&stray, "x").unwrap();
        let finding = Finding::StrayFile(stray.clone());
        assert_eq!(look(&store, true).unwrap(), [(finding, true)]);
        assert!(!stray.exists());
        assert_eq!(look(&store, true).unwrap(), []);
        store.close().unwrap();
    }
}
