//! Objects: layers and other blobs, their rows and their files.
//!
//! ```text
//! writing ──► valid ──► tombstoned ──► (no row)
//!    └────────────────────▲
//! ```
//!
//! The law: first a row as intent, then the content under a name that contains the row's id, then a
//! sync of file and directory, then `valid`. At the end: `tombstoned` on disk, then the files are
//! removed, and the row is deleted once they are seen to be gone. A row id is never reused, so a late
//! removal cannot hit another object, and a removal names a row, never a digest.
//!
//! In the database the states are called `writing`, `valid` and `condemned` (tombstoned).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::budget::Charge;
use crate::db::{Commit, one_row};
use crate::digest::Hasher;
use crate::history::events;
use crate::references;
use crate::removal::{remove, remove_pending};
use crate::{ContentId, Digest, Store, StoreError, disk, time};

/// Kind of an object that has an index.
pub(crate) const LAYER: &str = "layer";
/// How many damaged candidates a look-up skips before it gives up.
const MAX_EVICTED: usize = 16;
/// Precision of the time of last use, in seconds. It is coarse, so that most hits write nothing.
const USE_PRECISION: i64 = 60;
/// How many ids whose names are taken by external files are skipped for a new object.
const MAX_EXTERNAL: usize = 8;

/// A valid object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) id: i64,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Only of layers.
    pub(crate) content: Option<ContentId>,
    pub(crate) entries: u64,
    pub(crate) created: i64,
    suspect: bool,
}

/// Columns of [`Object`], of the table `object` under the name `o`.
pub(crate) const COLUMNS: &str =
    "o.id, o.digest, o.size, o.content, o.entries, o.created, o.suspect";

impl Object {
    /// Reads [`COLUMNS`].
    pub(crate) fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            digest: Digest(row.get(1)?),
            size: unsigned(row, 2)?,
            content: row
                .get::<_, Option<[u8; 32]>>(3)?
                .map(|bytes| ContentId(Digest(bytes))),
            entries: unsigned(row, 4)?,
            created: row.get(5)?,
            suspect: row.get(6)?,
        })
    }
}

/// Reads a count. SQLite's numbers are signed; our counts never come near the limit.
pub(crate) fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// Which objects a look-up may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The layer with this digest.
    Layer(Digest),
    /// Any object with this content.
    Bytes(Digest),
}

/// Finds a valid object. Takes no lease.
pub(crate) fn find(tx: &Connection, wanted: Wanted) -> Result<Option<Object>, StoreError> {
    let found = match wanted {
        Wanted::Layer(digest) => tx
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM object o \
                 WHERE o.digest = ?1 AND (o.kind = 'layer') = 1 AND o.state = 'valid'"
            ))?
            .query_row([digest.0], Object::from_row),
        Wanted::Bytes(digest) => tx
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM object o WHERE o.digest = ?1 AND o.state = 'valid' \
                 ORDER BY (o.kind = 'layer') LIMIT 1"
            ))?
            .query_row([digest.0], Object::from_row),
    };
    Ok(found.optional()?)
}

/// The object with this row, which exists.
pub(crate) fn get(tx: &Connection, row: i64) -> Result<Object, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM object o WHERE o.id = ?1");
    Ok(tx
        .prepare_cached(&sql)?
        .query_row([row], Object::from_row)?)
}

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct PendingObject {
    pub(crate) id: i64,
    pub(crate) path: PathBuf,
    /// What it takes from the budget of its build.
    pub(crate) charge: Charge,
}

/// What turns a pending object into a valid one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Only of layers.
    pub(crate) content: Option<ContentId>,
    pub(crate) entries: u64,
}

