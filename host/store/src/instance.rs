//! Instances: who uses the store, and what becomes of what the dead left.
//!
//! The law: alive means that the lock file is locked. A lock file appears already locked, and its
//! row follows. Only who holds the lock of a dead instance settles it, and unlinks the file last;
//! where the file is lost, the store's reap lock takes its place. Every step can be repeated, so a
//! reaper may die, too. Ending in good order and being reaped are the same code.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::OptionalExtension;

use crate::db::{Commit, Db, one_row};
use crate::layout::Layout;
use crate::lock::{Lock, Probe};
use crate::{Removal, StoreError, disk, object, resource, time};

/// Suffix of lock files.
const LOCK_SUFFIX: &str = ".lock";

/// One execution of a program that opened a store. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl InstanceId {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| StoreError::corrupt(format!("`{text}` is no instance")))?;
        Ok(Self(bytes))
    }
}

/// This process.
#[derive(Debug)]
pub(crate) struct Me {
    name: InstanceId,
    row: i64,
    scratch: PathBuf,
    /// Taken out at the end.
    lock: Mutex<Option<Lock>>,
}

impl Me {
    /// Somebody who only reads, and is no instance.
    pub(crate) fn watching() -> Result<Self, StoreError> {
        let name = InstanceId(crate::random()?);
        Ok(Self {
            name,
            row: 0,
            scratch: PathBuf::new(),
            lock: Mutex::new(None),
        })
    }

