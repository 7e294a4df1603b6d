//! What happened to the store itself: a result that differs from the one before, an object that was
//! lost. Noted in the transaction that makes it so.

use rusqlite::Transaction;

use crate::db::Commit;
use crate::{Store, StoreError, time};

/// Events that are kept.
const KEEP: i64 = 1000;

/// Something that happened to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in seconds since 1970.
    pub at: i64,
    /// What: `result differs`, `object lost` or `image lost`.
    pub kind: String,
    /// To what, and why.
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

    /// Forgets old events.
    pub(super) fn trim_events(&self) -> Result<(), StoreError> {
        self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?1")?
                .execute([KEEP])?;
            Ok(())
        })
    }
}

/// Notes an event.
pub(crate) fn note(tx: &Transaction<'_>, kind: &str, text: &str) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO event (at, kind, text) VALUES (?1, ?2, ?3)")?
        .execute((time::now(), kind, text))?;
    Ok(())
}
