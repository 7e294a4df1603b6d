//! How large the buffers of a connection are.
//!
//! **Law:** all buffers of a step together take at most [`TOTAL`] bytes, and twice [`MIN`] for each
//! connection. The first connections get large ones, each further one a fixed part of what is left.

/// Memory for large buffers, in bytes.
const TOTAL: usize = 48 << 20;

/// A connection's two buffers are this part of what is left.
const PART: usize = 24;

/// Largest buffer in bytes: several segments of the longest kind, so that the two ends overlap.
const MAX: usize = 1 << 20;

/// Smallest buffer in bytes.
const MIN: usize = 8 << 10;

/// The buffers of all connections of a step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    used: usize,
}

impl Buffers {
    /// The size of each of the two buffers of a new connection.
    pub(super) fn take(&mut self) -> usize {
        let left = TOTAL.saturating_sub(self.used);
        let size = (left / PART / 2).clamp(MIN, MAX);
        self.used += 2 * size;
        size
    }

    /// Both buffers of a connection are gone.
    pub(super) const fn give_back(&mut self, size: usize) {
        self.used = self.used.saturating_sub(2 * size);
    }
}

#[cfg(test)]
mod tests {
    use wire::flow::MAX_FLOWS;

    use super::*;

    #[test]
    fn buffers_shrink_and_their_sum_has_a_bound() {
        let mut buffers = Buffers::default();
        let sizes: Vec<usize> = (0..MAX_FLOWS).map(|_| buffers.take()).collect();
        assert_eq!((sizes[0], sizes[MAX_FLOWS - 1]), (MAX, MIN));
        assert!(sizes[30] >= 256 << 10, "{}", sizes[30]);
        assert!(buffers.used <= TOTAL + 2 * MIN * MAX_FLOWS);
        for size in sizes {
            buffers.give_back(size);
        }
        assert_eq!(buffers.used, 0);
    }
}
