//! Cleaning up after instances that have ended.
//!
//! The law: only the holder of the lock of a dead instance cleans up after it, and removes the lock
//! file last; if the lock file is missing, the store's reap lock takes its place. Each step can be
//! repeated, so a reaper can die as well. An orderly end and reaping are the same code.

use rusqlite::{Connection, OptionalExtension, Row};

use crate::db::{Commit, Db, one_row};
use crate::instance::{InstanceHandle, boot_id};
use crate::layout::Layout;
use crate::lock::{Lock, Probe};
use crate::{Removal, StoreError, disk, removal, reserve, resource, trust};

/// Suffix of lock files.
const LOCK_SUFFIX: &str = ".lock";

/// The row of an instance that may be dead.
#[derive(Debug)]
struct Instance {
    row: i64,
    name: String,
    boot: String,
}

impl Instance {
    const COLUMNS: &str = "id, name, boot";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            name: row.get(1)?,
            boot: row.get(2)?,
        })
    }
}

#[derive(Debug)]
enum CleanedUp {
    Completely,
    /// Something could not be removed, for this reason; the row of the instance stays.
    Partly(String),
}

/// Ends the instance of this process: cleans up, on a full disk with the space of the reserve, and
/// releases the lock.
pub(crate) fn end(handle: &InstanceHandle, layout: &Layout, db: &Db) -> Result<(), StoreError> {
    let Some(lock) = handle.take_lock() else {
        return Ok(());
    };
    let ending = Instance {
        row: handle.row(),
        name: handle.name().to_string(),
        boot: boot_id()?,
    };
    let clean_up = || clean_up(layout, db, &ending);
    let cleaned_up = match clean_up() {
        Err(StoreError::Full { .. }) if reserve::release_for_end(layout)? => clean_up(),
        done => done,
    };
    match cleaned_up? {
        CleanedUp::Completely => remove_lock(lock, layout, &ending.name),
        // The next process sees that the lock is free, and tries again.
        CleanedUp::Partly(why) => Err(StoreError::Busy(why)),
    }
}

/// Cleans up after all dead instances, while live ones continue. What cannot be cleaned up now is left
/// to the next process, and does not keep the store from opening.
pub(crate) fn reap(layout: &Layout, db: &Db) -> Result<(), StoreError> {
    // First the files, then the rows: a lock file that was listed before and has no row is garbage.
    let files = disk::list(&layout.instances())?;
    let rows = db.read(all)?;
    for dead in &rows {
        if let Err(error) = reap_one(layout, db, dead) {
            log::warn!("cannot clean up after instance {}: {error}", dead.name);
        }
    }
    for file in files {
        let Some(name) = file
            .to_str()
            .and_then(|name| name.strip_suffix(LOCK_SUFFIX))
        else {
            continue;
        };
        if rows.iter().all(|row| row.name != name)
            && let Probe::Free(lock) = Lock::probe(&layout.instance_lock(name))?
            && find(db, name)?.is_none()
            && let Err(error) = remove_lock(lock, layout, name)
        {
            log::warn!("cannot remove the lock file of instance {name}: {error}");
        }
    }
    removal::finish_tombstoned(layout, db)
}

/// Whether an instance is alive; cleans up after it if it is dead. While another process does that,
/// the instance counts as alive: its claims and leases go at any moment.
pub(crate) fn is_alive(layout: &Layout, db: &Db, name: &str) -> Result<bool, StoreError> {
    if let Probe::Held = Lock::probe(&layout.instance_lock(name))? {
        return Ok(true);
    }
    match find(db, name)? {
        Some(dead) => Ok(!reap_one(layout, db, &dead)?),
        None => Ok(false),
    }
}

