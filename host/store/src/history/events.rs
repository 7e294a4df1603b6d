//! Events of the store itself: a step result that differs from the previous one, an object that was
//! evicted. They are recorded in the transaction that causes them.

use rusqlite::Transaction;

use crate::db::Commit;
use crate::{Store, StoreError, time};

/// How many events are kept.
const KEEP: i64 = 1000;

/// An event of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in seconds since 1970.
    pub at: i64,
    /// `result differs`, `object lost` (a damaged object was evicted) or `image lost` (with its name).
    pub kind: String,
    /// What it happened to, and why.
    pub text: String,
}

impl Store {
    /// The newest events, newest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn events(&self) -> Result<Vec<Event>, StoreError> {
        self.read(|tx| {
            let mut rows =
                tx.prepare_cached("SELECT at, kind, text FROM event ORDER BY id DESC LIMIT ?1")?;
            let rows = rows.query_map([KEEP], |row| {
                Ok(Event {
                    at: row.get(0)?,
                    kind: row.get(1)?,
                    text: row.get(2)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Deletes old events.
    pub(super) fn trim_events(&self) -> Result<(), StoreError> {
        self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?1")?
                .execute([KEEP])?;
            Ok(())
        })
    }
}

/// Records an event.
pub(crate) fn record(tx: &Transaction<'_>, kind: &str, text: &str) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO event (at, kind, text) VALUES (?1, ?2, ?3)")?
        .execute((time::now(), kind, text))?;
    Ok(())
}
