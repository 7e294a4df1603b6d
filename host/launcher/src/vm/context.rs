//! What every attempt of a boot needs.

use std::path::PathBuf;

use super::error::BootError;
use super::registry::Registry;
use crate::accel::{self, Conditions, Verdict, Verdicts};
use crate::host;
use crate::monitor::confine::{self, Walls};
use crate::monitor::qemu::Qemu;
use crate::options::Options;

/// The options of a VM, and what the host offers for it.
pub(crate) struct BootContext<'a> {
    pub(crate) options: &'a Options,
    pub(crate) registry: &'a dyn Registry,
    pub(super) qemu: Qemu,
    pub(crate) memory_mib: u64,
    /// Memory that all VMs may have together, in bytes.
    pub(crate) total_memory: u64,
    pub(super) cpus: usize,
    boot_id: String,
}

impl<'a> BootContext<'a> {
    /// Finds QEMU and looks at the host.
    pub(crate) fn new(options: &'a Options, registry: &'a dyn Registry) -> Result<Self, BootError> {
        let total_memory = options.total_memory.unwrap_or_else(host::total_memory);
        Ok(Self {
            options,
            registry,
            qemu: Qemu::find(&options.qemu)?,
            memory_mib: options
                .memory_mib
                .unwrap_or_else(|| host::default_memory_mib(total_memory)),
            total_memory,
            cpus: options.cpus.unwrap_or_else(host::default_cpus),
            boot_id: host::boot_id()?,
        })
    }

    /// The walls around a monitor that opens these devices.
    pub(super) fn walls(&self, devices: &[PathBuf]) -> Walls {
        let walls = confine::detect(&self.qemu, devices);
        #[cfg(test)]
        let walls = walls.without(&self.options.torn_down);
        walls
    }

    /// What a verdict about KVM depends on here.
    pub(super) fn conditions(&self) -> Conditions {
        Conditions {
            boot: self.boot_id.clone(),
            qemu: self.qemu.version.clone(),
            kernel: self.options.image.manifest.kernel_sha256.clone(),
        }
    }

    /// What earlier boots found out about KVM.
    pub(super) fn verdicts(&self) -> Verdicts {
        Verdicts::from_bytes(self.registry.load(accel::CACHE).as_deref())
    }

    /// Remembers what this boot found out about KVM.
    pub(super) fn remember(&self, verdict: Verdict) {
        let mut verdicts = self.verdicts();
        let conditions = self.conditions();
        if verdicts.get(&conditions) == Some(&verdict) {
            return;
        }
        verdicts.set(conditions, verdict);
        // Without it the next boot tries KVM again, that is all.
        if let Err(err) = self.registry.save(accel::CACHE, &verdicts.to_bytes()) {
            log::warn!("cannot remember whether KVM works: {err}");
        }
    }
}
