//! Trust: whose step results a build takes.
//!
//! A step has full control of what its VM does if it breaks out of its sandbox, and one VM runs all steps
//! of a build. So the result of a step is not only the work of that step, but perhaps of any step that
//! its VM had run before. Each result therefore records these steps, its [`Provenance`].
//!
//! The law: a build takes the result of a step only if the host made it, or if it comes from the
//! build's own *trust domain*, or if the build itself contains every step of its provenance. In the
//! last case the build would trust these steps with the same result anyway.
//!
//! The record is written by the host before a step begins, so nothing that runs in a VM can shorten it.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::db::Commit;
use crate::{StepKey, Store, StoreError};

/// The domain of results that only the host made, which everybody trusts.
const HOST: &str = "";

/// A VM that ran steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub(crate) i64);

/// Whom a result belongs to: builds of one domain trust each other's results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The domain with this name; `None` if that is empty.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Option<Self> {
        Some(Self(name.into())).filter(|domain| domain.0 != HOST)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Whose results a build takes.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Only those that the host made, as for a COPY. They have no provenance.
    Host,
    /// Those of a trust domain, and those of other domains whose provenance consists of known steps.
    Domain {
        /// The domain of the build.
        own: &'a TrustDomain,
        /// The steps of the build.
        known: &'a KnownSteps,
    },
}

impl Trust<'_> {
    pub(crate) fn domain(&self) -> &str {
        match self {
            Self::Host => HOST,
            Self::Domain { own, .. } => own.name(),
        }
    }
}

/// The steps that a build contains, as far as their keys are known.
#[derive(Debug, Default)]
pub struct KnownSteps(Mutex<HashSet<StepKey>>);

impl KnownSteps {
    /// Adds a step.
    pub fn add(&self, key: StepKey) {
        self.lock().insert(key);
    }

    fn contains(&self, key: StepKey) -> bool {
        self.lock().contains(&key)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<StepKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The VMs that could have influenced a result, each with the number of steps that it had begun by then.
/// Empty for what only the host made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance(BTreeMap<VmId, u32>);

impl Provenance {
    /// Adds what could have influenced another result, on which this one depends.
    pub fn merge(&mut self, other: &Self) {
        for (vm, steps) in &other.0 {
            let known = self.0.entry(*vm).or_default();
            *known = (*known).max(*steps);
        }
    }
}

/// A result that a build does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distrusted {
    /// The trust domain that it comes from.
    pub domain: String,
    /// A step that its VM had run and that the build does not contain, as it was displayed.
    pub step: String,
}

/// The steps that a VM runs, recorded as they begin.
#[derive(Debug)]
pub struct VmSteps {
    store: Store,
    vm: VmId,
    begun: AtomicU32,
}

impl Store {
    /// Begins the record of a VM. It lasts as long as this process or a result of the VM.
    ///
    /// # Errors
    /// If the store fails.
    pub fn record_vm(&self) -> Result<VmSteps, StoreError> {
        let vm = self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached("INSERT INTO vm (instance) VALUES (?1)")?
                .insert([self.instance_row()])
                .map_err(StoreError::from)
        })?;
        Ok(VmSteps {
            store: self.clone(),
            vm: VmId(vm),
            begun: AtomicU32::new(0),
        })
    }
}