    /// Becomes an instance.
    pub(crate) fn register(layout: &Layout, db: &Db, command: &str) -> Result<Self, StoreError> {
        let name = InstanceId(crate::random()?);
        let text = name.to_string();
        let lock = Lock::create(&layout.instances(), &layout.instance_lock(&text))?;
        let boot = boot_id()?;
        let row = db.write(Commit::Relaxed, |tx| {
            tx.prepare_cached(
                "INSERT INTO instance (name, boot, pid, command, started) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert((&text, boot, std::process::id(), command, time::now()))
            .map_err(StoreError::from)
        })?;
        let scratch = layout.scratch(&text);
        disk::make_dir(&scratch)?;
        Ok(Self {
            name,
            row,
            scratch,
            lock: Mutex::new(Some(lock)),
        })
    }

    pub(crate) fn name(&self) -> InstanceId {
        self.name
    }

    pub(crate) fn row(&self) -> i64 {
        self.row
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Lets go of the lock as the kernel does for a process that is killed. Nothing else is done.
    #[cfg(test)]
    pub(crate) fn die(&self) {
        drop(
            self.lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Settles what this instance has, and lets go of the lock.
    pub(crate) fn end(&self, layout: &Layout, db: &Db) -> Result<(), StoreError> {
        let Some(lock) = self
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return Ok(());
        };
        let dead = Instance {
            row: self.row,
            name: self.name.to_string(),
            boot: boot_id()?,
        };
        match settle(layout, db, &dead)? {
            Settled::Wholly => finish(lock, layout, &dead.name),
            // The free lock tells the next process that there is something left to do.
            Settled::Partly(why) => Err(StoreError::Busy(why)),
        }
    }
}

/// A row that may be of somebody dead.
#[derive(Debug)]
struct Instance {
    row: i64,
    name: String,
    boot: String,
}

#[derive(Debug)]
enum Settled {
    Wholly,
    /// Something is still there; the row stays.
    Partly(String),
}

/// Settles all instances that are dead, while live ones go on. What cannot be settled now stays
/// for the next time, and is no reason not to open the store.
pub(crate) fn reap(layout: &Layout, db: &Db) -> Result<(), StoreError> {
    // First the files, then the rows: a file without a row that was listed before is garbage.
    let files = disk::list(&layout.instances())?;
    let rows = db.read(|tx| {
        let mut found = tx.prepare_cached("SELECT id, name, boot FROM instance ORDER BY id")?;
        let rows = found.query_map([], |row| {
            Ok(Instance {
                row: row.get(0)?,
                name: row.get(1)?,
                boot: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    })?;
    for dead in &rows {
        if let Err(error) = reap_one(layout, db, dead) {
            log::warn!("cannot settle instance {}: {error}", dead.name);
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
            && !exists(db, name)?
            && let Err(error) = finish(lock, layout, name)
        {
            log::warn!("cannot remove the lock of instance {name}: {error}");
        }
    }
    object::finish_condemned(layout, db)
}

/// Settles an instance by name, if it is dead; tells whether it lives. One that somebody else is
/// settling just now still counts as alive: what it has goes at any moment.
pub(crate) fn is_alive(layout: &Layout, db: &Db, name: &str) -> Result<bool, StoreError> {
    if let Probe::Held = Lock::probe(&layout.instance_lock(name))? {
        return Ok(true);
    }
    let dead = db.read(|tx| {
        let mut found = tx.prepare_cached("SELECT id, name, boot FROM instance WHERE name = ?1")?;
        let row = found.query_row([name], |row| {
            Ok(Instance {
                row: row.get(0)?,
                name: row.get(1)?,
                boot: row.get(2)?,
            })
        });
        Ok(row.optional()?)
    })?;
    match dead {
        Some(dead) => Ok(!reap_one(layout, db, &dead)?),
        None => Ok(false),
    }
}

/// Settles a dead instance. False if it lives, or if somebody else is at it.
fn reap_one(layout: &Layout, db: &Db, dead: &Instance) -> Result<bool, StoreError> {
    let (lock, file) = match Lock::probe(&layout.instance_lock(&dead.name))? {
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
    // With the lock in hand: another reaper may have been faster.
    if !exists(db, &dead.name)? {
        return Ok(true);
    }
    match settle(layout, db, dead)? {
        Settled::Wholly if file => finish(lock, layout, &dead.name)?,
        Settled::Wholly => {}
        // Its claims and leases are gone, so nobody has to wait for the rest.
        Settled::Partly(why) => log::warn!("instance {} is not settled: {why}", dead.name),
    }
    Ok(true)
}

fn exists(db: &Db, name: &str) -> Result<bool, StoreError> {
    db.read(|tx| {
        let mut found = tx.prepare_cached("SELECT 1 FROM instance WHERE name = ?1")?;
        Ok(found.exists([name])?)
    })
}

fn finish(lock: Lock, layout: &Layout, name: &str) -> Result<(), StoreError> {
    match lock.remove(&layout.instance_lock(name)) {
        Removal::Gone => Ok(()),
        Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
    }
}

/// Undoes everything that belongs to an instance whose lock the caller holds. Each step is
/// independent of the others and can be repeated; the row goes last, if nothing is left.
fn settle(layout: &Layout, db: &Db, dead: &Instance) -> Result<Settled, StoreError> {
    let same_boot = dead.boot == boot_id()?;
    object::remove_drafts_of(layout, db, dead.row)?;
    let condemned = db.write(Commit::Relaxed, |tx| {
        tx.prepare_cached("DELETE FROM claim WHERE instance = ?1")?
            .execute([dead.row])?;
        tx.prepare_cached("DELETE FROM lease WHERE instance = ?1")?
            .execute([dead.row])?;
        // File systems and disks lie about syncs, rarely but for ever.
        tx.prepare_cached(
            "UPDATE object SET suspect = 1 WHERE maker = ?1 AND state = 'valid' AND NOT ?2",
        )?
        .execute((dead.row, same_boot))?;
        tx.prepare_cached(
            "UPDATE object SET maker = NULL WHERE maker = ?1 AND state <> 'writing'",
        )?
        .execute([dead.row])?;
        let mut condemn = tx.prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL WHERE maker = ?1 RETURNING id",
        )?;
        let ids = condemn.query_map([dead.row], |row| row.get(0))?;
        Ok::<_, StoreError>(ids.collect::<Result<Vec<i64>, _>>()?)
    })?;
    object::remove(layout, db, &condemned)?;
    if let Some(why) = resource::settle_vms(db, dead.row)? {
        return Ok(Settled::Partly(why));
    }
    let mut left = resource::settle_rest(db, dead.row)?;
    match disk::remove_tree(&layout.scratch(&dead.name)) {
        Removal::Gone => {}
        Removal::Busy(why) | Removal::Failed(why) => left = Some(why),
    }
    if let Some(why) = left {
        return Ok(Settled::Partly(why));
    }
    db.write(Commit::Relaxed, |tx| {
        let gone = tx
            .prepare_cached("DELETE FROM instance WHERE id = ?1")?
            .execute([dead.row])?;
        one_row(gone, "end of an instance")
    })?;
    Ok(Settled::Wholly)
}

/// Names this run of the kernel.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    #[cfg(test)]
    if let Some(boot) = crate::effect::boot() {
        return Ok(boot);
    }
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(StoreError::at("read", path))?;
    Ok(text.trim().to_owned())
}
