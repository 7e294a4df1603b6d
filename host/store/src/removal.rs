//! The end of an object: its files, then its row.
//!
//! The law: only files of objects whose row is durably tombstoned are removed, and a row is deleted
//! only after its files were seen to be gone. What cannot be removed keeps its row, with the reason,
//! and does not stop the rest. In the database the state is called `condemned`.

use rusqlite::Connection;

use crate::db::{Commit, Db};
use crate::layout::Layout;
use crate::{Removal, StoreError, disk};

/// Removes the files of tombstoned objects, and the rows of those whose files are gone.
pub(crate) fn remove(layout: &Layout, db: &Db, ids: &[i64]) -> Result<(), StoreError> {
    let removals: Vec<(i64, Removal)> = ids
        .iter()
        .map(|id| (*id, remove_files(layout, *id)))
        .collect();
    if removals.is_empty() {
        return Ok(());
    }
    record(db, &removals)
}

/// Finishes the removals of processes that were killed after they had tombstoned objects. Objects
/// that could not be removed before are left to a prune.
pub(crate) fn finish_tombstoned(layout: &Layout, db: &Db) -> Result<(), StoreError> {
    let ids = db.read(|tx| {
        ids(
            tx,
            "SELECT id FROM object WHERE state <> 'valid' AND state = 'condemned' AND tries = 0 \
             AND NOT EXISTS (SELECT 1 FROM lease WHERE object = object.id)",
            [],
        )
    })?;
    remove(layout, db, &ids)
}

/// Removes the files of the pending objects of a dead maker, so that a full disk has space for the
/// transaction that tombstones their rows.
pub(crate) fn remove_pending_of(layout: &Layout, db: &Db, maker: i64) -> Result<(), StoreError> {
    let pending = db.read(|tx| {
        let sql = "SELECT id FROM object WHERE maker = ?1 AND state = 'writing'";
        ids(tx, sql, [maker])
    })?;
    for id in pending {
        remove_pending(layout, id);
    }
    Ok(())
}

/// Removes the files of a pending object before its row is tombstoned. A failure does no harm: the
/// row stays until the files are gone.
pub(crate) fn remove_pending(layout: &Layout, id: i64) {
    if let Removal::Busy(why) | Removal::Failed(why) = remove_files(layout, id) {
        log::debug!("cannot remove the files of pending object {id} yet: {why}");
    }
}

/// Removes the files of one object.
pub(crate) fn remove_files(layout: &Layout, id: i64) -> Removal {
    match (
        disk::remove_file(&layout.index(id)),
        disk::remove_file(&layout.blob(id)),
    ) {
        (Removal::Gone, Removal::Gone) => Removal::Gone,
        (Removal::Gone, other) | (other, _) => other,
    }
}

/// Deletes the rows of objects whose files are gone, and records why others are not. A lease on a
/// damaged object keeps its row as well.
pub(crate) fn record(db: &Db, removals: &[(i64, Removal)]) -> Result<(), StoreError> {
    db.write(Commit::Relaxed, |tx| {
        for (id, removal) in removals {
            match removal {
                Removal::Gone => {
                    tx.prepare_cached(
                        "DELETE FROM object WHERE id = ?1 AND state = 'condemned' \
                         AND NOT EXISTS (SELECT 1 FROM lease WHERE object = ?1)",
                    )?
                    .execute([id])?;
                }
                Removal::Busy(why) | Removal::Failed(why) => {
                    tx.prepare_cached(
                        "UPDATE object SET tries = tries + 1, trouble = ?2 \
                         WHERE id = ?1 AND state = 'condemned'",
                    )?
                    .execute((id, why))?;
                }
            }
        }
        Ok(())
    })
}

fn ids(
    tx: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<i64>, StoreError> {
    let mut rows = tx.prepare_cached(sql)?;
    let rows = rows.query_map(parameters, |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
