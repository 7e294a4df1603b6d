//! The memory of the host that VMs share: who has it, and who waits for it.
//!
//! The law: a VM runs only while its build has a share of the memory. The sum of all shares of a store is
//! never more than the total that the owner of each saw when it asked, except that one VM alone is always
//! let in. Shares are given in the order in which they were asked for, so a large one is not starved by
//! small ones: nobody overtakes.
//!
//! A share belongs to an instance. Those of a dead one do not count, from the moment at which its lock is
//! free. Whoever waits looks again and again, cleans up after the dead, and gives shares to all who are
//! next, also to others: so nobody waits for a process that was stopped while it was waiting itself.

use std::collections::HashSet;

use rusqlite::Connection;

use crate::db::{Commit, one_row};
use crate::lock::Lock;
use crate::object::unsigned;
use crate::{Store, StoreError, reap};

/// A share of the host's memory, or a place in the queue for it. It ends with [`Self::release`], or with
/// the instance.
///
/// ```
/// # use store::{OpenOptions, Store};
/// # let root = tempfile::tempdir()?;
/// # let (one, two) = {
/// #     let open = || Store::open(root.path(), &OpenOptions::default());
/// #     (open()?, open()?)
/// # };
/// let total = 6 << 30;
/// let first = one.ask_for_memory(4 << 30, total)?;
/// assert!(first.poll()?.is_none());
///
/// let second = two.ask_for_memory(4 << 30, total)?;
/// let wait = second.poll()?.expect("4 GiB of 6 are used");
/// assert_eq!((wait.held, wait.ahead), (4 << 30, 0));
/// first.release()?;
/// assert!(second.poll()?.is_none());
/// # second.release()?;
/// # one.close()?;
/// # two.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "without `release` it lasts as long as the instance"]
pub struct MemoryShare {
    store: Store,
    id: i64,
}

/// What somebody waits for who has no share yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryWait {
    /// Bytes in the shares of others.
    pub held: u64,
    /// Who has them, oldest first.
    pub holders: Vec<MemoryHolder>,
    /// How many wait in front.
    pub ahead: usize,
}

/// Somebody who has a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryHolder {
    /// The command that its user ran.
    pub command: String,
    /// Its process, for display.
    pub pid: u32,
    /// The size of its share.
    pub bytes: u64,
}

/// A row of the table.
#[derive(Debug, Clone)]
struct Row {
    id: i64,
    instance: i64,
    bytes: u64,
    total: u64,
    held: bool,
    name: String,
    command: String,
    pid: u32,
}

impl Store {
    /// Asks for `bytes` of the host's memory, of which VMs may have `total` together. Poll the result
    /// until it says that this process has its share.
    ///
    /// # Errors
    /// If the store fails.
    pub fn ask_for_memory(&self, bytes: u64, total: u64) -> Result<MemoryShare, StoreError> {
        let id = self.write(Commit::Relaxed, |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO memory (instance, bytes, total) VALUES (?1, ?2, ?3)",
            )?;
            // Sums of these stay in the range of the database.
            let [bytes, total] = [bytes, total].map(|n| (n.min(1 << 60)).cast_signed());
            Ok(insert.insert((self.instance_row(), bytes, total))?)
        })?;
        Ok(MemoryShare {
            store: self.clone(),
            id,
        })
    }
}

impl MemoryShare {
    /// Whether this process has its share: `None` from then on. Before, says what it waits for; ask again
    /// after a while.
    ///
    /// # Errors
    /// If the store fails.
    pub fn poll(&self) -> Result<Option<MemoryWait>, StoreError> {
        let rows = self.store.read(all)?;
        let dead = self.dead(&rows)?;
        if let Some(wait) = self.wait(&rows, &dead)?
            && next(&rows, &dead).is_empty()
        {
            return Ok(Some(wait));
        }
        let rows = self.store.write(Commit::Relaxed, |tx| {
            for id in next(&all(tx)?, &dead) {
                let given = tx
                    .prepare_cached("UPDATE memory SET held = 1 WHERE id = ?1")?
                    .execute([id])?;
                one_row(given, "a share of memory")?;
            }
            all(tx)
        })?;
        self.wait(&rows, &dead)
    }

