//! Objects: layers and other blobs, their rows and their files.
//!
//! ```text
//! writing ──► valid ──► condemned ──► (no row)
//!    └────────────────────▲
//! ```
//!
//! The law: row as intent, bytes under a name that contains the row's id, sync of file and
//! directory, then `valid`. Backwards: `condemned` on disk, then the bytes go, and only when they
//! are seen to be gone, the row. A row id is never given out twice, so a late removal cannot hit a
//! successor, and a removal names a row, never a digest.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::{Commit, Db, one_row};
use crate::digest::Hasher;
use crate::history::events;
use crate::layout::Layout;
use crate::{ContentId, Digest, Removal, Store, StoreError, disk, image, time};

/// Kind of an object that has an index.
pub(crate) const LAYER: &str = "layer";
/// How many damaged candidates a look-up gets over before it gives up.
const MAX_LOST: usize = 16;
/// The time of last use is only kept this exactly, in seconds, so that most hits write nothing.
const USE_GRAIN: i64 = 60;
/// How often a file that is in the way of a new object is got round.
const MAX_FOREIGN: usize = 8;

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

/// A count. SQLite's numbers are signed, and ours never come near the limit.
pub(crate) fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// Which objects a look-up may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The layer with this digest.
    Layer(Digest),
    /// Any object with these bytes.
    Bytes(Digest),
}

/// The valid object, without a lease.
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

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) id: i64,
    pub(crate) path: PathBuf,
}

/// What makes a draft a valid object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Only of layers.
    pub(crate) content: Option<ContentId>,
    pub(crate) entries: u64,
}

impl Store {
    /// Finds an object and leases it, in one transaction. An object whose bytes are gone or damaged
    /// is a miss, its row goes, and the next candidate is tried.
    pub(crate) fn acquire(
        &self,
        find: impl Fn(&Connection) -> Result<Option<Object>, StoreError>,
    ) -> Result<Option<Object>, StoreError> {
        for _ in 0..MAX_LOST {
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
                Some(damage) => self.lose(object.id, &damage)?,
            }
        }
        Err(StoreError::corrupt(
            "too many damaged objects in a row: run `cofferdam store check --repair`",
        ))
    }

    /// Leases an object, in the transaction that found it.
    pub(crate) fn lease(&self, tx: &Transaction<'_>, object: i64) -> Result<(), StoreError> {
        tx.prepare_cached(
            "INSERT INTO lease (instance, object) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute((self.me(), object))?;
        tx.prepare_cached("UPDATE object SET used = ?2 WHERE id = ?1 AND used < ?2 - ?3")?
            .execute((object, time::now(), USE_GRAIN))?;
        Ok(())
    }

    /// What is wrong with the bytes of an object, as far as a look at the file tells; objects that
    /// were made just before power was lost are hashed.
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

    /// Condemns an object whose bytes are gone or damaged, with all hints to it and the names of
    /// images that cannot be made without it. What other live instances lease stays as a row, so
    /// that they get an error and not other bytes.
    pub(crate) fn lose(&self, id: i64, damage: &str) -> Result<(), StoreError> {
        log::warn!("object {id} of the store is lost: {damage}");
        let me = self.me();
        self.write(Commit::Durable, |tx| lose(tx, id, me, damage))?;
        remove(self.layout(), &self.inner.db, &[id])
    }

    /// Writes down that an object will be made, and makes its file.
    pub(crate) fn begin(&self, kind: &str, origin: &str) -> Result<(Draft, File), StoreError> {
        for _ in 0..MAX_FOREIGN {
            let id = self.write(Commit::Durable, |tx| {
                let now = time::now();
                Ok(tx
                    .prepare_cached(
                        "INSERT INTO object (kind, state, origin, maker, created, used) \
                         VALUES (?1, 'writing', ?2, ?3, ?4, ?4)",
                    )?
                    .insert((kind, origin, self.me(), now))?)
            })?;
            let path = self.layout().blob(id);
            match disk::create(&path) {
                Ok(file) => return Ok((Draft { id, path }, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    log::warn!("{} is in the way and not of the store", path.display());
                    self.write(Commit::Relaxed, |tx| forget_row(tx, id))?;
                }
                Err(error) => return Err(StoreError::io("create", &path, error)),
            }
        }
        Err(StoreError::corrupt(
            "files that are not of the store are in the way of new objects",
        ))
    }

    /// Makes a draft valid, whose bytes (and index) are durable already. If the same object is
    /// there, that one is used, and the draft goes.
    pub(crate) fn commit(&self, draft: &Draft, outcome: &Outcome) -> Result<Object, StoreError> {
        let wanted = match outcome.content {
            Some(_) => Wanted::Layer(outcome.digest),
            None => Wanted::Bytes(outcome.digest),
        };
        let object = self.write(Commit::Durable, |tx| {
            if let Some(there) = find(tx, wanted)? {
                condemn_draft(tx, draft.id)?;
                self.lease(tx, there.id)?;
                return Ok(there);
            }
            let changed = tx
                .prepare_cached(
                    "UPDATE object SET state = 'valid', digest = ?2, size = ?3, content = ?4, \
                     entries = ?5 WHERE id = ?1 AND state = 'writing'",
                )?
                .execute((
                    draft.id,
                    outcome.digest.0,
                    outcome.size.cast_signed(),
                    outcome.content.map(|id| id.0.0),
                    outcome.entries.cast_signed(),
                ))?;
            one_row(changed, "commit of an object")?;
            self.lease(tx, draft.id)?;
            find(tx, wanted)?.ok_or_else(|| StoreError::corrupt("a committed object is not there"))
        })?;
        if object.id != draft.id {
            remove(self.layout(), &self.inner.db, &[draft.id])?;
        }
        Ok(object)
    }

    /// Gives up a draft. What cannot be removed now goes when the instance ends.
    pub(crate) fn discard(&self, draft: &Draft) -> Result<(), StoreError> {
        // Nothing ever needed the bytes, so they may go before the row says so: on a full disk it is
        // their room that lets the row be written. What cannot go is told by `remove` below.
        make_room(self.layout(), draft.id);
        self.write(Commit::Relaxed, |tx| condemn_draft(tx, draft.id))?;
        remove(self.layout(), &self.inner.db, &[draft.id])
    }

    /// As [`Self::discard`], on the way out of a failure that is told instead.
    pub(crate) fn discard_after_failure(&self, draft: &Draft) {
        if let Err(error) = self.discard(draft) {
            log::warn!("cannot give up object {}: {error}", draft.id);
        }
    }
}

fn condemn_draft(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL \
             WHERE id = ?1 AND state = 'writing'",
        )?
        .execute([id])?;
    one_row(changed, "end of a draft")
}

