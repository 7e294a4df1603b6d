//! One builder VM from its boot to its end.

mod attempt;
mod boot;
pub(crate) mod home;
mod parts;
#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vsock_device::{Listener, Stream};

pub use attempt::BootError;
pub(crate) use boot::{Context, boot};
pub(crate) use parts::{End, Parts};

use crate::monitor::process::Monitor;
use crate::monitor::qemu::Engine;
use crate::options::VmReport;
use crate::session::{Door, Limits, Link, Lost, Moved, Session};
use crate::transport::Transport;

/// How long a VM whose connection ended may take to show that its monitor ended too.
const END_SHOWS: Duration = Duration::from_secs(2);

/// Lines of a console that help to understand an end.
const LAST_LINES: usize = 12;

/// A VM whose agent said hello.
#[derive(Debug)]
pub(crate) struct Vm {
    session: Arc<Session>,
    monitor: Arc<Monitor>,
    limits: Limits,
    boot: Duration,
    engine: Engine,
    parts: Mutex<Parts>,
}

impl Vm {
    /// The conversation with its agent.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Ends it. Returns what could not be done; doing it again changes nothing.
    pub(crate) fn end(&self, how: End) -> Vec<home::HomeError> {
        self.parts().end(how)
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about it. Asks the guest for what it alone knows.
    pub(crate) fn report(&self) -> VmReport {
        let agent_memory_peak = self.session.stat().map_or(0, |stat| stat.agent_memory_peak);
        let Moved { put, taken } = *self.session.moved();
        VmReport {
            put,
            taken,
            boot: self.boot,
            accelerator: match self.engine {
                Engine::Kvm => "kvm",
                Engine::Tcg => "tcg",
            },
            transport: Transport::name(self.session.features),
            agent: self.session.software.clone(),
            agent_memory_peak,
        }
    }

    /// Kills its monitor behind its back.
    #[cfg(test)]
    pub(crate) fn kill_monitor(&self) {
        self.monitor.kill(END_SHOWS).unwrap().unwrap();
    }

    /// The process id of its monitor.
    #[cfg(test)]
    pub(crate) fn monitor_pid(&self) -> u32 {
        self.monitor.id()
    }

    /// How long single waits for its guest may last.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Says why the VM was lost, with what its monitor and its console have to say about it.
    pub(crate) fn explain(&self, lost: &Lost) -> String {
        // If our device cut the connections, it knows why, and they do not.
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
            | Lost::MonitorEnded(_)
            | Lost::Ended => false,
        };
        if may_be_cut && let Ok(Some(status)) = self.monitor.wait(END_SHOWS) {
            // A guest whose violation ended its connection powers off, in order; only a monitor that
            // ended otherwise may be why a frame or the device is broken.
            let is_a_violation = matches!(lost, Lost::Violation(_) | Lost::Device(_));
            if !(is_a_violation && status.success()) {
                text = format!("its monitor ended ({status})");
            }
        }
        text + &last_words(&self.monitor)
    }
}

/// What monitor and console said last, as an appendix to a message.
fn last_words(monitor: &Monitor) -> String {
    let mut text = String::new();
    for (who, tail) in [
        ("monitor", &monitor.messages),
        ("console", &monitor.console),
    ] {
        for line in tail.last_lines(LAST_LINES) {
            text.push_str(&format!("\n  {who}: {line}"));
        }
    }
    text
}

/// What executes the guest decides how slow it may be.
fn limits(engine: Engine) -> Limits {
    match engine {
        Engine::Kvm => Limits::native(),
        Engine::Tcg => Limits::emulated(),
    }
}

impl Link for Stream {
    fn read(&self, buf: &mut [u8]) -> std::io::Result<usize> {
        Self::read(self, buf)
    }

    fn send(&self, data: Vec<u8>) -> std::io::Result<()> {
        Self::send(self, data)
    }

    fn finish(&self) -> std::io::Result<()> {
        self.shutdown_write()
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

impl Door for Listener {
    fn accept(&self, timeout: Duration) -> std::io::Result<Arc<dyn Link>> {
        Ok(Arc::new(Self::accept(self, Some(timeout))?))
    }
}