impl Store {
    /// Finds an object and leases it, in one transaction. An object whose file is missing or damaged
    /// is evicted, and the next candidate is tried.
    pub(crate) fn acquire(
        &self,
        find: impl Fn(&Connection) -> Result<Option<Object>, StoreError>,
    ) -> Result<Option<Object>, StoreError> {
        for _ in 0..MAX_EVICTED {
            let found = if self.is_read_only() {
                self.read(&find)?
            } else {
                self.write(Commit::Relaxed, |tx| {
                    let found = find(tx)?;
                    if let Some(object) = &found {
                        self.lease(tx, object.id)?;
                    }
                    Ok(found)
                })?
            };
            let Some(object) = found else { return Ok(None) };
            match self.damage(&object)? {
                None => return Ok(Some(object)),
                Some(_) if self.is_read_only() => return Ok(None),
                Some(damage) => self.evict(object.id, &damage)?,
            }
        }
        Err(StoreError::corrupt(
            "too many objects of the store are damaged; run `cofferdam store check --repair`",
        ))
    }

    /// Leases an object, in the transaction that found it.
    pub(crate) fn lease(&self, tx: &Transaction<'_>, object: i64) -> Result<(), StoreError> {
        tx.prepare_cached(
            "INSERT INTO lease (instance, object) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute((self.instance_row(), object))?;
        tx.prepare_cached("UPDATE object SET used = ?2 WHERE id = ?1 AND used < ?2 - ?3")?
            .execute((object, time::now(), USE_PRECISION))?;
        Ok(())
    }

    /// Describes what is wrong with the file of an object. Compares the length; the content is hashed
    /// only if the object was made shortly before a power failure.
    fn damage(&self, object: &Object) -> Result<Option<String>, StoreError> {
        let path = self.layout().blob(object.id);
        match disk::length(&path)? {
            None => return Ok(Some("its file is missing".to_owned())),
            Some(size) if size != object.size => {
                return Ok(Some(format!(
                    "its file has {size} bytes instead of {}",
                    object.size
                )));
            }
            Some(_) => {}
        }
        if object.suspect && !self.is_read_only() {
            if hash_file(&path)? != Some(object.digest) {
                return Ok(Some("its file does not match its digest".to_owned()));
            }
            self.write(Commit::Relaxed, |tx| {
                tx.prepare_cached("UPDATE object SET suspect = 0 WHERE id = ?1")?
                    .execute([object.id])?;
                Ok(())
            })?;
        }
        Ok(None)
    }

    /// Tombstones an object whose file is missing or damaged. Deletes the hints to it, and the names
    /// of images that need it. If other live instances lease the object, its row stays, so that they
    /// get an error instead of other content.
    pub(crate) fn evict(&self, id: i64, damage: &str) -> Result<(), StoreError> {
        log::warn!("removing object {id} from the store: {damage}");
        let instance = self.instance_row();
        self.write(Commit::Durable, |tx| evict(tx, id, instance, damage))?;
        remove(self.layout(), &self.inner.db, &[id])
    }

    /// Records that an object will be made, and creates its file.
    pub(crate) fn begin(
        &self,
        kind: &str,
        origin: &str,
    ) -> Result<(PendingObject, File), StoreError> {
        for _ in 0..MAX_EXTERNAL {
            let id = self.write(Commit::Durable, |tx| {
                let now = time::now();
                Ok(tx
                    .prepare_cached(
                        "INSERT INTO object (kind, state, origin, maker, created, used) \
                         VALUES (?1, 'writing', ?2, ?3, ?4, ?4)",
                    )?
                    .insert((kind, origin, self.instance_row(), now))?)
            })?;
            let path = self.layout().blob(id);
            match disk::create(&path) {
                Ok(file) => {
                    let charge = self.charge();
                    return Ok((PendingObject { id, path, charge }, file));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    log::warn!(
                        "{} already exists but is not part of the store; using another name",
                        path.display()
                    );
                    self.write(Commit::Relaxed, |tx| forget_row(tx, id))?;
                }
                Err(error) => return Err(StoreError::io("create", &path, error)),
            }
        }
        Err(StoreError::corrupt(format!(
            "{} contains files that are not part of the store; run `cofferdam store check --repair`",
            self.layout().blobs().display()
        )))
    }

    /// Makes a pending object valid; its content (and index) must be durable already. If an equal
    /// object exists, that one is returned, and the pending object is removed.
    pub(crate) fn commit(
        &self,
        pending: &PendingObject,
        outcome: &Outcome,
    ) -> Result<Object, StoreError> {
        let wanted = match outcome.content {
            Some(_) => Wanted::Layer(outcome.digest),
            None => Wanted::Bytes(outcome.digest),
        };
        let object = self.write(Commit::Durable, |tx| {
            if let Some(existing) = find(tx, wanted)? {
                tombstone_pending(tx, pending.id)?;
                self.lease(tx, existing.id)?;
                return Ok(existing);
            }
            let changed = tx
                .prepare_cached(
                    "UPDATE object SET state = 'valid', digest = ?2, size = ?3, content = ?4, \
                     entries = ?5 WHERE id = ?1 AND state = 'writing'",
                )?
                .execute((
                    pending.id,
                    outcome.digest.0,
                    outcome.size.cast_signed(),
                    outcome.content.map(|id| id.0.0),
                    outcome.entries.cast_signed(),
                ))?;
            one_row(changed, "commit of an object")?;
            self.lease(tx, pending.id)?;
            find(tx, wanted)?.ok_or_else(|| StoreError::corrupt("a committed object is missing"))
        })?;
        if object.id != pending.id {
            remove(self.layout(), &self.inner.db, &[pending.id])?;
            pending.charge.give_back();
        }
        Ok(object)
    }

    /// Discards a pending object. What cannot be removed now is removed when the instance ends.
    pub(crate) fn discard(&self, pending: &PendingObject) -> Result<(), StoreError> {
        // Nobody needs the content, so it is removed before its row is tombstoned: on a full disk this
        // frees the space for the transaction. `remove` reports what cannot be removed.
        remove_pending(self.layout(), pending.id);
        self.write(Commit::Relaxed, |tx| tombstone_pending(tx, pending.id))?;
        remove(self.layout(), &self.inner.db, &[pending.id])?;
        pending.charge.give_back();
        Ok(())
    }

    /// As [`Self::discard`], after another failure, which is the one to be reported.
    pub(crate) fn discard_after_failure(&self, pending: &PendingObject) {
        if let Err(error) = self.discard(pending) {
            log::warn!("cannot remove unfinished object {}: {error}", pending.id);
        }
    }
}

fn tombstone_pending(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL \
             WHERE id = ?1 AND state = 'writing'",
        )?
        .execute([id])?;
    one_row(changed, "end of a pending object")
}

