//! What one build writes to the store, and how much it may.
//!
//! The law: bytes count before they are written, and until their file is discarded. So what a build has
//! added, finished or not, is never more than its limit, however many of its threads write. Content that
//! the store has already is discarded, and costs nothing in the end.
//!
//! Layers and blobs count. Their indexes, the database and the logs of steps do not: an index is smaller
//! than its layer, and each log has a limit of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::OverBudget;

/// The bytes that a build may write, and those that it has written.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Bytes that count now.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    fn take(&self, n_bytes: u64) -> Result<(), OverBudget> {
        let within = |used: u64| used.checked_add(n_bytes).filter(|sum| *sum <= self.limit);
        let taken = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, within);
        taken.map(drop).map_err(|used| OverBudget {
            used,
            limit: self.limit,
        })
    }

    fn give_back(&self, n_bytes: u64) {
        self.used.fetch_sub(n_bytes, Ordering::SeqCst);
    }
}

/// What one object has taken from the budget of its build, if that has one. The writer of the object and
/// whoever removes it share this.
#[derive(Debug, Clone, Default)]
pub(crate) struct Charge(Option<Arc<Taken>>);

#[derive(Debug)]
struct Taken {
    budget: Arc<Budget>,
    n_bytes: AtomicU64,
}

impl Charge {
    pub(crate) fn new(budget: Option<&Arc<Budget>>) -> Self {
        let taken = |budget: &Arc<Budget>| {
            Arc::new(Taken {
                budget: Arc::clone(budget),
                n_bytes: AtomicU64::new(0),
            })
        };
        Self(budget.map(taken))
    }

    /// Counts bytes that are about to be written.
    pub(crate) fn take(&self, n_bytes: u64) -> Result<(), OverBudget> {
        if let Some(taken) = &self.0 {
            taken.budget.take(n_bytes)?;
            taken.n_bytes.fetch_add(n_bytes, Ordering::SeqCst);
        }
        Ok(())
    }

    /// The object was removed: it counts no more. Doing it again changes nothing.
    pub(crate) fn give_back(&self) {
        if let Some(taken) = &self.0 {
            let n_bytes = taken.n_bytes.swap(0, Ordering::SeqCst);
            taken.budget.give_back(n_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_together_never_take_more_than_the_limit() {
        let budget = Arc::new(Budget::new(1000));
        let took: u64 = std::thread::scope(|scope| {
            let take_all = || {
                let charge = Charge::new(Some(&budget));
                (0..300).filter(|_| charge.take(3).is_ok()).count() as u64 * 3
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take_all)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!((took, budget.used()), (999, 999));
    }

    #[test]
    fn the_last_byte_fits_and_the_next_does_not_however_large_it_is() {
        let budget = Arc::new(Budget::new(10));
        let (first, second) = (Charge::new(Some(&budget)), Charge::new(Some(&budget)));
        first.take(6).unwrap();
        second.take(4).unwrap();
        for n_bytes in [1, u64::MAX] {
            let over = second.take(n_bytes).unwrap_err();
            assert_eq!((over.used, over.limit), (10, 10));
        }
        first.give_back();
        first.give_back();
        assert_eq!(budget.used(), 4);
        second.take(6).unwrap();
    }

    #[test]
    fn without_a_budget_nothing_is_refused() {
        let charge = Charge::new(None);
        charge.take(u64::MAX).unwrap();
        charge.take(u64::MAX).unwrap();
        charge.give_back();
    }
}
