//! How many receive slots each connection may hold.
//!
//! Byte credit is not slot credit: a packet occupies a whole slot, however small it is. So each
//! connection is granted a number of slots, and its byte credit is their total size. A payload that
//! is small, or that exceeds the connection's slots, is copied out, and its slot returns to the
//! device at once.
//!
//! Invariant: granted slots plus the reserve never exceed the total, and no connection holds more
//! than its grant. So at least [`Slots::reserve`] slots are always with the device or on their way to
//! it, whatever readers do and however small packets are. What is copied is bounded by byte credit.

/// Byte credit of a connection that could not be granted a slot; everything it receives is copied.
pub(crate) const COPY_WINDOW: u32 = 64 * 1024;

/// Payloads up to this size are copied: a copy costs less than a missing slot.
pub(crate) const COPYBREAK: usize = 4 * 1024;

/// The share of one connection. It returns with [`Slots::release`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    slots: usize,
    bytes: u32,
    held: usize,
}

impl Grant {
    /// The connection's `buf_alloc`.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether a payload of `len` bytes may stay in its slot, which is then held.
    #[must_use]
    pub(crate) fn hold(&mut self, len: usize) -> bool {
        let may = len > COPYBREAK && self.held < self.slots;
        if may {
            self.held += 1;
        }
        may
    }

    /// Releases one held slot.
    pub(crate) fn release_one(&mut self) {
        debug_assert!(self.held > 0, "released more slots than were held");
        self.held = self.held.saturating_sub(1);
    }

    /// Slots that this connection may hold.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Slots that this connection holds now.
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}

/// All receive slots of an endpoint.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Slots {
    total: usize,
    granted: usize,
    slot_bytes: u32,
    window: usize,
}

impl Slots {
    /// Manages `total` slots of `slot_bytes` each, of which a connection gets up to `window`.
    pub(crate) fn new(total: usize, slot_bytes: u32, window: usize) -> Self {
        Self {
            total,
            granted: 0,
            slot_bytes,
            window,
        }
    }

    /// Slots that no connection may hold.
    pub(crate) fn reserve(&self) -> usize {
        (self.total / 8).max(1)
    }

    /// A share for one more connection. Never more than a quarter of what is left, so that later
    /// ones get something too. When nothing is left, that connection's payloads are all copied.
    pub(crate) fn grant(&mut self) -> Grant {
        let free = self
            .total
            .saturating_sub(self.reserve())
            .saturating_sub(self.granted);
        let slots = self.window.min((free / 4).max(1)).min(free);
        self.granted += slots;
        let bytes = u32::try_from(slots)
            .ok()
            .and_then(|slots| slots.checked_mul(self.slot_bytes))
            .unwrap_or(u32::MAX);
        Grant {
            slots,
            bytes: if slots == 0 { COPY_WINDOW } else { bytes },
            held: 0,
        }
    }

    /// Slots that connections may hold, and the total.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn granted(&self) -> (usize, usize) {
        (self.granted, self.total)
    }

    /// Takes a share back. No slot of it may be held any more.
    pub(crate) fn release(&mut self, grant: &Grant) {
        debug_assert_eq!(grant.held, 0, "returned a share that is in use");
        self.granted = self.granted.saturating_sub(grant.slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_connections_get_their_window_and_later_ones_less() {
        let mut slots = Slots::new(64, 1000, 8);
        let bytes: Vec<u32> = (0..20).map(|_| slots.grant().bytes()).collect();
        assert_eq!(bytes[..5], [8000, 8000, 8000, 8000, 6000]);
        assert_eq!(bytes[10], 1000);
        assert_eq!(bytes[19], COPY_WINDOW);
    }

    #[test]
    fn small_payloads_never_hold_a_slot() {
        let mut grant = Slots::new(8, 1 << 20, 4).grant();
        assert!(!grant.hold(COPYBREAK));
        assert!(grant.hold(COPYBREAK + 1));
        assert_eq!(grant.held(), 1);
    }

    proptest! {
        /// Whatever is granted, held, released and returned: the reserve stays.
        #[test]
        fn the_reserve_is_never_touched(
            total in 1usize..100,
            window in 1usize..20,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..300),
        ) {
            let mut slots = Slots::new(total, 4096, window);
            let mut grants: Vec<Grant> = Vec::new();
            for (step, which) in steps {
                if step == 0 || grants.is_empty() {
                    grants.push(slots.grant());
                    continue;
                }
                let at = which.index(grants.len());
                match step {
                    1 => { let _held = grants[at].hold(1 << 20); }
                    2 if grants[at].held() > 0 => grants[at].release_one(),
                    3 if grants[at].held() == 0 => slots.release(&grants.swap_remove(at)),
                    _ => {}
                }
                let held: usize = grants.iter().map(Grant::held).sum();
                prop_assert!(held + slots.reserve() <= total.max(1));
            }
        }
    }
}
