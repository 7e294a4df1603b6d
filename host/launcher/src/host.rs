//! Facts about the host: its boot, its memory, its processors.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::thread;

/// A builder VM gets half of the memory for VMs, so that two builds run at once, but not more than this
/// unless asked: the rest is page cache of the store.
const MEMORY_MIB: u64 = 4096;
/// With less than this a VM cannot boot and unpack a usual image.
const MIN_MEMORY_MIB: u64 = 512;
/// With less than this a VM cannot even boot, in bytes.
const LEAST_MEMORY: u64 = 256 << 20;
/// Bounds of the memory that is left to the host, which is an eighth of all within them.
const LEAST_RESERVE: u64 = 256 << 20;
const MOST_RESERVE: u64 = 4 << 30;
/// More virtual processors cost boot time, and steps rarely use them.
const MAX_CPUS: usize = 16;

/// The id of this boot of the host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Default memory of a VM in MiB, if all VMs may have `total` bytes.
pub(crate) fn default_memory_mib(total: u64) -> u64 {
    ((total / 2) >> 20).clamp(MIN_MEMORY_MIB, MEMORY_MIB)
}

/// Memory that VMs may have together, in bytes: what this process may use at all, less a reserve.
pub(crate) fn total_memory() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let host = total_mib(&info).map(|mib| mib << 20);
    let group = group_limit(Path::new("/sys/fs/cgroup"), &groups);
    match host.into_iter().chain(group).min() {
        Some(all) => without_reserve(all),
        None => u64::MAX,
    }
}

/// What is left for VMs of `all` memory. The reserve is for the host itself, for this program, and for what
/// a monitor needs besides the memory of its guest.
fn without_reserve(all: u64) -> u64 {
    all.saturating_sub((all / 8).clamp(LEAST_RESERVE, MOST_RESERVE))
}

/// The least limit of memory of the control groups that a process is in: of each group and those above it.
/// `groups` is its `/proc/self/cgroup`, `root` where they are mounted.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path may be one of the host, and only the root exists.
        let group = root.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|dir| dir.starts_with(&root));
        let read = |dir: &Path| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok();
        above.filter_map(read).min()
    });
    limits.min()
}

/// How much memory a VM on this host can have, in bytes.
#[must_use]
pub fn memory_range() -> RangeInclusive<u64> {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let most = total_mib(&info).map_or(u64::MAX, |mib| mib << 20);
    LEAST_MEMORY..=most.max(LEAST_MEMORY)
}

fn total_mib(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

/// Default number of virtual processors of a VM.
pub(crate) fn default_cpus() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_CPUS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_gets_half_of_the_memory_within_bounds() {
        let defaults = [600, 3000, 1 << 20].map(|mib: u64| default_memory_mib(mib << 20));
        assert_eq!(defaults, [512, 1500, 4096]);
    }

    #[test]
    fn two_vms_of_usual_size_fit_and_leave_something_to_the_host() {
        for gib in [2, 4, 8, 16, 64, 1024] {
            let all = gib << 30;
            let vms = 2 * (default_memory_mib(without_reserve(all)) << 20);
            assert!(vms <= without_reserve(all), "{gib}");
            assert!(all - vms >= LEAST_RESERVE, "{gib}");
        }
        assert_eq!(without_reserve(8 << 30), 7 << 30);
        assert_eq!(without_reserve(1 << 40), (1 << 40) - MOST_RESERVE);
        assert_eq!(without_reserve(1 << 20), 0);
    }

    #[test]
    fn the_least_limit_of_the_control_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| group_limit(dir.path(), groups);
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "3000\n");
        assert_eq!(limit("0::/a/b\n"), Some(3000));
        write("a/b/memory.max", "5000\n");
        assert_eq!(limit("0::/a/b\n"), Some(3000));
        assert_eq!(limit("0::/other\n"), None);
        // A container sees its own group as the root.
        write("memory.max", "2000\n");
        assert_eq!(limit("0::/docker/unknown\n"), Some(2000));
        // The first version, with one hierarchy for each controller.
        write("memory/x/memory.limit_in_bytes", "1000\n");
        let first = "5:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/x\n";
        assert_eq!(limit(first), Some(1000));
    }

    #[test]
    fn total_memory_is_read_from_the_kernels_text() {
        assert_eq!(
            total_mib("MemTotal:       24689632 kB\nMemFree: 1 kB\n"),
            Some(24110)
        );
        assert_eq!(total_mib("nothing"), None);
    }

    #[test]
    fn this_host_answers() {
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(default_cpus() > 0 && total_memory() > 0);
    }
}
