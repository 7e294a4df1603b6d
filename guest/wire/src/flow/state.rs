//! One flow: its two directions, and the arithmetic of its windows.

use super::budget::Budget;
use super::violation::FlowViolation;
use super::{DATAGRAM_COST, MAX_FLOW_DATA, MAX_FLOW_WINDOW, Protocol};
use crate::frame::Kind;

/// What one frame of data costs.
pub(super) const fn cost(protocol: Protocol, len: usize) -> u64 {
    match protocol {
        Protocol::Tcp => len as u64,
        Protocol::Udp => len as u64 + DATAGRAM_COST as u64,
    }
}

/// Whether the host has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Open,
    /// We have sent a reset, and wait until the peer is done with the flow, too.
    Resetting,
}

/// One flow, as one end knows it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) phase: Phase,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
}

impl Flow {
    /// A flow whose peer may send `receive` bytes, while we may send `send`.
    pub(super) const fn new(protocol: Protocol, send: u32, receive: u32) -> Self {
        Self {
            protocol,
            phase: Phase::Opening,
            sending: Sending {
                window: send,
                offset: 0,
                ended: false,
            },
            receiving: Receiving {
                window: receive,
                held: 0,
                offset: 0,
                ended: false,
            },
        }
    }

    /// Whether both directions have ended, so that the peer knows nothing more about it either.
    pub(super) const fn over(&self) -> bool {
        self.sending.ended && self.receiving.ended
    }

    /// The most bytes that one frame may carry now. `None`: not even an empty datagram.
    pub(super) fn room(&self) -> Option<usize> {
        if self.phase != Phase::Open || self.sending.ended {
            return None;
        }
        let room = match self.protocol {
            Protocol::Tcp => Some(self.sending.window).filter(|room| *room > 0),
            Protocol::Udp => self.sending.window.checked_sub(DATAGRAM_COST),
        };
        room.map(|room| room.min(MAX_FLOW_DATA) as usize)
    }
}

/// The direction in which we send.
#[derive(Debug)]
pub(super) struct Sending {
    /// What the peer has granted and we have not used.
    pub(super) window: u32,
    pub(super) offset: u64,
    pub(super) ended: bool,
}

impl Sending {
    /// Counts a frame for which there is room.
    pub(super) fn sent(&mut self, protocol: Protocol, len: usize) {
        let cost = u32::try_from(cost(protocol, len)).unwrap_or(u32::MAX);
        self.window = self.window.saturating_sub(cost);
        self.offset = self.offset.saturating_add(len as u64);
    }

    pub(super) fn credit(&mut self, flow: u64, credit: u64) -> Result<(), FlowViolation> {
        let sum = u64::from(self.window).saturating_add(credit);
        match u32::try_from(sum) {
            Ok(sum) if credit > 0 && sum <= MAX_FLOW_WINDOW => self.window = sum,
            _ => return Err(FlowViolation::BadCredit { flow, credit }),
        }
        Ok(())
    }
}

/// The direction in which we receive.
#[derive(Debug)]
pub(super) struct Receiving {
    /// What we have granted and the peer has not used.
    pub(super) window: u32,
    /// What was received and not yet consumed.
    pub(super) held: u32,
    pub(super) offset: u64,
    pub(super) ended: bool,
}

impl Receiving {
    /// What this direction takes from the budget.
    pub(super) const fn used(&self) -> u32 {
        self.window.saturating_add(self.held)
    }

    pub(super) fn data(
        &mut self,
        flow: u64,
        protocol: Protocol,
        offset: u64,
        len: usize,
    ) -> Result<(), FlowViolation> {
        self.check(flow, Kind::FlowData, offset)?;
        if len == 0 && protocol == Protocol::Tcp {
            return Err(FlowViolation::Empty(flow));
        }
        let (cost, window) = (cost(protocol, len), self.window);
        match u32::try_from(cost) {
            Ok(cost) if cost <= window => {
                self.window -= cost;
                self.held += cost;
            }
            _ => return Err(FlowViolation::Overrun { flow, cost, window }),
        }
        self.offset = self.offset.saturating_add(len as u64);
        Ok(())
    }

    /// Checks that this direction goes on, at this offset.
    pub(super) fn check(&self, flow: u64, kind: Kind, offset: u64) -> Result<(), FlowViolation> {
        if self.ended {
            return Err(FlowViolation::OutOfOrder { kind, flow });
        }
        let (want, got) = (self.offset, offset);
        if want != got {
            return Err(FlowViolation::Gap { flow, want, got });
        }
        Ok(())
    }

    /// Frees what was consumed, and decides how much to grant anew. Small credits are saved up, except
    /// where a datagram might be lost for lack of one.
    pub(super) fn consumed(
        &mut self,
        protocol: Protocol,
        bytes: u32,
        budget: &mut Budget,
    ) -> Option<u32> {
        let freed = bytes.min(self.held);
        self.held -= freed;
        budget.give_back(freed);
        if self.ended {
            return None;
        }
        let share = budget.share(self.used());
        let least = match protocol {
            Protocol::Tcp => share / 2,
            Protocol::Udp => share / 8,
        };
        let grant = share.saturating_sub(self.used());
        if grant < least.max(1) {
            return None;
        }
        self.window += grant;
        budget.take(grant);
        Some(grant)
    }
}
