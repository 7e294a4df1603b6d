//! What is known about a VM when it has ended.

use std::time::Duration;

use crate::monitor::confine::Observed;

/// Facts and figures of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmReport {
    /// Time from the monitor's start to the agent's hello.
    pub boot: Duration,
    /// What executed the guest: `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// The driver by which the guest reached its vsock device: `ring` or `kernel`.
    pub transport: &'static str,
    /// Name and version of the agent.
    pub agent: String,
    /// What the kernel says about the confinement of the monitor; `None` if it could not be asked.
    pub confinement: Option<Observed>,
    /// Peak resident memory of the agent in bytes; zero if it could not be asked.
    pub agent_memory_peak: u64,
    /// Layers that went whole in either direction.
    pub transfers: TransferStats,
}

/// Layers that went whole between host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferStats {
    /// Layers that the guest received and unpacked.
    pub imported: TransferTotals,
    /// Changes of steps that the guest sent and the store ingested.
    pub exported: TransferTotals,
}

/// Layers that went in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferTotals {
    /// Sizes of their tars.
    pub bytes: u64,
    /// The sum of the times that they took, from the request to the end of unpacking or storing.
    pub time: Duration,
}

impl TransferTotals {
    pub(crate) fn count(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.time += time;
    }
}