impl VmSteps {
    /// Records that a step is about to begin in the VM; `name` is for messages. To be called before
    /// anything of the step reaches the VM.
    ///
    /// # Errors
    /// If the store fails. The step must not run then.
    pub fn begin(&self, key: StepKey, name: &str) -> Result<(), StoreError> {
        let number = self.store.write(Commit::Relaxed, |tx| {
            let number: u32 = tx
                .prepare_cached("SELECT coalesce(max(number), 0) + 1 FROM vm_step WHERE vm = ?1")?
                .query_row([self.vm.0], |row| row.get(0))?;
            tx.prepare_cached(
                "INSERT INTO vm_step (vm, number, key, name) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((self.vm.0, number, key.0.0, name))?;
            // Tells builds of other domains that wait for the step what else could influence it.
            tx.prepare_cached("UPDATE claim SET vm = ?1 WHERE key = ?2 AND instance = ?3")?
                .execute((self.vm.0, key.0.0, self.store.instance_row()))?;
            Ok(number)
        })?;
        self.begun.fetch_max(number, Ordering::SeqCst);
        Ok(())
    }

    /// What could have influenced a result that has left the VM by now.
    #[must_use]
    pub fn so_far(&self) -> Provenance {
        let begun = self.begun.load(Ordering::SeqCst);
        Provenance(BTreeMap::from([(self.vm, begun)]))
    }
}

/// A step in the provenance of a result that the build does not contain; `None` if there is none.
pub(crate) fn unknown_step(
    tx: &Connection,
    action: i64,
    known: &KnownSteps,
) -> Result<Option<String>, StoreError> {
    first_unknown(
        tx,
        "SELECT s.key, s.name FROM action_vm v \
         JOIN vm_step s ON s.vm = v.vm AND s.number <= v.steps WHERE v.action = ?1",
        action,
        known,
    )
}

/// Whether a build contains all steps that began in a VM so far. Not if the VM is forgotten.
pub(crate) fn knows_vm(tx: &Connection, vm: VmId, known: &KnownSteps) -> Result<bool, StoreError> {
    let exists = tx
        .prepare_cached("SELECT 1 FROM vm WHERE id = ?1")?
        .exists([vm.0])?;
    let sql = "SELECT key, name FROM vm_step WHERE vm = ?1";
    Ok(exists && first_unknown(tx, sql, vm.0, known)?.is_none())
}

fn first_unknown(
    tx: &Connection,
    sql: &str,
    id: i64,
    known: &KnownSteps,
) -> Result<Option<String>, StoreError> {
    let mut steps = tx.prepare_cached(sql)?;
    let mut steps = steps.query([id])?;
    while let Some(step) = steps.next()? {
        let key = StepKey(layer::Digest(step.get(0)?));
        if !known.contains(key) {
            return Ok(Some(step.get(1)?));
        }
    }
    Ok(None)
}

/// The provenance of a result.
pub(crate) fn provenance(tx: &Connection, action: i64) -> Result<Provenance, StoreError> {
    let mut vms = tx.prepare_cached("SELECT vm, steps FROM action_vm WHERE action = ?1")?;
    let vms = vms.query_map([action], |row| Ok((VmId(row.get(0)?), row.get(1)?)))?;
    Ok(Provenance(vms.collect::<Result<_, _>>()?))
}

/// Replaces the provenance of a result.
pub(crate) fn set_provenance(
    tx: &Transaction<'_>,
    action: i64,
    provenance: &Provenance,
) -> Result<(), StoreError> {
    let old = self::provenance(tx, action)?;
    tx.prepare_cached("DELETE FROM action_vm WHERE action = ?1")?
        .execute([action])?;
    let mut insert =
        tx.prepare_cached("INSERT INTO action_vm (action, vm, steps) VALUES (?1, ?2, ?3)")?;
    for (vm, steps) in &provenance.0 {
        insert.execute((action, vm.0, steps))?;
    }
    forget_unused(tx, old.0.into_keys())
}

/// Deletes the step results that are this object.
pub(crate) fn delete_results(tx: &Transaction<'_>, object: i64) -> Result<(), StoreError> {
    let mut actions = tx.prepare_cached("SELECT id FROM action WHERE object = ?1")?;
    let actions = actions.query_map([object], |row| row.get(0))?;
    for action in actions.collect::<Result<Vec<i64>, _>>()? {
        set_provenance(tx, action, &Provenance::default())?;
        tx.prepare_cached("DELETE FROM action WHERE id = ?1")?
            .execute([action])?;
    }
    Ok(())
}

/// The instance has ended: its VMs stay only as far as results refer to them.
pub(crate) fn release_vms(tx: &Transaction<'_>, instance: i64) -> Result<(), StoreError> {
    let mut release =
        tx.prepare_cached("UPDATE vm SET instance = NULL WHERE instance = ?1 RETURNING id")?;
    let released = release.query_map([instance], |row| row.get(0).map(VmId))?;
    forget_unused(tx, released.collect::<Result<Vec<_>, _>>()?)
}

/// Deletes the records of those of these VMs that neither an instance nor a result needs.
fn forget_unused(
    tx: &Transaction<'_>,
    vms: impl IntoIterator<Item = VmId>,
) -> Result<(), StoreError> {
    for vm in vms {
        let unused = tx
            .prepare_cached(
                "SELECT 1 FROM vm WHERE id = ?1 AND instance IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM action_vm WHERE vm = ?1)",
            )?
            .query_row([vm.0], |_| Ok(()))
            .optional()?;
        if unused.is_none() {
            continue;
        }
        for sql in [
            "DELETE FROM vm_step WHERE vm = ?1",
            "DELETE FROM vm WHERE id = ?1",
        ] {
            tx.prepare_cached(sql)?.execute([vm.0])?;
        }
    }
    Ok(())
}

/// How many VMs neither an instance nor a result needs; always zero.
pub(crate) fn unused_vms(tx: &Connection) -> Result<i64, StoreError> {
    Ok(tx.query_row(
        "SELECT count(*) FROM vm v WHERE instance IS NULL \
         AND NOT EXISTS (SELECT 1 FROM action_vm WHERE vm = v.id)",
        [],
        |row| row.get(0),
    )?)
}
