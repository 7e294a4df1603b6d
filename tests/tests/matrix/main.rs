//! The exit matrix: whatever ends a build or disturbs it, in whichever phase, it ends with the right
//! class, in time, leaves nothing, and the next build on the same store succeeds.
//!
//! `table` says what is expected of each cell. A build is stopped (SIGSTOP) in the phase, looked at, struck
//! and continued, so a strike never misses its phase by chance. The product takes no part in that.
//!
//! A third of the cells is part of every run. `cargo xtask vm-test --matrix` runs all.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot be set up fails"
)]

mod archive;
mod cell;
mod dockerfiles;
mod faulty_image;
mod gate;
mod lane;
mod leftovers;
mod running;
mod table;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lane::{Job, Lane, Outcome};
use table::{Fault, Phase, TABLE, Want};

/// All cells that can be.
fn jobs(wanted: impl Fn(&Job, bool) -> bool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (fault, row) in TABLE {
        for (phase, want) in Phase::ALL.into_iter().zip(row) {
            if let Some((ends, always)) = want.ends() {
                let job = Job { fault, phase, ends };
                jobs.extend(Some(job).filter(|job| wanted(job, always)));
            }
        }
    }
    jobs
}

/// In one test, since the cells share two lanes.
#[test]
fn cells_of_every_run() {
    let outcomes = run(|_, always| always, |_| ());
    let failed: Vec<String> = outcomes.iter().filter_map(Outcome::failure).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn the_table_has_each_fault_once_and_a_third_of_it_runs_always() {
    for (at, (fault, _)) in TABLE.iter().enumerate() {
        let again = TABLE.iter().skip(at + 1).any(|(other, _)| other == fault);
        assert!(!again, "{}", fault.name());
    }
    let all = jobs(|_, _| true);
    let always = jobs(|_, always| always);
    assert!(
        always.len() * 3 >= all.len(),
        "{} of {}",
        always.len(),
        all.len()
    );
    for phase in Phase::ALL {
        assert!(
            always.iter().any(|job| job.phase == phase),
            "{}",
            phase.name()
        );
    }
}

/// `cargo xtask vm-test --matrix`. `COFFERDAM_CELLS` runs only cells whose name contains it.
#[test]
#[ignore = "takes half an hour"]
fn by_hand_every_cell() {
    let wanted = std::env::var("COFFERDAM_CELLS").unwrap_or_default();
    let outcomes = run(
        |job, _| job.name().contains(&wanted),
        |outcome| say(&outcome.failure().unwrap_or_else(|| outcome.line())),
    );
    assert!(report(&outcomes, is_root()), "cells have failed");
}

/// Runs cells in two lanes: each emulated VM keeps a processor busy. Those of a full disk, which only root
/// can make, are the first ones of one lane.
fn run(wanted: impl Fn(&Job, bool) -> bool, tell: impl Fn(&Outcome) + Sync) -> Vec<Outcome> {
    let (small, plain): (Vec<Job>, Vec<Job>) = jobs(wanted)
        .into_iter()
        .partition(|job| job.fault == Fault::HostDiskFull);
    let small = if is_root() { small } else { Vec::new() };
    let (queue, small) = (Mutex::new(lane::in_turns(plain)), Mutex::new(small));
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| work(&queue, &outcomes, false, &tell));
        scope.spawn(|| {
            work(&small, &outcomes, true, &tell);
            work(&queue, &outcomes, false, &tell);
        });
    });
    outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process belongs to root.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Takes cells from the queue, a few at a time, until it is empty.
fn work(
    queue: &Mutex<Vec<Job>>,
    outcomes: &Mutex<Vec<Outcome>>,
    small: bool,
    tell: &impl Fn(&Outcome),
) {
    // What is left of other cells could be pruned when the disk is full.
    let at_a_time = if small { 1 } else { 6 };
    loop {
        let mut jobs = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let count = jobs.len().min(at_a_time);
        let mine: Vec<Job> = jobs.drain(..count).collect();
        drop(jobs);
        if mine.is_empty() {
            return;
        }
        let done = Lane::new(small).run(mine, tell);
        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.extend(done);
    }
}

/// Prints the table with its results. Whether all cells have passed.
fn report(outcomes: &[Outcome], root: bool) -> bool {
    say("");
    for (fault, row) in TABLE {
        say(fault.name());
        for (phase, want) in Phase::ALL.into_iter().zip(row) {
            let of_cell = |outcome: &&Outcome| outcome.is_of(fault, phase);
            let text = match (want, outcomes.iter().find(of_cell)) {
                (Want::CannotBe(why), _) => format!("cannot be: {why}"),
                (Want::Ends(_) | Want::Always(_), Some(outcome)) => outcome.result(),
                (Want::Ends(_) | Want::Always(_), None)
                    if fault == Fault::HostDiskFull && !root =>
                {
                    "left out: needs root".to_owned()
                }
                (Want::Ends(_) | Want::Always(_), None) => "left out".to_owned(),
            };
            say(&format!("  {:9} {text}", phase.name()));
        }
    }
    let passed = outcomes.iter().filter(|it| it.failure().is_none()).count();
    let slowest = outcomes.iter().max_by_key(|it| it.took);
    let slowest = slowest.map_or_else(String::new, |it| {
        format!("; slowest: {} with {} s", it.name(), it.took.as_secs())
    });
    say(&format!(
        "\n{} cells, {passed} passed, {} failed{slowest}",
        outcomes.len(),
        outcomes.len() - passed
    ));
    passed == outcomes.len() && outcomes.iter().all(|it| it.took > Duration::ZERO)
}

/// Prints a line at once, whether or not the harness captures output.
fn say(line: &str) {
    // Nobody may read it.
    writeln!(std::io::stdout(), "{line}").ok();
}
