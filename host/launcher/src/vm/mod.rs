//! One builder VM from its boot to its end.
//!
//! | module | what it does |
//! |---|---|
//! | `context` | looks at the host once, for all attempts of a boot |
//! | `boot` | chooses the accelerator by trying |
//! | `attempt` | one attempt: makes the parts, one after the other |
//! | `connect` | where the guest connects, and the wait for its first connection |
//! | `parts` | the parts of a VM, and their only end |
//! | `registry` | records of the parts that outlive this process |

mod attempt;
mod boot;
mod connect;
mod context;
mod error;
mod parts;
pub(crate) mod registry;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use attempt::DISK;
pub(crate) use boot::boot;
pub(crate) use context::BootContext;
pub use error::BootError;
pub(crate) use parts::Parts;

use crate::monitor::confine::Observed;
use crate::monitor::machine::Accelerator;
use crate::monitor::process::Monitor;
use crate::report::VmReport;
use crate::session::{Limits, Lost, Session};
use crate::transport::Transport;

/// How long after the end of a VM's connection its monitor may take to end too.
const END_SHOWS: Duration = Duration::from_secs(2);

/// A VM whose agent said hello.
#[derive(Debug)]
pub(crate) struct Vm {
    session: Arc<Session>,
    monitor: Arc<Monitor>,
    boot: Duration,
    accelerator: Accelerator,
    parts: Mutex<Parts>,
}

impl Vm {
    /// The conversation with its agent.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Ends it. Returns what could not be cleaned up; a second call changes nothing.
    pub(crate) fn end(&self) -> Vec<registry::RegistryError> {
        self.parts().end()
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about it. Asks the guest for what only the guest knows.
    pub(crate) fn report(&self) -> VmReport {
        let agent_memory_peak = self.session.stat().map_or(0, |stat| stat.agent_memory_peak);
        VmReport {
            transfers: *self.session.stats(),
            boot: self.boot,
            accelerator: match self.accelerator {
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg",
            },
            transport: Transport::name(self.session.features),
            agent: self.session.software.clone(),
            confinement: Observed::of(self.monitor.id()).ok(),
            agent_memory_peak,
        }
    }

    /// Kills its monitor without the knowledge of its session.
    #[cfg(test)]
    pub(crate) fn kill_monitor(&self) {
        self.monitor.kill(END_SHOWS).unwrap().unwrap();
    }

    /// The process id of its monitor.
    #[cfg(test)]
    pub(crate) fn monitor_pid(&self) -> u32 {
        self.monitor.id()
    }

    /// Why the VM was lost, with the last lines of its monitor and its console.
    pub(crate) fn explain(&self, lost: &Lost) -> String {
        // If our device cut the connections, the reason is its own, not that of the connections.
        let device = matches!(lost, Lost::Closed | Lost::Connection(_))
            .then(|| self.parts().device_failure())
            .flatten();
        let lost = device.as_ref().unwrap_or(lost);
        let mut text = lost.to_string();
        let may_be_cut = match lost {
            Lost::Closed | Lost::Connection(_) | Lost::Violation(_) | Lost::Device(_) => true,
            Lost::Silent(_)
            | Lost::Version { .. }
            | Lost::Nonce
            | Lost::TooLate { .. }
            | Lost::Disk(_)
            | Lost::Ended => false,
        };
        if may_be_cut && let Ok(Some(status)) = self.monitor.wait(END_SHOWS) {
            // A guest whose violation ended its connection powers off in order. Only a monitor that
            // ended otherwise can be why a frame or the device is broken.
            let is_a_violation = matches!(lost, Lost::Violation(_) | Lost::Device(_));
            if !(is_a_violation && status.success()) {
                text = format!("QEMU exited ({status})");
            }
        }
        text + &self.monitor.last_words()
    }
}

/// The limits for a guest: an emulated one may be slower.
fn limits(accelerator: Accelerator) -> Limits {
    match accelerator {
        Accelerator::Kvm => Limits::native(),
        Accelerator::Tcg => Limits::emulated(),
    }
}
