//! Check: compares the database with the disk, and hashes every object.
//!
//! Each difference is a finding; if no process uses the store and all were cleaned up after, there is
//! none. A damaged object is not used any more. A repair evicts damaged objects, rebuilds missing indexes,
//! and removes files that belong to nothing. A check can run beside builds: whatever could have
//! changed meanwhile is checked again before it is reported.

use std::fmt;
use std::path::PathBuf;

use layer::limits::MAX_INDEX_FILE;
use rusqlite::Connection;

use super::sweep;
use crate::db::Commit;
use crate::lock::{Lock, Probe};
use crate::object::{self, COLUMNS, Object};
use crate::trust;
use crate::{Digest, Index, Removal, Store, StoreError, content_id, disk, reap, removal};

/// Something that is wrong with a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// SQLite found damage in the database, or rows contradict each other.
    Database(String),
    /// The file of an object is missing.
    Missing(Digest),
    /// The content of an object does not match its digest.
    Damaged(Digest),
    /// The index of a layer is missing, damaged or belongs to another layer.
    BadIndex(Digest),
    /// A tombstoned object still exists.
    Leftover {
        /// Id of its row.
        object: i64,
        /// Why it could not be removed, if a removal was tried.
        why: Option<String>,
    },
    /// A file or directory that belongs to nothing.
    Stray(PathBuf),
    /// A dead instance whose resources were not cleaned up.
    DeadInstance(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(what) => write!(f, "database: {what}"),
            Self::Missing(digest) => write!(f, "{digest}: its file is missing"),
            Self::Damaged(digest) => write!(f, "{digest}: its file does not match its digest"),
            Self::BadIndex(digest) => write!(f, "{digest}: its index is missing or wrong"),
            Self::Leftover { object, why: None } => write!(f, "object {object} was not removed"),
            Self::Leftover {
                object,
                why: Some(why),
            } => {
                write!(f, "object {object} could not be removed: {why}")
            }
            Self::Stray(path) => write!(f, "{} is not used by the store", path.display()),
            Self::DeadInstance(name) => {
                write!(f, "instance {name} died and left resources behind")
            }
        }
    }
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// The findings, each with whether it was repaired.
    pub findings: Vec<(Finding, bool)>,
    /// Number of objects that were read.
    pub objects: u64,
    /// Number of bytes that were hashed.
    pub bytes: u64,
}

impl CheckReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether all findings were repaired.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        self.findings.iter().all(|(_, repaired)| *repaired)
    }

    /// Damage of the database itself, if any: only a rebuild can repair that.
    #[must_use]
    pub fn database_damage(&self) -> Option<&Finding> {
        let mut found = self.findings.iter().map(|(what, _)| what);
        found.find(|what| matches!(what, Finding::Database(_)))
    }

    fn add(&mut self, finding: Finding, repaired: bool) {
        self.findings.push((finding, repaired));
    }
}

impl Store {
    /// Compares the database with the disk, hashes every object, and repairs what is wrong if `repair`.
    ///
    /// # Errors
    /// If something cannot be read. Damage is in the report instead.
    pub fn check(&self, repair: bool) -> Result<CheckReport, StoreError> {
        let repair = repair && !self.is_read_only();
        let mut report = CheckReport::default();
        for what in self.read(database_damage)? {
            report.add(Finding::Database(what), false);
        }
        self.check_instances(repair, &mut report)?;
        let before = self.read(tombstoned)?.into_iter();
        let mut before: Vec<i64> = before.map(|(id, _)| id).collect();
        for stray in self.strays()? {
            let gone = repair && stray.ours && sweep::remove(&stray) == Removal::Gone;
            report.add(Finding::Stray(stray.path), gone);
        }
        for (object, is_layer) in self.read(objects)? {
            if self.check_object(&object, is_layer, repair, &mut report)? {
                before.push(object.id);
            }
        }
        self.check_tombstoned(&before, repair, &mut report)?;
        Ok(report)
    }

    fn check_instances(&self, repair: bool, report: &mut CheckReport) -> Result<(), StoreError> {
        for name in self.read(instances)? {
            if let Probe::Held = Lock::probe(&self.layout().instance_lock(&name))? {
                continue;
            }
            if repair && let Err(error) = reap::reap(self.layout(), &self.inner.db) {
                log::warn!("cannot clean up after dead instances: {error}");
            }
            let left = self.read(instances)?.contains(&name);
            // An instance that ended meanwhile is not a finding.
            if left || repair {
                report.add(Finding::DeadInstance(name), !left);
            }
        }
        Ok(())
    }

