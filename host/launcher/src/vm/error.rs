//! Why a VM did not boot.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;
use vsock_device::DeviceError;

use super::registry::RegistryError;
use crate::guest_image::GuestImageError;
use crate::monitor::qemu::QemuError;
use crate::session::Lost;

/// Why a VM did not boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The guest image cannot be used.
    #[error(transparent)]
    Image(#[from] GuestImageError),
    /// QEMU cannot be used.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The guest disk cannot be created.
    #[error("cannot create the guest disk `{}`", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The vsock device cannot be created.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The socket for the agent's connections cannot be opened.
    #[error("cannot listen at {address} for the builder VM")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The host cannot do its part.
    #[error("cannot start the builder VM")]
    Host(#[from] io::Error),
    /// The store cannot record a resource.
    #[error("cannot record the builder VM in the store")]
    Record(#[source] RegistryError),
    /// The monitor ended before the agent said hello.
    #[error("QEMU exited ({status}) before the agent was ready{words}")]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines of monitor and console, each indented.
        words: String,
    },
    /// The agent never connected.
    #[error("the builder VM did not connect within {} s{words}", after.as_secs())]
    Silent {
        /// How long it had.
        after: Duration,
        /// The last lines of monitor and console, each indented.
        words: String,
    },
    /// The agent connected, but no session came about.
    #[error("cannot start a session with the agent in the builder VM{words}")]
    Agent {
        /// Why.
        source: Lost,
        /// The last lines of monitor and console, each indented.
        words: String,
    },
}

impl BootError {
    /// Whether the monitor ended by a fault of its own.
    pub(super) fn is_a_crash(&self) -> bool {
        let Self::Ended { status, .. } = self else {
            return false;
        };
        let signal = status.signal().map(Signal::try_from);
        let faults = [
            Signal::SIGABRT,
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
        ];
        signal.is_some_and(|signal| signal.is_ok_and(|signal| faults.contains(&signal)))
    }

    /// Whether another accelerator may help: true for everything that shows only in the
    /// guest. A problem of the host itself would remain.
    pub(super) fn is_in_the_guest(&self) -> bool {
        match self {
            Self::Ended { .. } | Self::Silent { .. } => true,
            Self::Agent { source, .. } => !matches!(source, Lost::Version { .. } | Lost::Nonce),
            Self::Cancelled
            | Self::Image(_)
            | Self::Qemu(_)
            | Self::Disk { .. }
            | Self::Device(_)
            | Self::Listen { .. }
            | Self::Host(_)
            | Self::Record(_) => false,
        }
    }
}
