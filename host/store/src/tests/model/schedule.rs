//! The real code in random orders: several instances, each a thread that stops before each I/O operation
//! until it is told to continue or to die. After each step the laws of the model are checked in the real
//! database and the real files.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::errno::Errno;

use super::super::proof::{fast_dir, settle, width};
use super::super::{key, names, open, step, tar};
use crate::failpoint::{IoOperation, with_hook};
use crate::{DiffId, Lookup, Provenance, PruneOptions, Store, StoreError, Trust};

/// Orders that are tried.
const ORDERS: u64 = 300;
/// Number of steps after which an order counts as endless.
const STEPS: usize = 4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Between two I/O operations.
    Running,
    /// Before an I/O operation.
    Stopped,
    /// The I/O operation fails.
    Failing,
    Dying,
    Ended,
}

/// Whose turn it is.
#[derive(Default)]
struct Turns {
    turns: Mutex<Vec<Turn>>,
    changed: Condvar,
}

impl Turns {
    fn set(&self, who: usize, turn: Turn) {
        self.turns.lock().unwrap()[who] = turn;
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&[Turn]) -> bool) -> Vec<Turn> {
        let turns = self.turns.lock().unwrap();
        let bound = Duration::from_secs(60);
        let waited = self
            .changed
            .wait_timeout_while(turns, bound, |turns| !until(turns));
        let (turns, late) = waited.unwrap();
        assert!(!late.timed_out(), "{turns:?}");
        turns.clone()
    }

    /// Stops until it is told how to continue.
    fn stop(&self, who: usize) -> Turn {
        self.set(who, Turn::Stopped);
        self.wait(|turns| turns[who] != Turn::Stopped)[who]
    }
}

/// What all instances of an order share.
#[derive(Default)]
struct Shared {
    turns: Turns,
    /// By key: how many are working on it, and how often work was begun.
    works: [AtomicUsize; 2],
    begun: [AtomicUsize; 2],
    /// Number of objects that a prune reported.
    pruned: AtomicUsize,
}

struct AtWork<'a>(&'a AtomicUsize);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

const KEYS: [&str; 2] = ["x", "y"];

fn build(shared: &Shared, who: usize, store: &Store, keys: [usize; 2]) -> Result<(), StoreError> {
    let mut made: Vec<DiffId> = Vec::new();
    for at in keys {
        made.push(loop {
            match store.lookup(key(KEYS[at]), Trust::Host)? {
                Lookup::Hit(hit) => break hit.layer.diff_id,
                Lookup::Claimed(claim) => {
                    shared.begun[at].fetch_add(1, Ordering::SeqCst);
                    let others = shared.works[at].fetch_add(1, Ordering::SeqCst);
                    let _work = AtWork(&shared.works[at]);
                    assert_eq!(others, 0, "two work at {}", KEYS[at]);
                    let mut writer = store.layer_writer("test")?;
                    let bytes = tar(&[("file", KEYS[at].as_bytes())]);
                    io::Write::write_all(&mut writer, &bytes).ok();
                    let Ok(layer) = writer.finish() else {
                        return Err(StoreError::Closed);
                    };
                    break claim
                        .commit(&layer, &made, &Provenance::default(), false)?
                        .layer
                        .diff_id;
                }
                Lookup::Busy(_) => {
                    if shared.turns.stop(who) == Turn::Dying {
                        return Err(StoreError::Closed);
                    }
                }
            }
        });
    }
    for id in made {
        store.open_layer(id)?;
    }
    store.clone().close()
}

fn prune(shared: &Shared, store: &Store) -> Result<(), StoreError> {
    for _ in 0..2 {
        store.prune(&PruneOptions::default(), &mut |_| {
            shared.pruned.fetch_add(1, Ordering::SeqCst);
            ControlFlow::Continue(())
        })?;
    }
    store.clone().close()
}

/// Runs one instance until it ends or dies.
fn live(shared: &Arc<Shared>, who: usize, store: &Store) {
    let failed = Arc::new(AtomicBool::new(false));
    let mut dead = false;
    let hook = {
        let (shared, store, failed) = (Arc::clone(shared), store.clone(), Arc::clone(&failed));
        move |operation: IoOperation<'_>| {
            // A transaction is one step: an instance does not stop while it has the database locked.
            let is_step = !matches!(operation, IoOperation::Commit(_));
            let turn = if dead || !is_step {
                Turn::Running
            } else {
                shared.turns.stop(who)
            };
            if turn == Turn::Dying {
                failed.store(true, Ordering::SeqCst);
                dead = true;
                store.inner.die();
            }
            if turn == Turn::Failing {
                failed.store(true, Ordering::SeqCst);
                return Err(io::Error::from(Errno::EIO));
            }
            if dead {
                Err(io::Error::from(Errno::EIO))
            } else {
                Ok(())
            }
        }
    };
    let done = with_hook(hook, || match who {
        0 => build(shared, who, store, [0, 1]),
        1 => build(shared, who, store, [1, 0]),
        _ => prune(shared, store),
    });
    if done.is_err() {
        // A program that fails ends.
        store.inner.die();
    }
    shared.turns.set(who, Turn::Ended);
    let failed = failed.load(Ordering::SeqCst);
    assert!(failed || done.is_ok(), "{who}: {done:?}");
}

