//! What the kernel says about the confinement of a running monitor.

use std::fmt;
use std::fs;
use std::io;

/// The confinement of a process, from `/proc/PID/status` (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// A filter of system calls is installed.
    pub seccomp: bool,
    /// No program gives it rights.
    pub no_new_privileges: bool,
    /// Its effective capabilities, one bit each.
    pub capabilities: u64,
    /// The capabilities that it may ever get.
    pub bounding: u64,
    /// Its effective user.
    pub user: u32,
}

impl Observed {
    /// Reads it.
    ///
    /// # Errors
    /// If there is no such process, or this is not Linux as we know it.
    pub fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Self::parse(&status).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(status: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::trim)
        };
        let bits = |name| u64::from_str_radix(value(name)?, 16).ok();
        Some(Self {
            // Absent from a kernel that has none; 2 is a filter.
            seccomp: value("Seccomp") == Some("2"),
            no_new_privileges: value("NoNewPrivs") == Some("1"),
            capabilities: bits("CapEff")?,
            bounding: bits("CapBnd")?,
            user: value("Uid")?.split_whitespace().nth(1)?.parse().ok()?,
        })
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_not = |is: bool| if is { "" } else { "no " };
        write!(
            f,
            "user {}, {}seccomp filter, {}new privileges possible, capabilities {:x}, bounding set {:x}",
            self.user,
            or_not(self.seccomp),
            or_not(!self.no_new_privileges),
            self.capabilities,
            self.bounding
        )
    }
}
