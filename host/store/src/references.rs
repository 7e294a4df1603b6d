//! What refers to an object and must go before its row can: image names, step results and edges.
//!
//! Everything here runs in a transaction of the caller.

use rusqlite::Transaction;

use crate::{StoreError, trust};

/// The names of the images that an object is a part of.
pub(crate) fn image_names(tx: &Transaction<'_>, object: i64) -> Result<Vec<String>, StoreError> {
    let mut names = tx.prepare_cached(
        "SELECT name FROM image WHERE manifest = ?1 OR config = ?1 \
         UNION SELECT image FROM image_layer WHERE object = ?1",
    )?;
    let names = names.query_map([object], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Deletes an image name. Returns whether it existed.
pub(crate) fn delete_image(tx: &Transaction<'_>, name: &str) -> Result<bool, StoreError> {
    tx.prepare_cached("DELETE FROM image_layer WHERE image = ?1")?
        .execute([name])?;
    Ok(tx
        .prepare_cached("DELETE FROM image WHERE name = ?1")?
        .execute([name])?
        == 1)
}

/// Deletes the step results and edges of an object.
pub(crate) fn delete_hints(tx: &Transaction<'_>, object: i64) -> Result<(), StoreError> {
    trust::delete_results(tx, object)?;
    tx.prepare_cached("DELETE FROM edge WHERE child = ?1 OR parent = ?1")?
        .execute([object])?;
    Ok(())
}
