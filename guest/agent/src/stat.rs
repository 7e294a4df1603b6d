//! Resource use of the guest.

use std::fs;

use anyhow::{Context as _, Result};
use wire::Stat;

use crate::disk::Disk;

/// Memory of the VM in bytes.
pub(crate) fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kibibytes(&text, "MemTotal").context("/proc/meminfo has no MemTotal")
}

/// Everything that [`wire::Request::Stat`] reports.
pub(crate) fn stat(disk: &Disk) -> Result<Stat> {
    let (disk_size, disk_free) = disk.usage()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let agent = fs::read_to_string("/proc/self/status")?;
    let value = |text: &str, name| kibibytes(text, name).unwrap_or(0);
    Ok(Stat {
        disk_size,
        disk_free,
        memory_size: value(&memory, "MemTotal"),
        memory_free: value(&memory, "MemAvailable"),
        agent_memory: value(&agent, "VmRSS"),
        agent_memory_peak: value(&agent, "VmHWM"),
    })
}

/// A value in bytes from a text of lines `Name:   123 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:       2048 kB\nHugePages_Total:   0\n";
        assert_eq!(kibibytes(text, "MemTotal"), Some(2 << 20));
        assert_eq!(kibibytes(text, "HugePages_Total"), None);
        assert_eq!(kibibytes(text, "Mem"), None);
    }
}
