//! Step keys: which layer a step made, and which instance is running the step now.
//!
//! The law: a transaction either finds a result and leases it, or claims the key. A claim only saves
//! work: if a step runs twice all the same, one valid layer comes of it. A claim is released by its own
//! id, so a late release cannot release somebody else's claim.
//!
//! Results and claims belong to a trust domain, and [`Trust`] says which results count. A claim of
//! another domain is waited for only as long as its result would count.

use std::cell::RefCell;

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::{Commit, one_row};
use crate::history::events;
use crate::object::{self, Object, Wanted};
use crate::trust::{self, Distrusted, KnownSteps, Provenance, Trust, VmId};
use crate::{
    BuildId, DiffId, Digest, InstanceId, Layer, Run, StepKey, Store, StoreError, reap, time,
};

/// How often a look-up starts over, after a dead owner or a damaged layer, before it reports "busy".
const MAX_ATTEMPTS: usize = 16;

/// How many results of a step a look-up considers, the newest ones of other domains. So its time does not
/// grow with the number of domains.
const MAX_RESULTS: i64 = 64;

/// How long the failure of a command is remembered, in seconds. Waiting processes look several times a
/// second.
const KEEP_FAILURES: i64 = 600;

/// The result of a look-up of a step.
///
/// ```
/// use store::{KnownSteps, Lookup, StepKey, Trust, TrustDomain, sha256};
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
/// let known = KnownSteps::default();
/// let own = TrustDomain::new("the project").unwrap();
/// let trust = Trust::Domain { own: &own, known: &known };
/// let Lookup::Claimed(claim) = store.lookup(key, trust)? else {
///     panic!("the store is new");
/// };
///
/// // The step is running, for everybody else.
/// assert!(matches!(store.lookup(key, trust)?, Lookup::Busy(_)));
///
/// // This VM runs two steps, so each of them could have influenced the result of the second one.
/// let vm = store.record_vm()?;
/// vm.begin(StepKey(sha256(b"another step")), "[1/2] RUN wget …")?;
/// vm.begin(key, "[2/2] RUN make")?;
/// let mut writer = store.layer_writer("[2/2] RUN make")?;
/// writer.write_all(&tar)?;
/// let made = claim.commit(&writer.finish()?, &[], &vm.so_far(), false)?;
///
/// let Lookup::Hit(hit) = store.lookup(key, trust)? else {
///     panic!("the step has a result");
/// };
/// assert_eq!(hit.layer, made.layer);
///
/// // A build elsewhere takes it only if it contains both steps.
/// let own = TrustDomain::new("elsewhere").unwrap();
/// let elsewhere = Trust::Domain { own: &own, known: &known };
/// known.add(key);
/// let Lookup::Claimed(claim) = store.lookup(key, elsewhere)? else {
///     panic!("a stranger's VM made it");
/// };
/// assert_eq!(claim.distrusted().unwrap().step, "[1/2] RUN wget …");
/// claim.release()?;
/// known.add(StepKey(sha256(b"another step")));
/// assert!(matches!(store.lookup(key, elsewhere)?, Lookup::Hit(_)));
/// # store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// It has a result that counts, whose layer is now leased.
    Hit(StepResult),
    /// The caller has to run it.
    Claimed(Claim),
    /// A live instance is running it.
    Busy(Owner),
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepResult {
    /// Its layer.
    pub layer: Layer,
    /// The VMs that could have influenced it.
    pub provenance: Provenance,
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
    domain: String,
    /// The VM in which the step runs, once it does.
    vm: Option<VmId>,
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
    domain: String,
    distrusted: Option<Distrusted>,
    ended: bool,
}

impl Store {
    /// Finds the layer of a step and leases it, or claims the step, or returns the owner of the claim.
    ///
    /// # Errors
    /// If the store fails.
    pub fn lookup(&self, key: StepKey, trust: Trust<'_>) -> Result<Lookup, StoreError> {
        self.look(key, trust, true)
    }

    /// Claims a step even if it has a result.
    ///
    /// # Errors
    /// If the store fails.
    pub fn claim(&self, key: StepKey, trust: Trust<'_>) -> Result<Lookup, StoreError> {
        self.look(key, trust, false)
    }

    /// Finds the layer of a step and leases it; claims nothing.
    ///
    /// # Errors
    /// If the store fails.
    pub fn peek(&self, key: StepKey, trust: Trust<'_>) -> Result<Option<Layer>, StoreError> {
        Ok(self.find_result(key, trust)?.map(|found| found.layer))
    }