/// Deletes the row of a pending object that never had a file.
fn forget_row(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let deleted = tx
        .prepare_cached("DELETE FROM object WHERE id = ?1 AND state = 'writing'")?
        .execute([id])?;
    one_row(deleted, "end of a pending object without a file")
}

fn evict(tx: &Transaction<'_>, id: i64, instance: i64, damage: &str) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL \
             WHERE id = ?1 AND state = 'valid'",
        )?
        .execute([id])?;
    if changed == 0 {
        return Ok(()); // another process was faster
    }
    references::delete_hints(tx, id)?;
    for name in references::image_names(tx, id)? {
        references::delete_image(tx, &name)?;
        events::record(tx, "image lost", &format!("{name}: {damage}"))?;
    }
    tx.prepare_cached("DELETE FROM lease WHERE object = ?1 AND instance = ?2")?
        .execute((id, instance))?;
    events::record(tx, "object lost", &format!("{id}: {damage}"))
}

/// The digest of a file; `None` if it does not exist.
pub(crate) fn hash_file(path: &Path) -> Result<Option<Digest>, StoreError> {
    let Some(mut file) = disk::open(path)? else {
        return Ok(None);
    };
    let (mut hasher, mut piece) = (Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(Some(hasher.finish())),
            Ok(count) => hasher.update(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
    }
}
