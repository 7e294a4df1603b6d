//! Notices: what happens to a VM, for users who watch a build.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use store::MemoryWait;

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A VM starts.
    Booting {
        /// By emulation, which is slow.
        emulated: bool,
    },
    /// KVM is not available, for this reason. The VM is emulated.
    NoKvm(String),
    /// QEMU cannot filter its system calls, for this reason.
    NoFilter(String),
    /// The agent said hello.
    Ready {
        /// Time since the monitor was started.
        took: Duration,
    },
    /// The VM starts when there is memory for it. Sizes are in bytes.
    Waiting {
        /// What the VM needs.
        needed: u64,
        /// What all VMs may have together.
        total: u64,
        /// Who has it.
        wait: MemoryWait,
    },
    /// The VM needs more memory than all VMs may have together, so it runs only alone. Sizes are in bytes.
    MoreThanAll {
        /// What the VM needs.
        needed: u64,
        /// What all VMs may have together.
        total: u64,
    },
    /// The VM was lost, for this reason. Steps that ran in it run again in a new one, once.
    Lost(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booting { emulated: false } => f.write_str("booting the builder VM"),
            Self::Booting { emulated: true } => {
                f.write_str("booting the builder VM (emulated, slow)")
            }
            Self::NoKvm(why) => write!(f, "KVM is not available, so steps are slow: {why}"),
            Self::NoFilter(why) => {
                write!(f, "QEMU runs without a filter of system calls: {why}")
            }
            Self::Ready { took } => {
                write!(f, "builder VM ready in {:.1} s", took.as_secs_f32())
            }
            Self::Waiting {
                needed,
                total,
                wait,
            } => waiting(f, *needed, *total, wait),
            Self::MoreThanAll { needed, total } => write!(
                f,
                "the builder VM has {} MiB of memory, more than the {} MiB that VMs may have on this \
                 machine: it runs only while no other VM does, and the machine may run out of memory; \
                 use a smaller --memory, or a larger --total-memory",
                needed >> 20,
                total >> 20
            ),
            Self::Lost(why) => write!(f, "the builder VM was lost: {why}"),
        }
    }
}

/// Most builds that a notice names.
const SHOWN: usize = 4;

fn waiting(f: &mut fmt::Formatter<'_>, needed: u64, total: u64, wait: &MemoryWait) -> fmt::Result {
    write!(
        f,
        "waiting for memory: the builder VM needs {} MiB, and of {} MiB for VMs (--total-memory) {} are \
         used",
        needed >> 20,
        total >> 20,
        wait.held >> 20
    )?;
    for (n, holder) in wait.holders.iter().take(SHOWN).enumerate() {
        let (pid, command) = (holder.pid, &holder.command);
        let before = if n == 0 { ": " } else { ", " };
        write!(
            f,
            "{before}{} MiB by `{command}` (process {pid})",
            holder.bytes >> 20
        )?;
    }
    match wait.holders.len().saturating_sub(SHOWN) {
        0 => {}
        more => write!(f, " and {more} more")?,
    }
    match wait.ahead {
        0 => Ok(()),
        1 => f.write_str("; 1 build waits in front"),
        n => write!(f, "; {n} builds wait in front"),
    }
}

/// Receives notices; must not block for long.
#[derive(Clone)]
pub struct Watcher(Arc<dyn Fn(&Notice) + Send + Sync>);

impl Watcher {
    /// Calls `tell` for each notice, from any thread.
    #[must_use]
    pub fn new(tell: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, notice: &Notice) {
        (self.0)(notice);
    }
}

impl Default for Watcher {
    /// Writes to the log.
    fn default() -> Self {
        Self::new(|notice| log::info!("{notice}"))
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}
