//! How much the guest has and uses.

use std::fs;

use anyhow::{Context as _, Result};
use wire::Stat;

use crate::disk::Disk;

/// Memory of the VM in bytes.
pub(crate) fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kibibytes(&text, "MemTotal").context("the kernel does not tell its memory")
}

/// All figures.
pub(crate) fn stat(disk: &Disk) -> Result<Stat> {
    let (disk_size, disk_free) = disk.usage()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let agent = fs::read_to_string("/proc/self/status")?;
    let figure = |text: &str, name| kibibytes(text, name).unwrap_or(0);
    Ok(Stat {
        disk_size,
        disk_free,
        memory_size: figure(&memory, "MemTotal"),
        memory_free: figure(&memory, "MemAvailable"),
        agent_memory: figure(&agent, "VmRSS"),
        agent_memory_peak: figure(&agent, "VmHWM"),
    })
}

/// A figure in a text of lines `Name:   123 kB`, in bytes.
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
    fn figures_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:       2048 kB\nHugePages_Total:   0\n";
        assert_eq!(kibibytes(text, "MemTotal"), Some(2 << 20));
        assert_eq!(kibibytes(text, "HugePages_Total"), None);
        assert_eq!(kibibytes(text, "Mem"), None);
    }
}
