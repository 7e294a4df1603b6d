//! Rebuild: makes a new database from the object files if the old one is damaged.
//!
//! Objects are identified by their content, so they are kept, and so are the logs of builds. Image
//! names, step keys, the rest of the history and all hints are lost. This is never automatic: a damaged
//! database is refused until the user asks for a rebuild.

use std::path::Path;

use rusqlite::{Connection, Transaction};

use crate::db::Commit;
use crate::failpoint::{IoOperation, before_sql};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::object::LAYER;
use crate::{
    Class, Digest, Removal, Store, StoreError, content_id, db, disk, location, object, reindex,
    time,
};

/// What a rebuild has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Number of layers.
    pub layers: u64,
    /// Number of other blobs.
    pub blobs: u64,
    /// Number of builds, of which only the logs are left.
    pub builds: u64,
}

/// The content of an object file.
struct Salvaged {
    id: i64,
    digest: Digest,
    size: u64,
    /// Content id and number of entries of a layer.
    layer: Option<(Digest, u64)>,
}

impl Store {
    /// Replaces the database of the store in `root` by a new one, made from the object files. No process
    /// may have the store open.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if a process has it open.
    pub fn rebuild(root: &Path) -> Result<Rebuilt, StoreError> {
        let layout = Layout::new(location::prepare_root(root, false)?);
        layout.make()?;
        let Some(_alone) = Lock::try_exclusive(&layout.version_lock())? else {
            return Err(StoreError::Busy(
                "another process is using the store; try again when it has finished".to_owned(),
            ));
        };
        let made = layout.rebuilding();
        removed(disk::remove_tree(&made))?; // of an interrupted rebuild
        disk::make_dir(&made)?;
        let database = made.join("store.db");
        let rebuilt = fill(&layout, &database)?;
        db::replace(&layout, &database)?;
        removed(disk::remove_tree(&made))?;
        Ok(rebuilt)
    }
}

/// Makes the new database, a single durable file.
fn fill(layout: &Layout, database: &Path) -> Result<Rebuilt, StoreError> {
    let ids = numbers(&layout.blobs())?;
    let mut connection = db::make(database)?;
    let mut rebuilt = Rebuilt::default();
    for id in &ids {
        let Some(found) = salvage(layout, *id)? else {
            continue;
        };
        before_sql(IoOperation::BeginWrite)?;
        let transaction = connection.transaction()?;
        if insert(&transaction, &found)? {
            match found.layer {
                Some(_) => rebuilt.layers += 1,
                None => rebuilt.blobs += 1,
            }
        }
        before_sql(IoOperation::Commit(Commit::Durable))?;
        transaction.commit()?;
    }
    // No id of the old database is reused, not even of objects that were not kept.
    let indexes = numbers(&layout.indexes())?;
    reserve_ids(&connection, "object", ids.last().max(indexes.last()))?;
    rebuilt.builds = keep_logs(&mut connection, layout)?;
    db::checkpoint_and_close(connection)?;
    let file =
        disk::open(database)?.ok_or_else(|| StoreError::corrupt("the new database is missing"))?;
    disk::sync_file(&file, database)?;
    Ok(rebuilt)
}

fn removed(removal: Removal) -> Result<(), StoreError> {
    match removal {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}

/// The names in a directory that are row ids, in order.
fn numbers(dir: &Path) -> Result<Vec<i64>, StoreError> {
    let names = disk::list(dir)?;
    let mut ids: Vec<i64> = names
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter(|id| *id > 0)
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Reads an object file. It is a layer if it has an index, and is a valid tar of a layer.
fn salvage(layout: &Layout, id: i64) -> Result<Option<Salvaged>, StoreError> {
    let path = layout.blob(id);
    let Some(size) = disk::length(&path)? else {
        return Ok(None);
    };
    if disk::length(&layout.index(id))?.is_some()
        && let Some((digest, index)) = reindex::read_tar(&path)?
    {
        let layer = Some((content_id(index.entries()).0, index.entries().len() as u64));
        return Ok(Some(Salvaged {
            id,
            digest,
            size,
            layer,
        }));
    }
    let digest = object::hash_file(&path)?;
    Ok(digest.map(|digest| Salvaged {
        id,
        digest,
        size,
        layer: None,
    }))
}

/// Inserts a row, unless there is one with the same content.
fn insert(tx: &Transaction<'_>, found: &Salvaged) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(
            "INSERT INTO object (id, kind, state, digest, size, content, entries, origin, created, \
             used) VALUES (?1, ?2, 'valid', ?3, ?4, ?5, ?6, 'rebuilt', ?7, ?7) \
             ON CONFLICT DO NOTHING",
        )?
        .execute((
            found.id,
            if found.layer.is_some() { LAYER } else { "blob" },
            found.digest.0,
            found.size.cast_signed(),
            found.layer.map(|(content, _)| content.0),
            found.layer.map_or(0, |(_, entries)| entries.cast_signed()),
            time::now(),
        ))?;
    Ok(changed == 1)
}

/// Inserts a row for each build that has logs, so that they are kept as long as those of other builds.
fn keep_logs(connection: &mut Connection, layout: &Layout) -> Result<u64, StoreError> {
    let ids = numbers(&layout.logs())?;
    before_sql(IoOperation::BeginWrite)?;
    let transaction = connection.transaction()?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO build (id, instance, context, dockerfile, target, started, ended, class, \
         status, message) VALUES (?1, '', '', '', '', ?2, ?2, ?3, 125, ?4)",
    )?;
    for id in &ids {
        let then = disk::modified(&layout.build_logs(*id));
        insert.execute((id, then, Class::Host.to_string(), LOGS_ONLY))?;
    }
    drop(insert);
    before_sql(IoOperation::Commit(Commit::Durable))?;
    transaction.commit()?;
    Ok(ids.len() as u64)
}

/// The message of such a build. It is stored in the database.
const LOGS_ONLY: &str = "result unknown: the database was lost, only the logs remain";

/// Makes the database give out only ids above `last`.
fn reserve_ids(connection: &Connection, table: &str, last: Option<&i64>) -> Result<(), StoreError> {
    let Some(last) = last else { return Ok(()) };
    connection.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [table])?;
    connection.execute(
        "INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)",
        (table, last),
    )?;
    Ok(())
}
