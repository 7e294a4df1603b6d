//! Which walls this host offers.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use super::{Wall, Walls, landlock};
use crate::monitor::qemu::Qemu;

/// The first user id for monitors that root starts. The process id is added to it, so that no two
/// monitors are the same user and none can trace or signal another. systemd's table of user ids leaves
/// these unused, and no distribution gives them to users.
pub(super) const FIRST_ID: u32 = 0x7000_0000;

/// No process id is larger (proc(5), `pid_max`).
const LAST_ID: u32 = FIRST_ID + (1 << 22);

/// What root needs to start a process as another user, and to find and kill it afterwards, as
/// `store check` and the parent-death signal do.
const TO_CHANGE_USER: [(CapabilitySet, &str); 5] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::KILL, "CAP_KILL"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
];

/// Finds out which walls a monitor of this QEMU gets on this host, if it opens these devices.
#[must_use]
pub fn detect(qemu: &Qemu, devices: &[PathBuf]) -> Walls {
    let mut walls = Walls {
        present: Wall::ALL.into(),
        ..Walls::default()
    };
    if !qemu.sandbox {
        walls.remove(Wall::Seccomp, "this QEMU was built without it");
    } else if !kernel_has_seccomp() {
        walls.remove(Wall::Seccomp, "the kernel does not offer it");
    }
    if landlock::version() == 0 {
        let why = "the kernel does not offer it: it is older than Linux 5.13, or starts without \
                   `lsm=landlock`";
        walls.remove(Wall::Landlock, why);
    }
    match user(qemu, devices) {
        Ok(User::Ours) => walls.present.retain(|wall| *wall != Wall::User),
        Ok(User::Other { groups }) => walls.groups = groups,
        Err(why) => walls.remove(Wall::User, why),
    }
    walls
}

/// The version of Landlock in use, for people; zero if the kernel has none.
#[must_use]
pub fn landlock_version() -> u8 {
    landlock::version()
}

fn kernel_has_seccomp() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Seccomp:"))
}

/// Which user a monitor runs as.
#[derive(Debug, PartialEq, Eq)]
enum User {
    /// The one that starts it, who is not root and cannot become another one.
    Ours,
    /// One of its own, in these groups.
    Other { groups: Vec<u32> },
}

fn user(qemu: &Qemu, devices: &[PathBuf]) -> Result<User, String> {
    if !geteuid().is_root() {
        return Ok(User::Ours);
    }
    let held = capabilities(None).map_err(|err| err.to_string())?.effective;
    if let Some((_, name)) = TO_CHANGE_USER.iter().find(|(one, _)| !held.contains(*one)) {
        return Err(format!("root has no {name} here"));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        if !has_ids(&fs::read_to_string(map).unwrap_or_default()) {
            return Err("this user namespace has too few users".into());
        }
    }
    if !others_reach(&qemu.program) {
        let program = qemu.program.display();
        return Err(format!("`{program}` is where only root may go"));
    }
    let mut groups = Vec::new();
    for device in devices {
        // What is missing fails later, for every user.
        if let Ok(found) = fs::metadata(device) {
            match group_of(found.mode(), found.gid()) {
                Ok(group) => groups.extend(group),
                Err(()) => return Err(format!("only root may open {}", device.display())),
            }
        }
    }
    Ok(User::Other { groups })
}

/// Whether a map of ids has those of monitors (`user_namespaces(7)`).
fn has_ids(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        first <= FIRST_ID.into() && u64::from(LAST_ID) <= first.saturating_add(count)
    })
}

/// The group that may open a device with this mode and group, if one is needed.
fn group_of(mode: u32, group: u32) -> Result<Option<u32>, ()> {
    if mode & 0o006 == 0o006 {
        Ok(None)
    } else if mode & 0o060 == 0o060 && group != 0 {
        Ok(Some(group))
    } else {
        Err(())
    }
}

/// Whether users without rights may execute this program.
fn others_reach(program: &Path) -> bool {
    let reach = |program: &Path| -> io::Result<bool> {
        let real = fs::canonicalize(program)?;
        for above in real.ancestors().chain(program.ancestors()) {
            if above.as_os_str().is_empty() {
                continue;
            }
            let found = fs::metadata(above)?;
            if found.mode() & 0o001 == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    reach(program).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_namespace_with_few_users_has_no_users_for_monitors() {
        assert!(has_ids("         0          0 4294967295\n"));
        assert!(!has_ids("0 100000 65536\n"));
        assert!(!has_ids("0 1000 1\n1 100000 65535\n"));
        assert!(has_ids("0 1000 1\n1 100000 4000000000\n"));
        assert!(!has_ids("0 x 4294967295\n") && !has_ids(""));
    }

    #[test]
    fn a_device_is_opened_by_everybody_by_a_group_or_by_root_alone() {
        assert_eq!(group_of(0o20_666, 36), Ok(None));
        assert_eq!(group_of(0o20_660, 36), Ok(Some(36)));
        assert_eq!(group_of(0o20_660, 0), Err(()));
        assert_eq!(group_of(0o20_600, 36), Err(()));
        assert_eq!(group_of(0o20_640, 36), Err(()));
    }

    #[test]
    fn a_program_in_a_private_directory_is_out_of_reach_for_others() {
        assert!(others_reach(Path::new("/bin/sh")));
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::copy("/bin/true", &program).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!others_reach(&program));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert!(others_reach(&program));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!others_reach(&program));
        assert!(!others_reach(&dir.path().join("missing")));
    }
}
