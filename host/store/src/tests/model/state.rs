//! The database, the files and the processes of the model, and what each step does to them.

use super::{Fault, Script};

/// The index of a process. The last two are the pruner, and the process that comes after all others.
pub(super) type Who = usize;
/// Id of a row; never reused.
type Id = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ObjectState {
    Writing,
    Valid,
    Tombstoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bytes {
    Missing,
    Torn,
    Whole,
}

/// A row of `object`, with its file and its leases.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Object {
    id: Id,
    key: usize,
    state: ObjectState,
    maker: Option<Who>,
    bytes: Bytes,
    pub(super) leases: Vec<Who>,
}

impl Object {
    pub(super) fn is_valid(&self) -> bool {
        self.state == ObjectState::Valid
    }

    pub(super) fn is_whole(&self) -> bool {
        self.bytes == Bytes::Whole
    }
}

/// What a process does next. Each is one transaction or one I/O operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Not started yet.
    Late,
    /// `peek`: find the result and lease it.
    Look,
    /// Only with [`Fault::LeaseLater`].
    Lease(Id),
    /// `try_claim`.
    Claim,
    /// `is_alive`: try the lock of the owner.
    Probe(Who),
    /// The lock is held: try again after a pause.
    Wait(Who),
    /// `begin`: the row, then its file.
    Begin,
    Create(Id),
    Write(Id),
    /// `commit` of the object.
    Commit(Id),
    /// Removal of a tombstoned object, then of its row; then the step continues.
    Remove(Id, bool),
    /// `Claim::commit`.
    Bind(Id),
    /// Cleans up after an instance whose lock it holds, perhaps its own.
    Reap(Who, Settle),
    /// `tombstone`.
    Tombstone,
    Gone,
}

/// The steps of `clean_up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Settle {
    /// `remove_pending_of`.
    PendingBytes,
    Rows,
    Bytes,
    RowsWithoutBytes,
    Instance,
    Unlock,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) phase: Phase,
    /// Keys that it still wants.
    left: Vec<usize>,
    claimed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Step(Who),
    Crash(Who),
}

/// The whole system at one point in time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ModelState {
    pub(super) processes: Vec<Process>,
    /// Whether there is a row of `instance`, and who holds the lock.
    instances: Vec<bool>,
    locks: Vec<Option<Who>>,
    pub(super) rows: Vec<Object>,
    next: Id,
    /// Of `action`: key to object.
    pub(super) results: Vec<Option<Id>>,
    claims: Vec<Option<Who>>,
    /// Executions that were begun, by key.
    pub(super) begun: Vec<usize>,
    pub(super) crashes: usize,
    prunes: usize,
    pub(super) tombstoned: usize,
    /// Whether there is a file whose row is gone.
    pub(super) orphan: bool,
}

impl ModelState {
    pub(super) fn new(script: &Script) -> Self {
        let count = script.builders.len();
        let process = |phase, left: &[usize]| Process {
            phase,
            left: left.to_vec(),
            claimed: false,
        };
        let mut processes: Vec<Process> = script
            .builders
            .iter()
            .map(|keys| process(Phase::Look, keys))
            .collect();
        let pruner = if script.prunes == 0 {
            Phase::Gone
        } else {
            Phase::Tombstone
        };
        processes.push(process(pruner, &[]));
        processes.push(process(Phase::Late, &[]));
        let there: Vec<bool> = processes
            .iter()
            .map(|it| !matches!(it.phase, Phase::Gone | Phase::Late))
            .collect();
        Self {
            locks: there
                .iter()
                .enumerate()
                .map(|(who, there)| there.then_some(who))
                .collect(),
            instances: there,
            processes,
            rows: Vec::with_capacity(count),
            next: 0,
            results: vec![None; script.keys()],
            claims: vec![None; script.keys()],
            begun: vec![0; script.keys()],
            crashes: script.crashes,
            prunes: script.prunes,
            tombstoned: 0,
            orphan: false,
        }
    }

    pub(super) fn lives(&self, who: Who) -> bool {
        self.locks[who] == Some(who)
    }

    pub(super) fn at_work(&self, key: usize) -> usize {
        let works = |it: &&Process| it.claimed && it.left.first() == Some(&key);
        self.processes.iter().filter(works).count()
    }

    pub(super) fn row(&self, id: Id) -> Option<&Object> {
        self.rows.iter().find(|row| row.id == id)
    }