    /// Reports objects that were tombstoned when the check began, or by the check, and still exist. What
    /// was tombstoned meanwhile is being removed by another process.
    fn check_tombstoned(
        &self,
        before: &[i64],
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let mut still = self.read(tombstoned)?;
        still.retain(|(id, _)| before.contains(id));
        if repair {
            let ids: Vec<i64> = still.iter().map(|(id, _)| *id).collect();
            removal::remove(self.layout(), &self.inner.db, &ids)?;
        }
        let after = self.read(tombstoned)?;
        for (object, why) in still {
            let left = after.iter().find(|(id, _)| *id == object);
            let why = left.map_or(why, |(_, why)| why.clone());
            report.add(Finding::Leftover { object, why }, left.is_none());
        }
        Ok(())
    }

    /// Checks one object. Returns whether it was evicted.
    fn check_object(
        &self,
        object: &Object,
        is_layer: bool,
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<bool, StoreError> {
        let path = self.layout().blob(object.id);
        report.objects += 1;
        report.bytes += object.size;
        let finding = match object::hash_file(&path)? {
            None => Finding::Missing(object.digest),
            Some(digest) if digest != object.digest => Finding::Damaged(object.digest),
            Some(_) if is_layer && !self.index_fits(object)? => Finding::BadIndex(object.digest),
            Some(_) => return Ok(false),
        };
        if !self.read(|tx| is_valid(tx, object.id))? {
            return Ok(false); // pruned meanwhile
        }
        let is_lost = repair && !matches!(finding, Finding::BadIndex(_));
        if is_lost {
            self.evict(object.id, &finding.to_string())?;
        } else if repair {
            self.rebuild_index(object)?;
        } else if !self.is_read_only() {
            self.suspect(object.id)?;
        }
        report.add(finding, repair);
        Ok(is_lost)
    }

    /// Marks an object, so that its next use hashes it and evicts it.
    fn suspect(&self, id: i64) -> Result<(), StoreError> {
        self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached("UPDATE object SET suspect = 1 WHERE id = ?1")?
                .execute([id])?;
            Ok(())
        })
    }

    fn index_fits(&self, object: &Object) -> Result<bool, StoreError> {
        let bytes = disk::read(&self.layout().index(object.id), MAX_INDEX_FILE)?;
        let index = bytes.and_then(|bytes| Index::decode(&bytes));
        Ok(index.is_some_and(|index| {
            index.entries().len() as u64 == object.entries
                && Some(content_id(index.entries())) == object.content
        }))
    }
}

fn objects(tx: &Connection) -> Result<Vec<(Object, bool)>, StoreError> {
    let mut rows = tx.prepare_cached(&format!(
        "SELECT {COLUMNS}, o.kind = 'layer' FROM object o WHERE o.state = 'valid' ORDER BY o.id"
    ))?;
    let rows = rows.query_map([], |row| Ok((Object::from_row(row)?, row.get(7)?)))?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

fn is_valid(tx: &Connection, id: i64) -> Result<bool, StoreError> {
    let mut row = tx.prepare_cached("SELECT 1 FROM object WHERE id = ?1 AND state = 'valid'")?;
    Ok(row.exists([id])?)
}

fn instances(tx: &Connection) -> Result<Vec<String>, StoreError> {
    let mut rows = tx.prepare_cached("SELECT name FROM instance ORDER BY id")?;
    let rows = rows.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

/// Tombstoned objects without a lease, with the reason why they could not be removed.
fn tombstoned(tx: &Connection) -> Result<Vec<(i64, Option<String>)>, StoreError> {
    let mut rows = tx.prepare_cached(
        "SELECT id, trouble FROM object WHERE state <> 'valid' AND state = 'condemned' \
         AND NOT EXISTS (SELECT 1 FROM lease WHERE object = object.id) ORDER BY id",
    )?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

/// The checks of SQLite, and of rules that it does not know.
fn database_damage(tx: &Connection) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    let mut rows = tx.prepare("PRAGMA integrity_check")?;
    let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
    found.extend(
        rows.collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .filter(|text| text != "ok"),
    );
    let mut rows = tx.prepare("PRAGMA foreign_key_check")?;
    let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
    for table in rows {
        found.push(format!("a row of `{}` refers to a missing row", table?));
    }
    let hints: i64 = tx.query_row(
        "SELECT count(*) FROM object o WHERE o.state <> 'valid' AND ( \
         EXISTS (SELECT 1 FROM action WHERE object = o.id) \
         OR EXISTS (SELECT 1 FROM edge WHERE child = o.id OR parent = o.id) \
         OR EXISTS (SELECT 1 FROM image_layer WHERE object = o.id) \
         OR EXISTS (SELECT 1 FROM image WHERE manifest = o.id OR config = o.id))",
        [],
        |row| row.get(0),
    )?;
    if hints > 0 {
        found.push(format!(
            "{hints} objects are referred to, but are not valid"
        ));
    }
    let vms = trust::unused_vms(tx)?;
    if vms > 0 {
        found.push(format!("{vms} records of VMs that nothing needs"));
    }
    Ok(found)
}
