//! What the device counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::violation::Violation;

/// What a device has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets written to the guest, of every kind.
    pub packets_to_guest: u64,
    /// Payload bytes written to the guest.
    pub bytes_to_guest: u64,
    /// Packets read from the guest, of every kind.
    pub packets_from_guest: u64,
    /// Payload bytes read from the guest.
    pub bytes_from_guest: u64,
    /// Interrupts sent to the guest.
    pub interrupts: u64,
    /// Connections that were opened, by either side.
    pub connections: u64,
    /// Packets that were answered with a reset because they belong to no connection.
    pub refused: u64,
    /// Such resets that were dropped because the guest did not fetch earlier ones.
    pub refusals_dropped: u64,
    /// Violations of the guest, by kind. A kind that never happened is absent.
    pub violations: BTreeMap<Violation, u64>,
}

/// A number that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The live form of [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    pub(crate) packets_to_guest: Counter,
    pub(crate) bytes_to_guest: Counter,
    pub(crate) packets_from_guest: Counter,
    pub(crate) bytes_from_guest: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) connections: Counter,
    pub(crate) refused: Counter,
    pub(crate) refusals_dropped: Counter,
    violations: [Counter; Violation::ALL.len()],
}

impl LiveCounters {
    /// Counts a violation. Returns how many there were of all kinds.
    pub(crate) fn violation(&self, violation: Violation) -> u64 {
        let kinds = Violation::ALL.iter().zip(&self.violations);
        for (_, counter) in kinds.clone().filter(|(kind, _)| **kind == violation) {
            counter.add(1);
        }
        kinds.map(|(_, counter)| counter.get()).sum()
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let violations = Violation::ALL
            .into_iter()
            .zip(self.violations.iter().map(Counter::get));
        Counters {
            packets_to_guest: self.packets_to_guest.get(),
            bytes_to_guest: self.bytes_to_guest.get(),
            packets_from_guest: self.packets_from_guest.get(),
            bytes_from_guest: self.bytes_from_guest.get(),
            interrupts: self.interrupts.get(),
            connections: self.connections.get(),
            refused: self.refused.get(),
            refusals_dropped: self.refusals_dropped.get(),
            violations: violations.filter(|&(_, n)| n > 0).collect(),
        }
    }
}
