//! Options: how a builder VM is configured.

use std::path::PathBuf;

use egress::{Egress, Policy};
use exec::Cancel;

use crate::accel::Accel;
use crate::guest_image::GuestImage;
use crate::monitor::qemu::PROGRAM;
use crate::monitor::trampoline::Trampoline;
use crate::notice::Watcher;
use crate::transport::Transport;
use crate::vsock::VsockBackend;

/// Size of the guest disk in bytes. The file is sparse, so it takes only what is written to it.
pub const DISK_SIZE: u64 = 64 << 30;

/// How many bytes the changes of one step may have, unless another limit is set.
pub const STEP_DISK: u64 = 16 << 30;

/// How to make builder VMs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel and initramfs.
    pub image: GuestImage,
    /// QEMU's program, a path or a name to look up in `PATH`.
    pub qemu: PathBuf,
    /// What executes the guest.
    pub accel: Accel,
    /// The driver by which the guest reaches its vsock device.
    pub transport: Transport,
    /// What provides that device.
    pub vsock: VsockBackend,
    /// Memory in MiB; `None`: half of `total_memory`, within bounds.
    pub memory_mib: Option<u64>,
    /// Memory in bytes that the VMs of all builds with one store may have together; `None`: what the host
    /// has, or the control group of this process, less a reserve.
    pub total_memory: Option<u64>,
    /// Virtual processors; `None`: as many as the host has, within bounds.
    pub cpus: Option<usize>,
    /// Size of the guest disk in bytes. It bounds what one build may write.
    pub disk_size: u64,
    /// How many bytes the changes of one step may have, sparse files counted with their full length. They
    /// are copied to the store, so what is free there counts, too.
    pub step_disk: u64,
    /// What steps with network access reach. The VM itself has no network device.
    pub egress: Egress,
    /// How this program is started again to become a monitor.
    pub trampoline: Trampoline,
    /// Receives notices about the VM.
    pub watcher: Watcher,
    /// Walls around the monitor that a test leaves out.
    #[cfg(test)]
    pub(crate) torn_down: Vec<crate::monitor::confine::Wall>,
    /// The build's cancel. It ends what the steps' own cancels do not: a boot, and the waits for an
    /// orderly end of the VM.
    pub cancel: Cancel,
    /// Faults that a test injects between host and guest.
    #[cfg(test)]
    pub(crate) failpoints: crate::session::testing::failpoints::Failpoints,
}

impl Options {
    /// The default VM from this image.
    #[must_use]
    pub fn new(image: GuestImage) -> Self {
        Self {
            image,
            qemu: PROGRAM.into(),
            accel: Accel::Auto,
            transport: Transport::Auto,
            vsock: VsockBackend::Embedded,
            memory_mib: None,
            total_memory: None,
            cpus: None,
            disk_size: DISK_SIZE,
            step_disk: STEP_DISK,
            egress: Egress::new(Policy::default()),
            trampoline: Trampoline::default(),
            watcher: Watcher::default(),
            cancel: Cancel::new(),
            #[cfg(test)]
            torn_down: Vec::new(),
            #[cfg(test)]
            failpoints: crate::session::testing::failpoints::Failpoints::default(),
        }
    }

    /// The driver by which the guest reaches its device. The default for an external device is the
    /// kernel's driver: that is the one it was made for, and a device may silently refuse slots as
    /// large as ours.
    pub(crate) fn driver(&self) -> Transport {
        match (self.transport, &self.vsock) {
            (Transport::Auto, VsockBackend::Device { .. } | VsockBackend::Host) => {
                Transport::Kernel
            }
            (chosen, _) => chosen,
        }
    }
}