    /// Gives the share back, or leaves the queue. The VM must have ended.
    ///
    /// # Errors
    /// If the store fails. Then it lasts as long as the instance.
    pub fn release(self) -> Result<(), StoreError> {
        self.store.write(Commit::Relaxed, |tx| {
            let gone = tx
                .prepare_cached("DELETE FROM memory WHERE id = ?1")?
                .execute([self.id])?;
            one_row(gone, "end of a share of memory")
        })
    }

    /// The instances of these rows that are dead. They stay dead, since their ids are never used again.
    fn dead(&self, rows: &[Row]) -> Result<HashSet<i64>, StoreError> {
        let (store, mut dead) = (&self.store, HashSet::new());
        let mut seen = HashSet::from([store.instance_row()]);
        for row in rows.iter().filter(|row| seen.insert(row.instance)) {
            let lock = store.layout().instance_lock(&row.name);
            if Lock::is_held(&lock)? {
                continue;
            }
            dead.insert(row.instance);
            // Its VM ends before its memory is given to somebody else, unless that fails.
            if let Err(error) = reap::is_alive(store.layout(), &store.inner.db, &row.name) {
                log::warn!("cannot clean up after instance {}: {error}", row.name);
            }
        }
        Ok(dead)
    }

    /// What this process waits for; `None` if it has its share.
    fn wait(&self, rows: &[Row], dead: &HashSet<i64>) -> Result<Option<MemoryWait>, StoreError> {
        let own = rows.iter().find(|row| row.id == self.id);
        let own = own.ok_or_else(|| StoreError::corrupt("a share of memory is missing"))?;
        if own.held {
            return Ok(None);
        }
        let live = || rows.iter().filter(|row| !dead.contains(&row.instance));
        let holders: Vec<_> = live().filter(|row| row.held).map(Row::holder).collect();
        Ok(Some(MemoryWait {
            held: holders.iter().map(|holder| holder.bytes).sum(),
            holders,
            ahead: live().filter(|row| !row.held && row.id < own.id).count(),
        }))
    }
}

impl Row {
    fn holder(&self) -> MemoryHolder {
        MemoryHolder {
            command: self.command.clone(),
            pid: self.pid,
            bytes: self.bytes,
        }
    }
}

/// All rows, oldest first.
fn all(tx: &Connection) -> Result<Vec<Row>, StoreError> {
    let mut found = tx.prepare_cached(
        "SELECT m.id, m.instance, m.bytes, m.total, m.held, i.name, i.command, i.pid \
         FROM memory m JOIN instance i ON i.id = m.instance ORDER BY m.id",
    )?;
    let rows = found.query_map([], |row| {
        Ok(Row {
            id: row.get(0)?,
            instance: row.get(1)?,
            bytes: unsigned(row, 2)?,
            total: unsigned(row, 3)?,
            held: row.get(4)?,
            name: row.get(5)?,
            command: row.get(6)?,
            pid: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

/// Who gets a share now: the oldest who wait, as long as there is memory for them.
fn next(rows: &[Row], dead: &HashSet<i64>) -> Vec<i64> {
    let live = || rows.iter().filter(|row| !dead.contains(&row.instance));
    let mut held: u64 = live().filter(|row| row.held).map(|row| row.bytes).sum();
    let mut alone = !live().any(|row| row.held);
    let mut next = Vec::new();
    for row in live().filter(|row| !row.held) {
        let sum = held.saturating_add(row.bytes);
        if sum > row.total && !alone {
            break;
        }
        (held, alone) = (sum, false);
        next.push(row.id);
    }
    next
}