    fn row_mut(&mut self, id: Id) -> Option<&mut Object> {
        self.rows.iter_mut().find(|row| row.id == id)
    }

    fn late(&self) -> Who {
        self.processes.len() - 1
    }

    /// The last process has cleaned up after all others.
    pub(super) fn is_complete(&self, script: &Script) -> bool {
        let mut keys = script.builders.iter().flatten();
        let made = |key: usize| self.results[key].is_some();
        self.processes.iter().all(|it| it.phase == Phase::Gone)
            && self
                .rows
                .iter()
                .all(|row| row.is_valid() && row.leases.is_empty())
            && self.claims.iter().all(Option::is_none)
            && !self.instances.contains(&true)
            && (self.tombstoned > 0 || self.crashes < script.crashes || keys.all(|key| made(*key)))
    }

    pub(super) fn actions(&self, script: &Script, actions: &mut Vec<Action>) {
        for (who, process) in self.processes.iter().enumerate() {
            let enabled = match process.phase {
                Phase::Gone => false,
                Phase::Late => self.processes[..self.late()]
                    .iter()
                    .all(|it| it.phase == Phase::Gone),
                // An attempt with the same result is not a step.
                Phase::Wait(owner) => {
                    let key = process.left[0];
                    self.claims[key] != Some(owner)
                        || (self.locks[owner].is_none() && self.instances[owner])
                        || (script.fault == Fault::ImpatientWaiter && self.lives(owner))
                }
                _ => true,
            };
            if enabled {
                actions.push(Action::Step(who));
            }
            let mortal = !matches!(process.phase, Phase::Gone | Phase::Late) && who != self.late();
            if mortal && self.crashes > 0 {
                actions.push(Action::Crash(who));
            }
        }
    }

    pub(super) fn apply(&mut self, script: &Script, action: Action) {
        match action {
            Action::Crash(who) => {
                self.crashes -= 1;
                self.processes[who].phase = Phase::Gone;
                self.processes[who].claimed = false;
                for lock in &mut self.locks {
                    if *lock == Some(who) {
                        *lock = None;
                    }
                }
            }
            Action::Step(who) => {
                let phase = self.step(script, who);
                self.processes[who].phase = phase;
            }
        }
    }

    /// Does the current step of `who`, and returns its next phase.
    fn step(&mut self, script: &Script, who: Who) -> Phase {
        let key = self.processes[who].left.first().copied();
        match (self.processes[who].phase, key) {
            (Phase::Late, _) => self.next_corpse(who),
            (Phase::Look, Some(key)) => match self.found(key) {
                Some(id) if script.fault == Fault::LeaseLater => Phase::Lease(id),
                Some(id) => self.hit(who, id),
                None => Phase::Claim,
            },
            (Phase::Lease(id), _) => self.hit(who, id),
            (Phase::Claim, Some(key)) => self.claim(script, who, key),
            (Phase::Probe(owner) | Phase::Wait(owner), Some(key)) => {
                self.probe(script, who, owner, key)
            }
            (Phase::Begin, Some(key)) => {
                let id = self.next;
                self.next += 1;
                self.rows.push(Object {
                    id,
                    key,
                    state: ObjectState::Writing,
                    maker: Some(who),
                    bytes: Bytes::Missing,
                    leases: Vec::new(),
                });
                Phase::Create(id)
            }
            (Phase::Create(id), _) => {
                self.set_bytes(id, Bytes::Torn);
                Phase::Write(id)
            }
            (Phase::Write(id), _) => {
                self.set_bytes(id, Bytes::Whole);
                Phase::Commit(id)
            }
            (Phase::Commit(id), Some(key)) => self.commit(who, id, key),
            (Phase::Remove(id, false), _) => {
                self.set_bytes(id, Bytes::Missing);
                Phase::Remove(id, true)
            }
            (Phase::Remove(id, true), key) => {
                self.delete(id);
                match key.and_then(|key| self.valid(key)) {
                    Some(other) if self.processes[who].claimed => Phase::Bind(other),
                    _ => self.pruned(who),
                }
            }
            (Phase::Bind(id), Some(key)) => self.bind(who, id, key),
            (Phase::Reap(whom, at), _) => self.settle(script, who, whom, at),
            (Phase::Tombstone, _) => self.tombstone(script, who),
            (phase, _) => unreachable!("{phase:?}"),
        }
    }

