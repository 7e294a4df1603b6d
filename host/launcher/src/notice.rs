//! Notices: what happens to a VM, for users who watch a build.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
            Self::Lost(why) => write!(f, "the builder VM was lost: {why}"),
        }
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