    fn find_result(
        &self,
        key: StepKey,
        trust: Trust<'_>,
    ) -> Result<Option<StepResult>, StoreError> {
        let provenance = RefCell::default();
        let object = self.acquire(|tx| {
            let found = find(tx, key, trust)?.trusted;
            if let Some((action, _)) = &found {
                *provenance.borrow_mut() = trust::provenance(tx, *action)?;
            }
            Ok(found.map(|(_, object)| object))
        })?;
        let Some(object) = object else {
            return Ok(None);
        };
        Ok(Some(StepResult {
            layer: Layer::try_from(object)?,
            provenance: provenance.into_inner(),
        }))
    }

    fn look(&self, key: StepKey, trust: Trust<'_>, take_hit: bool) -> Result<Lookup, StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            if take_hit && let Some(hit) = self.find_result(key, trust)? {
                return Ok(Lookup::Hit(hit));
            }
            match self.try_claim(key, trust, take_hit)? {
                Found::Claim(id, distrusted) => {
                    return Ok(Lookup::Claimed(Claim {
                        store: self.clone(),
                        id,
                        key,
                        domain: trust.domain().to_owned(),
                        distrusted,
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

    /// Inserts a claim, unless a result counts by now or the key is claimed.
    fn try_claim(
        &self,
        key: StepKey,
        trust: Trust<'_>,
        take_hit: bool,
    ) -> Result<Found, StoreError> {
        self.write(Commit::Relaxed, |tx| {
            let results = find(tx, key, trust)?;
            if take_hit && results.trusted.is_some() {
                return Ok(Found::Hit);
            }
            for owner in owners(tx, key)? {
                let concerns = owner.domain == trust.domain()
                    || take_hit && owner.result_would_count(tx, trust)?;
                if concerns {
                    return Ok(Found::Owner(owner));
                }
            }
            let claim = tx
                .prepare_cached(
                    "INSERT INTO claim (key, domain, instance, since) VALUES (?1, ?2, ?3, ?4)",
                )?
                .insert((key.0.0, trust.domain(), self.instance_row(), time::now()))?;
            Ok(Found::Claim(claim, results.distrusted))
        })
    }

    /// The failure of the command for which `owner` had the claim. `None` if it did not fail, if
    /// something else ended the claim, or if the failure does not count because its VM had also run
    /// steps of strangers.
    ///
    /// # Errors
    /// If the store fails.
    pub fn failure(&self, owner: &Owner, trust: Trust<'_>) -> Result<Option<Failure>, StoreError> {
        self.read(|tx| {
            let counts = match trust {
                _ if owner.domain == trust.domain() => true,
                Trust::Domain { known, .. } if let Some(vm) = owner.vm => {
                    trust::knows_vm(tx, vm, known)?
                }
                Trust::Domain { .. } | Trust::Host => false,
            };
            if !counts {
                return Ok(None);
            }
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
    Claim(i64, Option<Distrusted>),
    Owner(Owner),
    /// Another instance has committed a result meanwhile.
    Hit,
}

impl Owner {
    /// Whether a result that another domain makes would count if it existed now.
    fn result_would_count(&self, tx: &Connection, trust: Trust<'_>) -> Result<bool, StoreError> {
        match (trust, self.vm) {
            (Trust::Host, _) => Ok(false),
            // It has not begun.
            (Trust::Domain { .. }, None) => Ok(true),
            (Trust::Domain { known, .. }, Some(vm)) => trust::knows_vm(tx, vm, known),
        }
    }
}

/// The owners of all claims on a key, of whatever domain.
fn owners(tx: &Connection, key: StepKey) -> Result<Vec<Owner>, StoreError> {
    let mut owners = tx.prepare_cached(
        "SELECT i.name, i.command, c.since, c.build, c.step, c.id, c.domain, c.vm \
         FROM claim c JOIN instance i ON i.id = c.instance WHERE c.key = ?1",
    )?;
    let mut rows = owners.query([key.0.0])?;
    let mut owners = Vec::new();
    while let Some(row) = rows.next()? {
        let (build, step) = (row.get::<_, Option<i64>>(3)?, row.get::<_, Option<u32>>(4)?);
        let run = |(build, step)| Run {
            build: BuildId(build),
            step,
        };
        owners.push(Owner {
            instance: InstanceId::parse(&row.get::<_, String>(0)?)?,
            command: row.get(1)?,
            since: row.get(2)?,
            run: build.zip(step).map(run),
            claim: row.get(5)?,
            domain: row.get(6)?,
            vm: row.get::<_, Option<i64>>(7)?.map(VmId),
        });
    }
    Ok(owners)
}

/// The results of a key, as a build sees them.
struct Results {
    /// One that counts, with its row.
    trusted: Option<(i64, Object)>,
    /// Without that, one that does not count.
    distrusted: Option<Distrusted>,
}

/// Looks at the results of a key, those of the own domain first.
fn find(tx: &Connection, key: StepKey, trust: Trust<'_>) -> Result<Results, StoreError> {
    let mut actions = tx.prepare_cached(
        "SELECT a.id, a.domain, a.object FROM action a JOIN object o ON o.id = a.object \
         WHERE a.key = ?1 AND o.state = 'valid' ORDER BY a.domain <> ?2, a.id DESC LIMIT ?3",
    )?;
    let mut actions = actions.query((key.0.0, trust.domain(), MAX_RESULTS))?;
    let mut distrusted = None;
    while let Some(row) = actions.next()? {
        let (action, domain, object) = (row.get(0)?, row.get::<_, String>(1)?, row.get(2)?);
        match stranger(tx, action, &domain, trust)? {
            None => {
                return Ok(Results {
                    trusted: Some((action, object::get(tx, object)?)),
                    distrusted: None,
                });
            }
            Some(step) if distrusted.is_none() => distrusted = Some(Distrusted { domain, step }),
            Some(_) => {}
        }
    }
    Ok(Results {
        trusted: None,
        distrusted,
    })
}

/// A step because of which a result does not count; `None` if it counts.
fn stranger(
    tx: &Connection,
    action: i64,
    domain: &str,
    trust: Trust<'_>,
) -> Result<Option<String>, StoreError> {
    match trust {
        _ if domain == trust.domain() => Ok(None),
        Trust::Domain { known, .. } => trust::unknown_step(tx, action, known),
        Trust::Host => trust::unknown_step(tx, action, &KnownSteps::default()),
    }
}

impl Claim {
    /// The claimed key.
    #[must_use]
    pub fn key(&self) -> StepKey {
        self.key
    }

    /// A result of the step that exists, but does not count for the build.
    #[must_use]
    pub fn distrusted(&self) -> Option<&Distrusted> {
        self.distrusted.as_ref()
    }

    /// Makes `layer`, which was built on top of `parents` and influenced by `provenance`, the result of
    /// the step in the trust domain of the claim, and releases the claim. If the step has another
    /// result there already, that one stays unless `replace`; if their contents differ, an event is
    /// recorded. Returns the result of the step, leased.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if `layer` is not in the store.
    pub fn commit(
        mut self,
        layer: &Layer,
        parents: &[DiffId],
        provenance: &Provenance,
        replace: bool,
    ) -> Result<StepResult, StoreError> {
        let store = self.store.clone();
        // Evicts the existing result if it is damaged.
        store
            .acquire(|tx| Ok(own_result(tx, self.key, &self.domain)?.map(|(_, object)| object)))?;
        let (bound, provenance) = store.write(Commit::Durable, |tx| {
            let child = object::find(tx, Wanted::Layer(layer.diff_id.0))?
                .ok_or_else(|| StoreError::Unknown(format!("layer {}", layer.diff_id)))?;
            let (action, bound) = bind(tx, (self.key, &self.domain), &child, provenance, replace)?;
            store.lease(tx, bound.id)?;
            for parent in parents {
                link(tx, child.id, parent.0)?;
            }
            delete_claim(tx, self.id)?;
            Ok((bound, trust::provenance(tx, action)?))
        })?;
        self.ended = true;
        Ok(StepResult {
            layer: Layer::try_from(bound)?,
            provenance,
        })
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

/// The result of a key in one domain, with its row.
fn own_result(
    tx: &Connection,
    key: StepKey,
    domain: &str,
) -> Result<Option<(i64, Object)>, StoreError> {
    let found = tx
        .prepare_cached(
            "SELECT a.id, a.object FROM action a JOIN object o ON o.id = a.object \
             WHERE a.key = ?1 AND a.domain = ?2 AND o.state = 'valid'",
        )?
        .query_row((key.0.0, domain), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found
        .map(|(action, object)| Ok((action, object::get(tx, object)?)))
        .transpose()
}

/// Sets the result of a key in a domain, and returns the one that it has now, with its row.
fn bind(
    tx: &Transaction<'_>,
    (key, domain): (StepKey, &str),
    new: &Object,
    provenance: &Provenance,
    replace: bool,
) -> Result<(i64, Object), StoreError> {
    let Some((action, old)) = own_result(tx, key, domain)? else {
        let action = tx
            .prepare_cached(
                "INSERT INTO action (key, domain, object, created) VALUES (?1, ?2, ?3, ?4)",
            )?
            .insert((key.0.0, domain, new.id, time::now()))?;
        trust::set_provenance(tx, action, provenance)?;
        return Ok((action, new.clone()));
    };
    if old.content != new.content {
        let text = format!("step {key}: {} and {} differ", old.digest, new.digest);
        events::record(tx, "result differs", &text)?;
    }
    if !replace {
        return Ok((action, old));
    }
    let changed = tx
        .prepare_cached("UPDATE action SET object = ?2, created = ?3 WHERE id = ?1")?
        .execute((action, new.id, time::now()))?;
    one_row(changed, "changed result of a step")?;
    trust::set_provenance(tx, action, provenance)?;
    Ok((action, new.clone()))
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