/// Cleans up after a dead instance. Returns false if it is alive, or if another process is doing this.
fn reap_one(layout: &Layout, db: &Db, dead: &Instance) -> Result<bool, StoreError> {
    let (lock, has_file) = match Lock::probe(&layout.instance_lock(&dead.name))? {
        Probe::Held => return Ok(false),
        Probe::Free(lock) => match lock.share() {
            Some(lock) => (lock, true),
            None => return Ok(false),
        },
        Probe::Missing => match Lock::try_exclusive(&layout.reap_lock())? {
            Some(lock) => (lock, false),
            None => return Ok(false),
        },
    };
    // Looked up again under the lock: another reaper may have been faster.
    if find(db, &dead.name)?.is_none() {
        return Ok(true);
    }
    match clean_up(layout, db, dead)? {
        CleanedUp::Completely if has_file => remove_lock(lock, layout, &dead.name)?,
        CleanedUp::Completely => {}
        // Its claims and leases are gone, so nobody has to wait for the rest.
        CleanedUp::Partly(why) => {
            log::warn!("cannot fully clean up after instance {}: {why}", dead.name);
        }
    }
    Ok(true)
}

fn all(tx: &Connection) -> Result<Vec<Instance>, StoreError> {
    let sql = format!("SELECT {} FROM instance ORDER BY id", Instance::COLUMNS);
    let mut rows = tx.prepare_cached(&sql)?;
    let rows = rows.query_map([], Instance::from_row)?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

fn find(db: &Db, name: &str) -> Result<Option<Instance>, StoreError> {
    db.read(|tx| {
        let sql = format!("SELECT {} FROM instance WHERE name = ?1", Instance::COLUMNS);
        let mut rows = tx.prepare_cached(&sql)?;
        Ok(rows.query_row([name], Instance::from_row).optional()?)
    })
}

fn remove_lock(lock: Lock, layout: &Layout, name: &str) -> Result<(), StoreError> {
    match lock.remove(&layout.instance_lock(name)) {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}

/// Undoes everything that belongs to an instance whose lock the caller holds. Each step is independent
/// of the others and can be repeated. The row is deleted last, if nothing is left.
fn clean_up(layout: &Layout, db: &Db, dead: &Instance) -> Result<CleanedUp, StoreError> {
    removal::remove_pending_of(layout, db, dead.row)?;
    let tombstoned = release_objects(db, dead)?;
    removal::remove(layout, db, &tombstoned)?;
    if let Some(why) = resource::remove_vms(db, dead.row)? {
        return Ok(CleanedUp::Partly(why));
    }
    let mut left = resource::remove_others(db, dead.row)?;
    match disk::remove_tree(&layout.scratch(&dead.name)) {
        Removal::Gone => {}
        Removal::Busy(why) | Removal::Failed(why) => left = Some(why),
    }
    if let Some(why) = left {
        return Ok(CleanedUp::Partly(why));
    }
    db.write(Commit::Relaxed, |tx| {
        // Only now: the VM that used it has ended.
        tx.prepare_cached("DELETE FROM memory WHERE instance = ?1")?
            .execute([dead.row])?;
        let deleted = tx
            .prepare_cached("DELETE FROM instance WHERE id = ?1")?
            .execute([dead.row])?;
        one_row(deleted, "end of an instance")
    })?;
    Ok(CleanedUp::Completely)
}

/// Deletes the claims and leases of an instance, and tombstones its pending objects. Returns these.
fn release_objects(db: &Db, dead: &Instance) -> Result<Vec<i64>, StoreError> {
    let same_boot = dead.boot == boot_id()?;
    db.write(Commit::Relaxed, |tx| {
        tx.prepare_cached("DELETE FROM claim WHERE instance = ?1")?
            .execute([dead.row])?;
        trust::release_vms(tx, dead.row)?;
        tx.prepare_cached("DELETE FROM lease WHERE instance = ?1")?
            .execute([dead.row])?;
        // A few file systems and disks lie about syncs.
        tx.prepare_cached(
            "UPDATE object SET suspect = 1 WHERE maker = ?1 AND state = 'valid' AND NOT ?2",
        )?
        .execute((dead.row, same_boot))?;
        tx.prepare_cached(
            "UPDATE object SET maker = NULL WHERE maker = ?1 AND state <> 'writing'",
        )?
        .execute([dead.row])?;
        let mut tombstone = tx.prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL WHERE maker = ?1 RETURNING id",
        )?;
        let ids = tombstone.query_map([dead.row], |row| row.get(0))?;
        Ok(ids.collect::<Result<Vec<i64>, _>>()?)
    })
}
