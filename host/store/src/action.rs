//! Step keys: which layer a step made, and who is making it.
//!
//! The law: a hit is found and leased in one transaction, or else the key is claimed in it. A claim
//! saves work and proves nothing: two executions of one key end in one valid layer. A claim is
//! released by its own id, so a late release cannot free a successor's.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::{Commit, one_row};
use crate::history::events;
use crate::object::{self, COLUMNS, Object, Wanted};
use crate::{
    BuildId, DiffId, Digest, InstanceId, Layer, StepKey, Store, StoreError, instance, time,
};

/// How many dead owners or lost layers a look-up gets over before it says "busy".
const MAX_TURNS: usize = 16;

/// How long it is remembered that a command failed, in seconds. Who waits looks several times a
/// second.
const KEEP_FAILURES: i64 = 600;

/// What a store knows about a step.
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// Its layer is there and leased.
    Hit(Layer),
    /// It is to be done, by the caller.
    Claimed(Claim),
    /// Somebody alive is doing it.
    Busy(Owner),
}

/// Who has a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The instance; perhaps this one.
    pub instance: InstanceId,
    /// What its user ran.
    pub command: String,
    /// Since when it has the claim, in seconds since 1970.
    pub since: i64,
    /// In which build it runs the step, and as which step of it, if it has begun.
    pub run: Option<Run>,
    /// Its claim.
    claim: i64,
}

/// A run of a step: it is one of the steps of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The build.
    pub build: BuildId,
    /// The number of the step there, as its log has it.
    pub step: u32,
}

/// How a run ended whose command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The run.
    pub run: Run,
    /// Exit status of the command.
    pub status: i32,
}

/// The right, and the duty, to do a step. Dropping it lets go as [`Self::release`] does, as far as
/// that works.
#[derive(Debug)]
#[must_use = "a claim that is not held makes others do the same work"]
pub struct Claim {
    store: Store,
    id: i64,
    key: StepKey,
    ended: bool,
}

impl Store {
    /// Finds the layer of a step and leases it, or claims the step, or says who has it.
    ///
    /// # Errors
    /// If the store fails.
    pub fn lookup(&self, key: StepKey) -> Result<Lookup, StoreError> {
        self.look(key, true)
    }

    /// Claims a step without looking for a layer.
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
        for _ in 0..MAX_TURNS {
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
                    if instance::is_alive(self.layout(), &self.inner.db, &name)? {
                        return Ok(Lookup::Busy(owner));
                    }
                }
            }
        }
        Err(StoreError::Busy(format!(
            "the claim on step {key} keeps changing hands"
        )))
    }

    /// Inserts a claim, unless there is a layer by now, or somebody has the key.
    fn try_claim(&self, key: StepKey, take_hit: bool) -> Result<Found, StoreError> {
        self.write(Commit::Relaxed, |tx| {
            if take_hit && find(tx, key)?.is_some() {
                return Ok(Found::Hit);
            }
            let mut insert = tx.prepare_cached(
                "INSERT INTO claim (key, instance, since) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (key) DO NOTHING",
            )?;
            if insert.execute((key.0.0, self.me(), time::now()))? == 1 {
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

    /// How the command ended for which `owner` had a claim, if it failed by its own doing.
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
    /// Somebody has committed a layer meanwhile.
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
    /// The key that is claimed.
    #[must_use]
    pub fn key(&self) -> StepKey {
        self.key
    }

    /// Binds the key to `layer`, which was made on top of `parents`, and lets go. If the key is
    /// bound already, to another layer, the first stays unless `replace`; if their contents differ,
    /// that is noted. Returns the layer that the key is bound to now, leased.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if `layer` is not there.
    pub fn commit(
        mut self,
        layer: &Layer,
        parents: &[DiffId],
        replace: bool,
    ) -> Result<Layer, StoreError> {
        let store = self.store.clone();
        // The one that stays must have its bytes, so a lost one is found out first.
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

    /// Says which run the claim stands for, for those who wait.
    ///
    /// # Errors
    /// If the store fails.
    pub fn tell(&self, run: Run) -> Result<(), StoreError> {
        self.store.write(Commit::Relaxed, |tx| {
            let told = tx
                .prepare_cached("UPDATE claim SET build = ?2, step = ?3 WHERE id = ?1")?
                .execute((self.id, run.build.0, run.step))?;
            one_row(told, "run of a claim")
        })
    }

    /// Lets go because the command of the run that was told of failed with this status: who waits
    /// need not try it again.
    ///
    /// # Errors
    /// If the store fails; the claim then ends with the instance.
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

    /// Lets go without a result.
    ///
    /// # Errors
    /// If the store fails; the claim then ends with the instance.
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
            // A closed store has no claims any more.
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => log::warn!(
                "the claim on step {} stays until the end: {error}",
                self.key
            ),
        }
    }
}

/// Sets what a key stands for, and tells what it stands for.
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
        events::note(tx, "result differs", &text)?;
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

/// Notes a parent, if it is there and older.
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
