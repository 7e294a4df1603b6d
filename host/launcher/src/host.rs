//! Facts about the host: its boot, its memory, its processors.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::thread;

/// A builder VM gets half of the host's memory, but not more than this unless asked: the rest is
/// page cache of the store.
const MEMORY_MIB: u64 = 4096;
/// With less than this a VM cannot boot and unpack a usual image.
const MIN_MEMORY_MIB: u64 = 512;
/// With less than this a VM cannot even boot, in bytes.
const LEAST_MEMORY: u64 = 256 << 20;
/// More virtual processors cost boot time, and steps rarely use them.
const MAX_CPUS: usize = 16;

/// The id of this boot of the host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Default memory of a VM in MiB.
pub(crate) fn default_memory_mib() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    share(total_mib(&info).unwrap_or(MEMORY_MIB))
}

/// How much memory a VM on this host can have, in bytes.
#[must_use]
pub fn memory_range() -> RangeInclusive<u64> {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let most = total_mib(&info).map_or(u64::MAX, |mib| mib << 20);
    LEAST_MEMORY..=most.max(LEAST_MEMORY)
}

fn share(host_mib: u64) -> u64 {
    (host_mib / 2).clamp(MIN_MEMORY_MIB, MEMORY_MIB)
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
        assert_eq!([share(600), share(3000), share(1 << 20)], [512, 1500, 4096]);
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
        assert!(default_cpus() > 0 && default_memory_mib() >= MIN_MEMORY_MIB);
    }
}
