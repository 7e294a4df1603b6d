//! Step keys: which layer a step made, and which instance is running the step now.
//!
//! The law: a transaction either finds a result and leases it, or claims the key. A claim only saves
//! work: if a step runs twice all the same, one valid layer comes of it. A claim is released by its own
//! id, so a late release cannot release somebody else's claim.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::{Commit, one_row};
use crate::history::events;
use crate::object::{self, COLUMNS, Object, Wanted};
use crate::{
    BuildId, DiffId, Digest, InstanceId, Layer, Run, StepKey, Store, StoreError, reap, time,
};

/// How often a look-up starts over, after a dead owner or a damaged layer, before it reports "busy".
const MAX_ATTEMPTS: usize = 16;

/// How long the failure of a command is remembered, in seconds. Waiting processes look several times a
/// second.
const KEEP_FAILURES: i64 = 600;

/// The result of a look-up of a step.
///
/// ```
/// use store::{Lookup, StepKey, sha256};
/// # use std::io::Write as _;
/// # use layer::{Attributes, EntryKind, Style, Writer};
/// # use store::{OpenOptions, Store};
/// # let root = tempfile::tempdir()?;
/// # let store = Store::open(root.path(), &OpenOptions::default())?;
/// # let mut tar = Writer::new(Vec::new(), Style::Copy);
/// # tar.header(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
/// # let tar = tar.finish()?;
///
/// let key = StepKey(sha256(b"everything that the result of the step depends on"));
/// let Lookup::Claimed(claim) = store.lookup(key)? else {
///     panic!("the store is new");
/// };
///
/// // The step is running, for everybody else.
/// assert!(matches!(store.lookup(key)?, Lookup::Busy(_)));
///
/// let mut writer = store.layer_writer("[2/2] RUN make")?;
/// writer.write_all(&tar)?;
/// let layer = claim.commit(&writer.finish()?, &[], false)?;
///
/// let Lookup::Hit(hit) = store.lookup(key)? else {
///     panic!("the step has a result");
/// };
/// assert_eq!(hit, layer);
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// Its layer exists, and is now leased.
    Hit(Layer),
    /// The caller has to run it.
    Claimed(Claim),
    /// A live instance is running it.
    Busy(Owner),
}

/// The owner of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The instance; it can be the caller's own.
    pub instance: InstanceId,
    /// The command that its user ran.
    pub command: String,
    /// When it got the claim, in seconds since 1970.
    pub since: i64,
    /// The run, if it has begun.
    pub run: Option<Run>,
    /// Its claim.
    claim: i64,
}

/// The failure of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The run of the command.
    pub run: Run,
    /// Its exit status.
    pub status: i32,
}

/// The right, and the duty, to run a step. Dropping it releases it as [`Self::release`] does, but logs
/// a failure instead of returning it. [`Lookup`] has an example.
#[derive(Debug)]
#[must_use = "without a claim others do the same work"]
pub struct Claim {
    store: Store,
    id: i64,
    key: StepKey,
    ended: bool,
}

impl Store {
    /// Finds the layer of a step and leases it, or claims the step, or returns the owner of the claim.
    ///
    /// # Errors
    /// If the store fails.
    pub fn lookup(&self, key: StepKey) -> Result<Lookup, StoreError> {
        self.look(key, true)
    }

    /// Claims a step even if its layer exists.
    ///
    /// # Errors
    /// If the store fails.
    pub fn claim(&self, key: StepKey) -> Result<Lookup, StoreError> {
        self.look(key, false)
    }

    /// Finds the layer of a step and leases it; claims nothing.
    ///
    /// # Errors
    /// If the store fails.
    pub fn peek(&self, key: StepKey) -> Result<Option<Layer>, StoreError> {
        self.acquire(|tx| find(tx, key))?
            .map(Layer::try_from)
            .transpose()
    }

