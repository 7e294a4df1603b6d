//! Cells one after the other on one store.
//!
//! After each cell a build on its store must succeed. Where the next cell is one whose build succeeds by
//! itself, it is that build.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::{Bench, run};

use crate::cell::{self, Next};
use crate::dockerfiles::BASE;
use crate::running::MIB;
use crate::table::{End, Fault, Phase, SUCCESS};

/// The store of a lane whose disk becomes full: several times what a build needs.
const SMALL: &str = "size=700m,mode=700";

/// A cell that is to be run.
pub(crate) struct Job {
    pub(crate) fault: Fault,
    pub(crate) phase: Phase,
    pub(crate) ends: &'static [End],
}

impl Job {
    pub(crate) fn name(&self) -> String {
        name(self.fault, self.phase)
    }

    fn succeeds(&self) -> bool {
        self.ends == [SUCCESS]
    }
}

fn name(fault: Fault, phase: Phase) -> String {
    format!("{} × {}", fault.name(), phase.name())
}

/// A cell that was run.
pub(crate) struct Outcome {
    fault: Fault,
    phase: Phase,
    /// From the start of its build to the end of the next one, if that was needed.
    pub(crate) took: Duration,
    result: Result<(End, Duration), String>,
}

impl Outcome {
    pub(crate) fn is_of(&self, fault: Fault, phase: Phase) -> bool {
        self.fault == fault && self.phase == phase
    }

    pub(crate) fn name(&self) -> String {
        name(self.fault, self.phase)
    }

    pub(crate) fn failure(&self) -> Option<String> {
        let why = self.result.as_ref().err()?;
        Some(format!("{}: {why}", self.name()))
    }

    pub(crate) fn result(&self) -> String {
        match &self.result {
            Ok((end, took)) => format!(
                "{} ({}), {:.1} s after the strike",
                end.history,
                end.status
                    .map_or_else(|| "killed".to_owned(), |status| status.to_string()),
                took.as_secs_f64()
            ),
            Err(_) => "FAILED".to_owned(),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{}: {}; {:.1} s in all",
            self.name(),
            self.result(),
            self.took.as_secs_f64()
        )
    }
}

/// Cells whose build succeeds between those whose build does not.
pub(crate) fn in_turns(jobs: Vec<Job>) -> Vec<Job> {
    let (good, bad): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(Job::succeeds);
    let (mut good, mut bad) = (good.into_iter(), bad.into_iter());
    let mut turns = Vec::new();
    loop {
        let before = turns.len();
        turns.extend(bad.next());
        turns.extend(good.next());
        if turns.len() == before {
            return turns;
        }
    }
}

/// A store with the layers that all cells use.
struct Place {
    bench: Bench,
    is_mounted: bool,
    /// How long a build takes until its step runs.
    reach: Duration,
}

impl Place {
    fn new(small: bool) -> Self {
        let bench = Bench::new();
        if small {
            fs::create_dir(bench.store()).unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", SMALL, "none"]);
            let _mounted = run(mount.arg(bench.store())).expect_status(0);
        }
        let place = Self {
            bench,
            is_mounted: small,
            reach: Duration::ZERO,
        };
        place.set_up()
    }

    fn set_up(mut self) -> Self {
        for dir in ["tmp", "results"] {
            fs::create_dir(self.bench.out().join(dir)).unwrap();
        }
        let random = fs::File::open("/dev/urandom").unwrap();
        let mut big = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(random, MIB << 20), &mut big).unwrap();
        self.bench.write("big", &big);
        let began = Instant::now();
        let dockerfile = format!("{BASE}FROM base\nCOPY big /big\n");
        let _built = self.bench.build(&dockerfile, &[]).expect_status(0);
        self.reach = began.elapsed();
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mounted {
            // A test that fails has a reason of its own; what stays is seen in the table of mounts.
            Command::new("umount").arg(self.bench.store()).status().ok();
        }
    }
}

/// Runs cells one after the other.
pub(crate) struct Lane {
    small: bool,
}

impl Lane {
    /// On a small file system of its own, or on that of temporary files.
    pub(crate) fn new(small: bool) -> Self {
        Self { small }
    }

    /// Tells each outcome at once.
    pub(crate) fn run(&self, jobs: Vec<Job>, tell: impl Fn(&Outcome)) -> Vec<Outcome> {
        let mut place = None;
        let mut outcomes: Vec<Outcome> = Vec::new();
        let mut jobs = jobs.into_iter().peekable();
        while let Some(job) = jobs.next() {
            let mut here: Place = place.take().unwrap_or_else(|| Place::new(self.small));
            let next_succeeds = jobs.peek().is_some_and(Job::succeeds);
            let began = Instant::now();
            // A cell that panics must not hide the others.
            let result = catch_unwind(AssertUnwindSafe(|| {
                let done = one(&mut here, &job)?;
                if !next_succeeds {
                    done.1.succeeds(&here.bench)?;
                }
                Ok(done.0)
            }));
            let result = result.unwrap_or_else(|_| Err("the test panicked".to_owned()));
            if result.is_ok() {
                place = Some(here);
            }
            let outcome = Outcome {
                fault: job.fault,
                phase: job.phase,
                took: began.elapsed(),
                result,
            };
            tell(&outcome);
            outcomes.push(outcome);
        }
        outcomes
    }
}

fn one(place: &mut Place, job: &Job) -> Result<((End, Duration), Next), String> {
    let Place { bench, reach, .. } = place;
    let done = cell::cell(bench, job.fault, job.phase, job.ends, reach)?;
    Ok(((done.end, done.took), done.next))
}
