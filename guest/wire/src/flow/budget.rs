//! How much the peer may send, over all flows of a connection.
//!
//! **Law:** what was granted and not yet consumed never exceeds the budget by more than
//! [`MIN_FLOW_WINDOW`] for each flow, and half of the budget for flows that ended before their data
//! was consumed. The first flows get large windows, and each further one a fixed part of what is
//! left, so that nobody has to take back what was granted.

use super::{MAX_FLOW_WINDOW, MIN_FLOW_WINDOW};

/// A flow's window is this part of what is left: large enough that one flow is fast, small enough
/// that the hundredth is not slow.
const PART: u64 = 32;

/// What the peer may send, and what it sent that was not consumed, of all flows.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    used: u64,
    /// The part of `used` that belongs to flows which are over.
    lingering: u64,
}

impl Budget {
    pub(super) const fn new(total: u64) -> Self {
        Self {
            total,
            used: 0,
            lingering: 0,
        }
    }

    /// How much a flow should have that has `own` bytes already.
    pub(super) fn share(&self, own: u32) -> u32 {
        let others = self.used.saturating_sub(own.into());
        let part = self.total.saturating_sub(others) / PART;
        u32::try_from(part)
            .unwrap_or(u32::MAX)
            .clamp(MIN_FLOW_WINDOW, MAX_FLOW_WINDOW)
    }

    /// Whether flows that are over hold so much that there must not be another flow.
    pub(super) const fn crowded(&self) -> bool {
        self.lingering >= self.total / 2
    }

    /// A flow is over before so much of its data was consumed.
    pub(super) const fn lingers(&mut self, bytes: u32) {
        self.lingering = self.lingering.saturating_add(bytes as u64);
    }

    pub(super) fn no_longer_lingers(&mut self, bytes: u32) {
        self.lingering = self.lingering.saturating_sub(bytes.into());
        self.give_back(bytes);
    }

    pub(super) const fn take(&mut self, bytes: u32) {
        self.used = self.used.saturating_add(bytes as u64);
    }

    pub(super) fn give_back(&mut self, bytes: u32) {
        debug_assert!(self.used >= u64::from(bytes), "given back twice");
        self.used = self.used.saturating_sub(bytes.into());
    }

    #[cfg(test)]
    pub(super) const fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::MAX_FLOWS;

    #[test]
    fn windows_shrink_and_their_sum_has_a_bound() {
        let mut budget = Budget::new(64 << 20);
        let mut windows = Vec::new();
        for _ in 0..MAX_FLOWS {
            let window = budget.share(0);
            budget.take(window);
            windows.push(window);
        }
        assert_eq!(windows[0], MAX_FLOW_WINDOW);
        assert!(windows[100] >= 64 << 10, "{}", windows[100]);
        assert!(windows.is_sorted_by(|a, b| a >= b));
        assert_eq!(windows.last(), Some(&MIN_FLOW_WINDOW));
        let most = (64 << 20) + MAX_FLOWS as u64 * u64::from(MIN_FLOW_WINDOW);
        assert!(budget.used() <= most, "{}", budget.used());
    }
}