    fn look(&self, key: StepKey, take_hit: bool) -> Result<Lookup, StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            if take_hit && let Some(layer) = self.peek(key)? {
                return Ok(Lookup::Hit(layer));
            }
            match self.try_claim(key, take_hit)? {
                Found::Claim(id) => {
                    return Ok(Lookup::Claimed(Claim {
                        store: self.clone(),
                        id,
                        key,
                        ended: false,
                    }));
                }
                Found::Hit => {}
                Found::Owner(owner) => {
                    let name = owner.instance.to_string();
                    if reap::is_alive(self.layout(), &self.inner.db, &name)? {
                        return Ok(Lookup::Busy(owner));
                    }
                }
            }
        }
        Err(StoreError::Busy(format!(
            "the claim on step {key} keeps changing its owner; try again"
        )))
    }

    /// Inserts a claim, unless the layer exists by now or the key is claimed.
    fn try_claim(&self, key: StepKey, take_hit: bool) -> Result<Found, StoreError> {
        self.write(Commit::Relaxed, |tx| {
            if take_hit && find(tx, key)?.is_some() {
                return Ok(Found::Hit);
            }
            let mut insert = tx.prepare_cached(
                "INSERT INTO claim (key, instance, since) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (key) DO NOTHING",
            )?;
            if insert.execute((key.0.0, self.instance_row(), time::now()))? == 1 {
                return Ok(Found::Claim(tx.last_insert_rowid()));
            }
            let mut owner = tx.prepare_cached(
                "SELECT i.name, i.command, c.since, c.build, c.step, c.id \
                 FROM claim c JOIN instance i ON i.id = c.instance WHERE c.key = ?1",
            )?;
            let (name, command, since, build, step, claim) = owner.query_row([key.0.0], |row| {
                let (build, step) = (row.get::<_, Option<i64>>(3)?, row.get::<_, Option<u32>>(4)?);
                let name: String = row.get(0)?;
                Ok((name, row.get(1)?, row.get(2)?, build, step, row.get(5)?))
            })?;
            let run = |(build, step)| Run {
                build: BuildId(build),
                step,
            };
            Ok(Found::Owner(Owner {
                instance: InstanceId::parse(&name)?,
                command,
                since,
                run: build.zip(step).map(run),
                claim,
            }))
        })
    }

    /// The failure of the command for which `owner` had the claim. `None` if it did not fail, or if
    /// something else ended the claim.
    ///
    /// # Errors
    /// If the store fails.
    pub fn failure(&self, owner: &Owner) -> Result<Option<Failure>, StoreError> {
        self.read(|tx| {
            let failure = tx
                .prepare_cached("SELECT build, step, status FROM failure WHERE claim = ?1")?
                .query_row([owner.claim], |row| {
                    let (build, step) = (BuildId(row.get(0)?), row.get(1)?);
                    Ok(Failure {
                        run: Run { build, step },
                        status: row.get(2)?,
                    })
                });
            Ok(failure.optional()?)
        })
    }
}

enum Found {
    Claim(i64),
    Owner(Owner),
    /// Another instance has committed a layer meanwhile.
    Hit,
}

fn find(tx: &Connection, key: StepKey) -> Result<Option<Object>, StoreError> {
    let found = tx
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM action a JOIN object o ON o.id = a.object \
             WHERE a.key = ?1 AND o.state = 'valid'"
        ))?
        .query_row([key.0.0], Object::from_row);
    Ok(found.optional()?)
}

impl Claim {
    /// The claimed key.
    #[must_use]
    pub fn key(&self) -> StepKey {
        self.key
    }

    /// Makes `layer`, which was built on top of `parents`, the result of the step, and releases the
    /// claim. If the step has another result already, that one stays unless `replace`; if their contents
    /// differ, an event is recorded. Returns the result of the step, leased.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if `layer` is not in the store.
    pub fn commit(
        mut self,
        layer: &Layer,
        parents: &[DiffId],
        replace: bool,
    ) -> Result<Layer, StoreError> {
        let store = self.store.clone();
        // Evicts the existing result if it is damaged.
        store.peek(self.key)?;
        let bound = store.write(Commit::Durable, |tx| {
            let child = object::find(tx, Wanted::Layer(layer.diff_id.0))?
                .ok_or_else(|| StoreError::Unknown(format!("layer {}", layer.diff_id)))?;
            let bound = bind(tx, self.key, child.clone(), replace)?;
            store.lease(tx, bound.id)?;
            for parent in parents {
                link(tx, child.id, parent.0)?;
            }
            delete_claim(tx, self.id)?;
            Ok(bound)
        })?;
        self.ended = true;
        Layer::try_from(bound)
    }

