//! What a builder VM is to be like.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::accel::Accel;
use crate::bridge::Bridge;
use crate::image::VmImage;
use crate::monitor::qemu::PROGRAM;
use crate::monitor::trampoline::Trampoline;
use crate::transport::Transport;

/// Size of the guest disk: sparse, so it costs what is written to it.
pub const DISK_SIZE: u64 = 64 << 30;

/// Guest disks that stay in the pool. More builds than this may run at the same time; their disks
/// then go when they end.
pub const DISKS_KEPT: usize = 4;

/// How to make builder VMs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel and initramfs.
    pub image: VmImage,
    /// QEMU's program, a path or a name to look up in `PATH`.
    pub qemu: PathBuf,
    /// What executes the guest.
    pub accel: Accel,
    /// By which driver the guest reaches its vsock device.
    pub transport: Transport,
    /// Who makes that device.
    pub bridge: Bridge,
    /// Memory in MiB; `None`: half of the host's, within bounds.
    pub memory_mib: Option<u64>,
    /// Virtual processors; `None`: as many as the host has, within bounds.
    pub cpus: Option<usize>,
    /// Size of new guest disks in bytes. It bounds what one build may write.
    pub disk_size: u64,
    /// Guest disks that stay when their VMs have ended.
    pub disks_kept: usize,
    /// Whether the VM has a network at all. Without it no step reaches anything.
    pub network: bool,
    /// How this program is started again to become a monitor.
    pub trampoline: Trampoline,
    /// Is told what happens to the VM.
    pub watcher: Watcher,
    /// What stands between host and guest.
    #[cfg(test)]
    pub(crate) seam: crate::session::proxy::Seam,
}

impl Options {
    /// The usual VM from this image.
    #[must_use]
    pub fn new(image: VmImage) -> Self {
        Self {
            image,
            qemu: PROGRAM.into(),
            accel: Accel::Auto,
            transport: Transport::Auto,
            bridge: Bridge::Embedded,
            memory_mib: None,
            cpus: None,
            disk_size: DISK_SIZE,
            disks_kept: DISKS_KEPT,
            network: true,
            trampoline: Trampoline::default(),
            watcher: Watcher::default(),
            #[cfg(test)]
            seam: crate::session::proxy::Seam::default(),
        }
    }

    /// By which driver the guest is to reach its device. Who does not say gets the kernel's with a
    /// foreign device: that is the driver it was made for, and a device may refuse slots as large as
    /// ours without a word.
    pub(crate) fn driver(&self) -> Transport {
        match (self.transport, &self.bridge) {
            (Transport::Auto, Bridge::Device(..) | Bridge::Host) => Transport::Kernel,
            (chosen, _) => chosen,
        }
    }
}

/// What is known about a VM when it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmReport {
    /// Time from the monitor's start to the agent's hello.
    pub boot: Duration,
    /// What executed the guest: `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// By which driver the guest reached its vsock device: `ring` or `kernel`.
    pub transport: &'static str,
    /// Name and version of the agent.
    pub agent: String,
    /// Peak resident memory of the agent in bytes; zero if it could not be asked.
    pub agent_memory_peak: u64,
    /// Layers that the guest received and unpacked.
    pub put: Transferred,
    /// Changes of steps that the guest sent and the store took in.
    pub taken: Transferred,
}

/// Layers that went in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transferred {
    /// Sizes of their tars.
    pub bytes: u64,
    /// The sum of the times that they took, from the request to the end of unpacking or storing.
    pub time: Duration,
}

impl Transferred {
    pub(crate) fn count(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.time += time;
    }
}

/// What happens to a VM, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A VM starts.
    Booting {
        /// By emulation, which is slow.
        emulated: bool,
    },
    /// KVM cannot be used, for this reason. The VM runs by emulation.
    NoKvm(String),
    /// The agent said hello.
    Ready {
        /// Time since the monitor was started.
        took: Duration,
    },
    /// The VM was lost, for this reason. Steps that ran in it are run again in a new one, once.
    Lost(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booting { emulated: false } => f.write_str("booting the builder VM"),
            Self::Booting { emulated: true } => {
                f.write_str("booting the builder VM (emulated, slow)")
            }
            Self::NoKvm(why) => write!(f, "KVM cannot be used, steps will be slow: {why}"),
            Self::Ready { took } => {
                write!(
                    f,
                    "the builder VM is ready after {:.1} s",
                    took.as_secs_f32()
                )
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