/// Deletes the row of a draft that never had a file.
fn forget_row(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let gone = tx
        .prepare_cached("DELETE FROM object WHERE id = ?1 AND state = 'writing'")?
        .execute([id])?;
    one_row(gone, "end of a draft without a file")
}

fn lose(tx: &Transaction<'_>, id: i64, me: i64, damage: &str) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE object SET state = 'condemned', maker = NULL \
             WHERE id = ?1 AND state = 'valid'",
        )?
        .execute([id])?;
    if changed == 0 {
        return Ok(()); // somebody else was faster
    }
    unpin(tx, id)?;
    for name in image::names_of(tx, id)? {
        image::delete(tx, &name)?;
        events::note(tx, "image lost", &format!("{name}: {damage}"))?;
    }
    tx.prepare_cached("DELETE FROM lease WHERE object = ?1 AND instance = ?2")?
        .execute((id, me))?;
    events::note(tx, "object lost", &format!("{id}: {damage}"))
}

/// Deletes the hints to an object, so that its row can go.
pub(crate) fn unpin(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM action WHERE object = ?1")?
        .execute([id])?;
    tx.prepare_cached("DELETE FROM edge WHERE child = ?1 OR parent = ?1")?
        .execute([id])?;
    Ok(())
}

/// Removes the files of condemned objects, and the rows of those whose files are gone. One that
/// cannot be removed keeps its row, with the reason, and does not stop the others.
pub(crate) fn remove(layout: &Layout, db: &Db, ids: &[i64]) -> Result<(), StoreError> {
    let removals: Vec<(i64, Removal)> = ids
        .iter()
        .map(|id| (*id, remove_files(layout, *id)))
        .collect();
    if removals.is_empty() {
        return Ok(());
    }
    settle_removals(db, &removals)
}

/// Goes on where a process was killed between condemning and removing. What failed to be removed
/// before is left to a prune.
pub(crate) fn finish_condemned(layout: &Layout, db: &Db) -> Result<(), StoreError> {
    let ids = db.read(|tx| {
        let mut rows = tx.prepare_cached(
            "SELECT id FROM object WHERE state <> 'valid' AND state = 'condemned' AND tries = 0 \
             AND NOT EXISTS (SELECT 1 FROM lease WHERE object = object.id)",
        )?;
        let rows = rows.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<Vec<i64>, _>>()?)
    })?;
    remove(layout, db, &ids)
}

/// Removes the bytes of drafts whose maker is dead, so that there is room for their rows on a full
/// disk. The rows are settled afterwards, also those of bytes that could not be removed.
pub(crate) fn remove_drafts_of(layout: &Layout, db: &Db, maker: i64) -> Result<(), StoreError> {
    let drafts = db.read(|tx| {
        let mut rows =
            tx.prepare_cached("SELECT id FROM object WHERE maker = ?1 AND state = 'writing'")?;
        let rows = rows.query_map([maker], |row| row.get(0))?;
        Ok(rows.collect::<Result<Vec<i64>, _>>()?)
    })?;
    for id in drafts {
        make_room(layout, id);
    }
    Ok(())
}

/// Removes the bytes of a draft ahead of its row. Failing is no loss here: the row stays until the
/// bytes are gone.
fn make_room(layout: &Layout, id: i64) {
    if let Removal::Busy(why) | Removal::Failed(why) = remove_files(layout, id) {
        log::debug!("the bytes of draft {id} stay for now: {why}");
    }
}

/// Removes the files of one condemned object.
pub(crate) fn remove_files(layout: &Layout, id: i64) -> Removal {
    match (
        disk::remove_file(&layout.index(id)),
        disk::remove_file(&layout.blob(id)),
    ) {
        (Removal::Gone, Removal::Gone) => Removal::Gone,
        (Removal::Gone, other) | (other, _) => other,
    }
}

/// Deletes the rows of what is gone, and notes why the others are not. A lease on a damaged object
/// keeps its row, too.
pub(crate) fn settle_removals(db: &Db, removals: &[(i64, Removal)]) -> Result<(), StoreError> {
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

/// The digest of a file; `None` if there is none.
pub(crate) fn hash_file(path: &std::path::Path) -> Result<Option<Digest>, StoreError> {
    let Some(mut file) = disk::open(path)? else {
        return Ok(None);
    };
    let (mut hasher, mut piece) = (Hasher::new(), vec![0; 1 << 20]);
    loop {
        match io::Read::read(&mut file, &mut piece) {
            Ok(0) => return Ok(Some(hasher.finish())),
            Ok(count) => hasher.update(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
    }
}