    fn valid(&self, key: usize) -> Option<Id> {
        let row = self
            .rows
            .iter()
            .find(|row| row.key == key && row.is_valid());
        row.map(|row| row.id)
    }

    fn found(&self, key: usize) -> Option<Id> {
        self.results[key].filter(|id| self.row(*id).is_some_and(Object::is_valid))
    }

    fn set_bytes(&mut self, id: Id, bytes: Bytes) {
        match self.row_mut(id) {
            Some(row) => row.bytes = bytes,
            None => self.orphan |= bytes != Bytes::Missing,
        }
    }

    /// Deletes the row of a tombstoned object without a lease.
    fn delete(&mut self, id: Id) {
        if let Some(row) = self.row(id)
            && row.state == ObjectState::Tombstoned
            && row.leases.is_empty()
        {
            self.orphan |= row.bytes != Bytes::Missing;
            self.rows.retain(|row| row.id != id);
        }
    }

    fn lease(&mut self, who: Who, id: Id) {
        if let Some(row) = self.row_mut(id)
            && !row.leases.contains(&who)
        {
            row.leases.push(who);
            row.leases.sort_unstable();
        }
    }

    fn hit(&mut self, who: Who, id: Id) -> Phase {
        self.lease(who, id);
        self.next_key(who)
    }

    /// The next key, or the orderly end of the instance.
    fn next_key(&mut self, who: Who) -> Phase {
        self.processes[who].claimed = false;
        self.processes[who].left.remove(0);
        if self.processes[who].left.is_empty() {
            return Phase::Reap(who, Settle::PendingBytes);
        }
        Phase::Look
    }

    fn claim(&mut self, script: &Script, who: Who, key: usize) -> Phase {
        if script.fault != Fault::NoSecondLook && self.found(key).is_some() {
            return Phase::Look;
        }
        match self.claims[key] {
            Some(owner) if owner != who || script.fault != Fault::HoldAndWait => {
                return Phase::Probe(owner);
            }
            Some(_) => {}
            None => self.claims[key] = Some(who),
        }
        let left = &mut self.processes[who].left;
        if script.fault == Fault::HoldAndWait && left.len() > 1 && self.claims[left[1]] != Some(who)
        {
            left.rotate_left(1);
            return Phase::Claim;
        }
        self.processes[who].claimed = true;
        self.begun[key] += 1;
        Phase::Begin
    }

    fn probe(&mut self, script: &Script, who: Who, owner: Who, key: usize) -> Phase {
        let impatient = script.fault == Fault::ImpatientWaiter
            && matches!(self.processes[who].phase, Phase::Wait(_))
            && self.claims[key] == Some(owner);
        if self.locks[owner].is_some() && !impatient {
            // A wait ends with another look-up.
            return match self.processes[who].phase {
                Phase::Wait(_) => Phase::Look,
                _ => Phase::Wait(owner),
            };
        }
        if !self.instances[owner] && !impatient {
            return match self.claims[key] == Some(owner) {
                true => Phase::Wait(owner),
                false => Phase::Look,
            };
        }
        self.locks[owner] = Some(who);
        Phase::Reap(owner, Settle::PendingBytes)
    }

    fn commit(&mut self, who: Who, id: Id, key: usize) -> Phase {
        let there = self.valid(key);
        let Some(row) = self.row_mut(id) else {
            return Phase::Gone; // an error: the pending object was taken away
        };
        row.maker = None;
        if let Some(there) = there {
            row.state = ObjectState::Tombstoned;
            self.lease(who, there);
            return Phase::Remove(id, false);
        }
        row.state = ObjectState::Valid;
        self.lease(who, id);
        Phase::Bind(id)
    }

    fn bind(&mut self, who: Who, id: Id, key: usize) -> Phase {
        if self.found(key).is_none() {
            self.results[key] = Some(id);
        }
        if self.claims[key] == Some(who) {
            self.claims[key] = None;
        }
        self.next_key(who)
    }

    /// One candidate of a prune, as long as there are prunes.
    fn tombstone(&mut self, script: &Script, who: Who) -> Phase {
        let free = |row: &&Object| row.is_valid() && row.leases.is_empty();
        let Some(id) = self.rows.iter().find(free).map(|row| row.id) else {
            return self.pruned(who);
        };
        if script.fault == Fault::BytesFirst && self.row(id).is_some_and(Object::is_whole) {
            self.set_bytes(id, Bytes::Missing);
            return Phase::Tombstone;
        }
        for result in &mut self.results {
            if *result == Some(id) {
                *result = None;
            }
        }
        self.tombstoned += 1;
        if let Some(row) = self.row_mut(id) {
            row.state = ObjectState::Tombstoned;
        }
        Phase::Remove(id, false)
    }

