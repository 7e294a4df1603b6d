//! What the device counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that a correct guest never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// A descriptor chain that loops, leaves memory, has the wrong direction, or is too short or
    /// too long for a packet.
    MalformedChain,
    /// A packet that claims to come from another guest.
    WrongSource,
    /// A packet of an unknown type or with an unknown operation.
    UnknownPacket,
    /// An operation that makes no sense in the state of its connection.
    UnexpectedOperation,
    /// Bytes after the guest had said that there would be none.
    DataAfterShutdown,
    /// More bytes than the receive buffer holds.
    CreditOverrun,
    /// An acknowledgement of bytes that were never sent.
    CreditLie,
}

impl Violation {
    const ALL: [Self; 7] = [
        Self::MalformedChain,
        Self::WrongSource,
        Self::UnknownPacket,
        Self::UnexpectedOperation,
        Self::DataAfterShutdown,
        Self::CreditOverrun,
        Self::CreditLie,
    ];
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MalformedChain => "malformed descriptor chain",
            Self::WrongSource => "packet from a foreign context id",
            Self::UnknownPacket => "packet of unknown type or operation",
            Self::UnexpectedOperation => "operation in the wrong state",
            Self::DataAfterShutdown => "data after shutdown",
            Self::CreditOverrun => "more data than there was credit for",
            Self::CreditLie => "acknowledged data that was not sent",
        })
    }
}

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
    /// Connections that came into being, opened by either side.
    pub connections: u64,
    /// Packets that were answered with a reset because they belong to no connection.
    pub refused: u64,
    /// Such answers that were dropped because the guest did not fetch earlier ones.
    pub refusals_dropped: u64,
    /// What the guest did wrong, by kind. A kind that never happened is absent.
    pub violations: BTreeMap<Violation, u64>,
}

/// One number that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The live form of [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) packets_to_guest: Tally,
    pub(crate) bytes_to_guest: Tally,
    pub(crate) packets_from_guest: Tally,
    pub(crate) bytes_from_guest: Tally,
    pub(crate) interrupts: Tally,
    pub(crate) connections: Tally,
    pub(crate) refused: Tally,
    pub(crate) refusals_dropped: Tally,
    violations: [Tally; Violation::ALL.len()],
}

impl Tallies {
    /// Counts a violation. Returns how many there have been of all kinds.
    pub(crate) fn violation(&self, violation: Violation) -> u64 {
        let kinds = Violation::ALL.iter().zip(&self.violations);
        for (_, tally) in kinds.clone().filter(|(kind, _)| **kind == violation) {
            tally.add(1);
        }
        kinds.map(|(_, tally)| tally.get()).sum()
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let violations = Violation::ALL
            .into_iter()
            .zip(self.violations.iter().map(Tally::get));
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
