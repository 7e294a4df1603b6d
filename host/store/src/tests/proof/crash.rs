//! The process dies, or power is lost, before the n-th I/O operation, for each n; and once more during the
//! recovery.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::promise::{self, Clean, Promise};
use super::recorder::{Point, Recorder};
use super::scenario::{ALL, Base, Scenario};
use super::snapshot::{self, Snapshot};
use super::{Wrong, fast_dir, power_loss, try_open, width};
use crate::failpoint::{with_boot_id, with_hook};
use crate::{Store, StoreError};

/// How many disks per scenario are recovered with another crash, at least.
const RECOVERIES: usize = 4;

/// Does what the next user does, and panics unless everything is right afterwards.
pub(super) fn recover(
    scenario: &Scenario,
    root: &Path,
    promises: &[Promise],
    clean: Clean,
    power: bool,
) {
    if scenario.base == Base::Ruined {
        match try_open(root) {
            // Refused until the interrupted rebuild is done again.
            Err(StoreError::Corrupt { .. }) => drop(Store::rebuild(root).unwrap()),
            Err(error) => panic!("{error}"),
            Ok(store) => store.close().unwrap(),
        }
    }
    promise::settle(root, promises, clean, power);
}

/// Runs `work`, and records the disk before each of its I/O operations in `dir`.
fn record(dir: &Path, promises: &promise::Promises, work: impl FnOnce()) -> Vec<Point> {
    let recorder = Arc::new(Mutex::new(Recorder::new(dir, promises)));
    with_hook(Recorder::hook(&recorder), work);
    let mut recorder = recorder.lock().unwrap();
    recorder.finish();
    std::mem::take(&mut recorder.points)
}

/// One state in which the disk may be found.
struct Found {
    what: String,
    snapshot: Snapshot,
    promises: Vec<Promise>,
    /// How often power was lost.
    power: usize,
}

impl Found {
    /// Runs `work` as after the reboot that follows.
    fn after<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.power {
            0 => work(),
            count => with_boot_id(&format!("boot {count}"), work),
        }
    }
}

/// All states in which the disk may be found after a crash at one of these points, each once.
fn found(points: &[Point], seen: &mut HashSet<(bool, Snapshot, String)>) -> Vec<Found> {
    let mut all = Vec::new();
    for (point, number) in points.iter().zip(0u64..) {
        let mut add = |kind: String, snapshot: Snapshot, power: bool| {
            let promises = format!("{:?}", point.promises);
            if seen.insert((power, snapshot.clone(), promises)) {
                all.push(Found {
                    what: format!("before {number}, {}: {kind}", point.operation),
                    snapshot,
                    promises: point.promises.clone(),
                    power: usize::from(power),
                });
            }
        };
        add("killed".to_owned(), point.live_snapshot(), false);
        if let Some(amid) = &point.amid {
            add("killed in the middle".to_owned(), amid.clone(), false);
        }
        for (kind, snapshot) in power_loss::snapshots(point, number, width() - 1) {
            add(kind, snapshot, true);
        }
    }
    all
}

fn try_one(wrong: &mut Wrong, scenario: &Scenario, dir: &Path, found: &Found) {
    let root = dir.join("new/store");
    let what = || format!("{}, {}", scenario.name, found.what);
    wrong.unless(what, || {
        snapshot::make(dir, &found.snapshot);
        let power = found.power > 0;
        found.after(|| recover(scenario, &root, &found.promises, scenario.clean(), power));
    });
}

/// Crashes the recovery itself. Returns how many ways were tried.
fn try_recovery(wrong: &mut Wrong, scenario: &Scenario, dir: &Path, first: &Found) -> usize {
    snapshot::make(dir, &first.snapshot);
    let root = dir.join("new/store");
    let promises = promise::Promises::of(first.promises.clone());
    let open = || {
        record(dir, &promises, || match try_open(&root) {
            Ok(store) => store.close().unwrap(),
            Err(StoreError::Corrupt { .. }) if scenario.base == Base::Ruined => {
                Store::rebuild(&root).unwrap();
            }
            Err(error) => panic!("{error}"),
        })
    };
    let what = || format!("{}, {}", scenario.name, first.what);
    let points = wrong.unless(what, || first.after(open));
    let (mut count, mut losses) = (0, 0);
    let mut seen = HashSet::new();
    for second in found(&points.unwrap_or_default(), &mut seen) {
        // Of the ways to lose power a second time, each third one is tried.
        if second.power > 0 {
            losses += 1;
            if losses % 3 != 0 {
                continue;
            }
        }
        count += 1;
        let both = Found {
            what: format!("{}; then {}", first.what, second.what),
            power: first.power + second.power,
            ..second
        };
        try_one(wrong, scenario, dir, &both);
    }
    count
}

#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn run(wrong: &mut Wrong, scenario: &Scenario) {
    let dir = fast_dir();
    let case = scenario.prepare(dir.path());
    let promises = case.promises.clone();
    let points = record(dir.path(), &promises, || scenario.run(&case).unwrap());
    drop(case);
    let all = found(&points, &mut HashSet::new());
    for found in &all {
        try_one(wrong, scenario, dir.path(), found);
    }
    let stride = (all.len() / (RECOVERIES * width())).max(1);
    let again = all.iter().skip(stride / 2).step_by(stride);
    let again: usize = again
        .map(|first| try_recovery(wrong, scenario, dir.path(), first))
        .sum();
    println!(
        "{}: {} moments, {} disks, {again} in recovery",
        scenario.name,
        points.len(),
        all.len()
    );
}

/// Two tests, so that they can run in parallel.
#[test]
fn a_crash_anywhere_is_recovered_from_first_half() {
    let mut wrong = Wrong::default();
    ALL.iter().step_by(2).for_each(|it| run(&mut wrong, it));
}

#[test]
fn a_crash_anywhere_is_recovered_from_second_half() {
    let mut wrong = Wrong::default();
    ALL.iter()
        .skip(1)
        .step_by(2)
        .for_each(|it| run(&mut wrong, it));
}