    /// Records which run the claim is for, so that waiting processes can follow its log.
    ///
    /// # Errors
    /// If the store fails.
    pub fn set_run(&self, run: Run) -> Result<(), StoreError> {
        self.store.write(Commit::Relaxed, |tx| {
            let changed = tx
                .prepare_cached("UPDATE claim SET build = ?2, step = ?3 WHERE id = ?1")?
                .execute((self.id, run.build.0, run.step))?;
            one_row(changed, "run of a claim")
        })
    }

    /// Releases the claim because the command of the run failed with this status, so that waiting
    /// processes do not run it again.
    ///
    /// # Errors
    /// If the store fails; the claim then lasts until the instance ends.
    pub fn fail(mut self, status: i32) -> Result<(), StoreError> {
        self.ended = true;
        let now = time::now();
        self.store.write(Commit::Relaxed, |tx| {
            tx.prepare_cached("DELETE FROM failure WHERE at NOT BETWEEN ?1 AND ?2")?
                .execute((now.saturating_sub(KEEP_FAILURES), now))?;
            tx.prepare_cached(
                "INSERT INTO failure (claim, build, step, status, at) \
                 SELECT id, build, step, ?2, ?3 FROM claim WHERE id = ?1 AND build IS NOT NULL",
            )?
            .execute((self.id, status, now))?;
            delete_claim(tx, self.id)
        })
    }

    /// Releases the claim without a result.
    ///
    /// # Errors
    /// If the store fails; the claim then lasts until the instance ends.
    pub fn release(mut self) -> Result<(), StoreError> {
        self.ended = true;
        self.store
            .write(Commit::Relaxed, |tx| delete_claim(tx, self.id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let released = self
            .store
            .write(Commit::Relaxed, |tx| delete_claim(tx, self.id));
        match released {
            // Closing the store has released all claims.
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => log::warn!(
                "cannot release the claim on step {} before the end: {error}",
                self.key
            ),
        }
    }
}

/// Sets the result of a key, and returns the one that it has now.
fn bind(
    tx: &Transaction<'_>,
    key: StepKey,
    new: Object,
    replace: bool,
) -> Result<Object, StoreError> {
    let Some(old) = find(tx, key)? else {
        let changed = tx
            .prepare_cached("INSERT INTO action (key, object, created) VALUES (?1, ?2, ?3)")?
            .execute((key.0.0, new.id, time::now()))?;
        one_row(changed, "new result of a step")?;
        return Ok(new);
    };
    if old.id == new.id {
        return Ok(new);
    }
    if old.content != new.content {
        let text = format!("step {key}: {} and {} differ", old.digest, new.digest);
        events::record(tx, "result differs", &text)?;
    }
    if !replace {
        return Ok(old);
    }
    let changed = tx
        .prepare_cached("UPDATE action SET object = ?2, created = ?3 WHERE key = ?1")?
        .execute((key.0.0, new.id, time::now()))?;
    one_row(changed, "changed result of a step")?;
    Ok(new)
}

/// Records a parent, if it exists and is older.
fn link(tx: &Transaction<'_>, child: i64, parent: Digest) -> Result<(), StoreError> {
    if let Some(parent) = object::find(tx, Wanted::Layer(parent))?
        && parent.id < child
    {
        tx.prepare_cached(
            "INSERT INTO edge (child, parent) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute((child, parent.id))?;
    }
    Ok(())
}

fn delete_claim(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let gone = tx
        .prepare_cached("DELETE FROM claim WHERE id = ?1")?
        .execute([id])?;
    one_row(gone, "end of a claim")
}