/// Describes a law that rows and files violate now.
fn broken(root: &Path, alive: &[i64]) -> Option<String> {
    let database = rusqlite::Connection::open(root.join("store.db")).unwrap();
    let sql = "SELECT id, state, size FROM object";
    let mut rows = database.prepare(sql).unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
    let rows: HashMap<i64, (String, i64)> = rows.unwrap().map(Result::unwrap).collect();
    let whole = |id: i64, size: i64| {
        let found = std::fs::metadata(root.join("blobs").join(id.to_string()));
        found.is_ok_and(|found| i64::try_from(found.len()) == Ok(size))
    };
    for (id, (state, size)) in &rows {
        if state == "valid" && !whole(*id, *size) {
            return Some(format!("object {id} is valid without its bytes"));
        }
    }
    let mut leases = database
        .prepare("SELECT instance, object FROM lease")
        .unwrap();
    let leases = leases.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    for lease in leases.unwrap() {
        let (instance, object): (i64, i64) = lease.unwrap();
        if alive.contains(&instance) && rows.get(&object).is_none_or(|row| row.0 != "valid") {
            return Some(format!("object {object} is leased and not valid"));
        }
    }
    let files = names(&root.join("blobs")).into_iter();
    let mut orphans = files.filter(|name| !rows.contains_key(&name.parse().unwrap()));
    orphans
        .next()
        .map(|name| format!("the bytes {name} have no row"))
}

/// Half of the orders start with results that nobody leases, which a prune can remove at any moment.
/// Returns how often each key has been worked at.
fn make_results(root: &Path, seed: u64) -> usize {
    if !seed.is_multiple_of(2) {
        return 0;
    }
    let store = open(root);
    for name in KEYS {
        step(&store, name, &[]);
    }
    store.close().unwrap();
    1
}

/// One order, determined by `seed`; at most two instances die. Returns the number of steps.
fn run(seed: u64) -> usize {
    let dir = fast_dir();
    let root = dir.path().join("store");
    let made = make_results(&root, seed);
    let stores: Vec<Store> = (0..3).map(|_| open(&root)).collect();
    let shared = Arc::new(Shared::default());
    *shared.turns.turns.lock().unwrap() = vec![Turn::Running; stores.len()];
    let mut dice = seed;
    let mut throw = |sides: usize| {
        dice = dice
            .wrapping_mul(0x5851_F42D_4C95_7F2D)
            .wrapping_add(0x1405);
        usize::try_from(dice >> 33).unwrap() % sides
    };
    let (mut kills, mut faults, mut steps, mut who) = (0, 0, 0, 0);
    // In half of the orders nothing fails, so that nothing excuses repeated work.
    let mishaps = if seed % 4 < 2 { 2 } else { 0 };
    // From a switch after each step to long runs of one process.
    let run_length = [1, 3, 10][usize::try_from(seed % 3).unwrap()];
    std::thread::scope(|scope| {
        for (who, store) in stores.iter().enumerate() {
            let shared = Arc::clone(&shared);
            scope.spawn(move || live(&shared, who, store));
        }
        loop {
            let still = |turn: &Turn| matches!(turn, Turn::Stopped | Turn::Ended);
            let turns = shared.turns.wait(|turns| turns.iter().all(still));
            let stopped = |who: &usize| turns[*who] == Turn::Stopped;
            let able: Vec<usize> = (0..turns.len()).filter(stopped).collect();
            let alive: Vec<i64> = able.iter().map(|who| stores[*who].instance_row()).collect();
            let wrong = broken(&root, &alive);
            steps += 1;
            if able.is_empty() || wrong.is_some() || steps > STEPS {
                // The others must not wait forever after this panic.
                able.iter()
                    .for_each(|who| shared.turns.set(*who, Turn::Dying));
                assert_eq!(wrong, None, "order {seed}, step {steps}");
                assert!(able.is_empty(), "order {seed} does not come to rest");
                break;
            }
            if !able.contains(&who) || throw(run_length) == 0 {
                who = able[throw(able.len())];
            }
            let turn = match throw(60) {
                0 if kills < mishaps => Turn::Dying,
                1 | 2 if faults < mishaps => Turn::Failing,
                _ => Turn::Running,
            };
            kills += usize::from(turn == Turn::Dying);
            faults += usize::from(turn == Turn::Failing);
            shared.turns.set(who, turn);
        }
    });
    drop(stores);
    // Work is repeated only if an instance died or failed, or a result was pruned.
    let spare = kills + faults + shared.pruned.load(Ordering::SeqCst);
    for begun in &shared.begun {
        let begun = begun.load(Ordering::SeqCst);
        assert!(begun <= 1 - made + spare, "order {seed}: {begun}");
    }
    settle(&root);
    steps
}

#[test]
#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn the_real_code_keeps_the_laws_in_random_orders() {
    let orders = ORDERS * width() as u64;
    let steps: usize = (0..orders).map(run).sum();
    println!("{orders} orders, {steps} steps");
    assert!(steps > 5000);
}