    fn pruned(&mut self, who: Who) -> Phase {
        self.prunes = self.prunes.saturating_sub(1);
        if self.prunes > 0 {
            Phase::Tombstone
        } else {
            Phase::Reap(who, Settle::PendingBytes)
        }
    }

    /// One step of cleaning up after `whom`.
    fn settle(&mut self, script: &Script, who: Who, whom: Who, at: Settle) -> Phase {
        let pending = |row: &Object| row.maker == Some(whom) && row.state == ObjectState::Writing;
        match at {
            Settle::PendingBytes => {
                for row in self.rows.iter_mut().filter(|row| pending(row)) {
                    row.bytes = if script.fault == Fault::RowFirst {
                        row.bytes
                    } else {
                        Bytes::Missing
                    };
                }
                return Phase::Reap(whom, Settle::Rows);
            }
            Settle::Rows => {
                self.settle_rows(script, who, whom);
                return Phase::Reap(whom, Settle::Bytes);
            }
            // This includes tombstones of a dead prune, which the next process finishes.
            Settle::Bytes => {
                for row in &mut self.rows {
                    if row.state == ObjectState::Tombstoned && row.leases.is_empty() {
                        row.bytes = Bytes::Missing;
                    }
                }
                return Phase::Reap(whom, Settle::RowsWithoutBytes);
            }
            Settle::RowsWithoutBytes => {
                let tombstoned =
                    |row: &Object| row.state == ObjectState::Tombstoned && !row.is_whole();
                let gone = |row: &Object| tombstoned(row) && row.bytes == Bytes::Missing;
                self.rows
                    .retain(|row| !(gone(row) && row.leases.is_empty()));
                return Phase::Reap(whom, Settle::Instance);
            }
            Settle::Instance => {
                self.instances[whom] = false;
                return Phase::Reap(whom, Settle::Unlock);
            }
            Settle::Unlock => self.locks[whom] = None,
        }
        if who == whom {
            Phase::Gone
        } else if who == self.late() {
            self.next_corpse(who)
        } else {
            Phase::Look
        }
    }

    /// What is in the database: claims, leases and unfinished objects of `whom`.
    fn settle_rows(&mut self, script: &Script, who: Who, whom: Who) {
        for claim in &mut self.claims {
            if *claim == Some(whom) && (script.fault != Fault::ClaimsOfTheDead || who == whom) {
                *claim = None;
            }
        }
        for row in &mut self.rows {
            row.leases.retain(|lease| *lease != whom);
            if row.maker == Some(whom) {
                row.maker = None;
                row.state = if row.is_valid() {
                    ObjectState::Valid
                } else {
                    ObjectState::Tombstoned
                };
            }
        }
        if script.fault == Fault::RowFirst {
            self.delete_tombstoned();
        }
    }

    fn delete_tombstoned(&mut self) {
        let tombstoned = self
            .rows
            .iter()
            .filter(|row| row.state == ObjectState::Tombstoned);
        let ids: Vec<Id> = tombstoned.map(|row| row.id).collect();
        for id in ids {
            self.delete(id);
        }
    }

    /// The last process cleans up after all dead instances, then removes tombstoned objects.
    fn next_corpse(&mut self, who: Who) -> Phase {
        let dead = (0..who).find(|whom| self.instances[*whom] && self.locks[*whom].is_none());
        if let Some(whom) = dead {
            self.locks[whom] = Some(who);
            return Phase::Reap(whom, Settle::PendingBytes);
        }
        let rest = self
            .rows
            .iter()
            .find(|row| row.state == ObjectState::Tombstoned);
        match rest {
            Some(row) if row.bytes == Bytes::Missing => {
                self.rows.retain(|row| {
                    row.state != ObjectState::Tombstoned || row.bytes != Bytes::Missing
                });
                Phase::Late
            }
            Some(row) => {
                let id = row.id;
                self.set_bytes(id, Bytes::Missing);
                Phase::Late
            }
            None => Phase::Gone,
        }
    }
}
