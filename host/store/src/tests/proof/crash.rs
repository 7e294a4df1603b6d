//! The process or the machine stops before the n-th effect, for every n; and again in the recovery.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::fact::{self, Clean, Fact};
use super::recorder::{Point, Recorder};
use super::scenario::{ALL, Base, Scenario};
use super::world::{self, World};
use super::{Wrong, fast_dir, power, try_open, width};
use crate::effect::{booted, watching};
use crate::{Store, StoreError};

/// Crashes in recovery that are tried per scenario, at least.
const RECOVERIES: usize = 4;

/// Does what the next user does, and panics unless all is well then.
pub(super) fn recover(scenario: &Scenario, root: &Path, facts: &[Fact], clean: Clean, power: bool) {
    if scenario.base == Base::Ruined {
        match try_open(root) {
            // Refused until the rebuild that was stopped is done again.
            Err(StoreError::Corrupt { .. }) => drop(Store::rebuild(root).unwrap()),
            Err(error) => panic!("{error}"),
            Ok(store) => store.close().unwrap(),
        }
    }
    fact::settle(root, facts, clean, power);
}

/// Records all moments of a piece of work in `dir`.
fn record(dir: &Path, facts: &fact::Facts, work: impl FnOnce()) -> Vec<Point> {
    let recorder = Arc::new(Mutex::new(Recorder::new(dir, facts)));
    watching(Recorder::watcher(&recorder), work);
    let mut recorder = recorder.lock().unwrap();
    recorder.finish();
    std::mem::take(&mut recorder.points)
}

/// One thing that may be found on disk.
struct Found {
    what: String,
    world: World,
    facts: Vec<Fact>,
    /// How often power was lost.
    power: usize,
}

impl Found {
    /// Runs `work` in the boot that comes after it.
    fn after<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.power {
            0 => work(),
            count => booted(&format!("boot {count}"), work),
        }
    }
}

/// All that may be found after a stop at one of these moments, each once.
fn found(points: &[Point], seen: &mut HashSet<(bool, World, String)>) -> Vec<Found> {
    let mut all = Vec::new();
    for (point, number) in points.iter().zip(0u64..) {
        let mut add = |kind: String, world: World, power: bool| {
            let facts = format!("{:?}", point.facts);
            if seen.insert((power, world.clone(), facts)) {
                all.push(Found {
                    what: format!("before {number}, {}: {kind}", point.effect),
                    world,
                    facts: point.facts.clone(),
                    power: usize::from(power),
                });
            }
        };
        add("killed".to_owned(), point.live_world(), false);
        if let Some(amid) = &point.amid {
            add("killed in the middle".to_owned(), amid.clone(), false);
        }
        for (kind, world) in power::worlds(point, number, width() - 1) {
            add(kind, world, true);
        }
    }
    all
}

fn try_one(wrong: &mut Wrong, scenario: &Scenario, dir: &Path, found: &Found) {
    let root = dir.join("new/store");
    let what = || format!("{}, {}", scenario.name, found.what);
    wrong.unless(what, || {
        world::make(dir, &found.world);
        let power = found.power > 0;
        found.after(|| recover(scenario, &root, &found.facts, scenario.clean(), power));
    });
}

/// Stops the recovery itself. Returns how many ways were tried.
fn try_recovery(wrong: &mut Wrong, scenario: &Scenario, dir: &Path, first: &Found) -> usize {
    world::make(dir, &first.world);
    let root = dir.join("new/store");
    let facts = fact::Facts::of(first.facts.clone());
    let open = || {
        record(dir, &facts, || match try_open(&root) {
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
        // Of the ways to lose power a second time, every third is tried.
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
    let facts = case.facts.clone();
    let points = record(dir.path(), &facts, || scenario.run(&case).unwrap());
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

/// Two tests, so that they can run side by side.
#[test]
fn wherever_it_stops_first_half() {
    let mut wrong = Wrong::default();
    ALL.iter().step_by(2).for_each(|it| run(&mut wrong, it));
}

#[test]
fn wherever_it_stops_second_half() {
    let mut wrong = Wrong::default();
    ALL.iter()
        .skip(1)
        .step_by(2)
        .for_each(|it| run(&mut wrong, it));
}
