//! The store with few and with many objects: what a build that finds everything costs, what the
//! commands that look at all of it cost, how fast bytes come in, and what two processes get done.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::table::{Report, Row};
use super::{Bench, Spread, ms, timed, transfer};
use crate::build;
use crate::shell;
use crate::workspace::Workspace;

/// Steps of the build that finds everything.
const STEPS: usize = 30;

/// Rounds of what takes milliseconds.
const ROUNDS: usize = 15;

/// Rounds of what looks at all objects.
const WHOLE_ROUNDS: usize = 3;

/// Layers of a process that builds beside another one: their number, their size in KiB, and what
/// they are called. With the small ones almost all work is the database's, which one process at a
/// time can change.
const BESIDE: [(usize, u64, &str); 2] = [(400, 1024, "1 MiB"), (2000, 0, "a few bytes")];

/// Rounds of one process and of two.
const BESIDE_ROUNDS: usize = 5;

/// How much.
struct Amounts {
    /// Objects of the store, each size one more store.
    objects: &'static [usize],
    /// Of the file that comes in.
    mib: u64,
}

const QUICK: Amounts = Amounts {
    objects: &[10, 1_000, 10_000],
    mib: 256,
};

const FULL: Amounts = Amounts {
    objects: &[10, 1_000, 10_000, 100_000],
    mib: 1024,
};

/// What measures.
struct Lab<'a> {
    bench: &'a Bench,
    /// The program that fills stores.
    soak: PathBuf,
    context: PathBuf,
}

pub(super) fn run(workspace: &Workspace, bench: &Bench) -> Result<Report> {
    let amounts = if bench.quick { QUICK } else { FULL };
    let lab = Lab {
        bench,
        soak: build::soak_release(workspace)?,
        context: context(bench)?,
    };
    let mut report = Report::new("store");
    let mut sizes = Vec::new();
    for &objects in amounts.objects {
        sizes.push(lab.sizes(objects, &mut report)?);
    }
    compare(&sizes, &mut report);
    lab.ingest(amounts.mib, &mut report)?;
    lab.beside(&mut report)?;
    Ok(report)
}

/// What commands took with one number of objects, in milliseconds.
struct Times {
    objects: usize,
    cached: f64,
    whole: Vec<(&'static str, f64)>,
}

/// A build that finds everything should cost the same whatever else is there; commands that look at
/// all objects should cost each of them the same, from a thousand on: 1 is linear.
fn compare(sizes: &[Times], report: &mut Report) {
    let Some(first) = sizes.first() else { return };
    for size in sizes {
        let name = format!("cached_build_with_{}", size.objects);
        report.ratio(&name, size.cached / first.cached);
    }
    let mut many = sizes.iter().filter(|size| size.objects >= 1_000);
    let (Some(few), Some(most)) = (many.next(), many.next_back()) else {
        return;
    };
    let more = most.objects as f64 / few.objects as f64;
    for ((name, few_ms), (_, most_ms)) in few.whole.iter().zip(&most.whole) {
        report.ratio(&format!("{name}_per_object"), most_ms / few_ms / more);
    }
}

/// A context whose build needs no VM: thirty steps that the host does.
fn context(bench: &Bench) -> Result<PathBuf> {
    let dir = bench.context("cached")?;
    let mut dockerfile = String::from("FROM scratch\n");
    for step in 0..STEPS {
        dockerfile.push_str(&format!("WORKDIR /work/{step}\n"));
    }
    std::fs::write(dir.join("Dockerfile"), dockerfile).context("Dockerfile")?;
    Ok(dir)
}

impl Lab<'_> {
    fn store(&self, name: &str) -> PathBuf {
        self.bench.scratch.path().join(format!("store-{name}"))
    }

    fn cofferdam(&self, store: &Path, words: &[&str]) -> Command {
        let mut command = self.bench.cofferdam(words.iter().copied());
        command.env("COFFERDAM_STORE", store);
        command
    }

    fn fill(&self, store: &Path, objects: usize, name: &str) -> Command {
        let mut command = shell::command(&self.soak, ["fill"]);
        command.arg(store).arg(objects.to_string()).arg(name);
        command
    }

    /// One store of that size: medians of a few runs each.
    fn sizes(&self, objects: usize, report: &mut Report) -> Result<Times> {
        let store = self.store(&objects.to_string());
        let filled = timed(&mut self.fill(&store, objects, "fill"))?;
        let mut row =
            Row::new(&format!("{objects} objects")).number("fill_s", filled.as_secs_f64());
        let mut build = self.cofferdam(&store, &["build", "--quiet", "."]);
        build.current_dir(&self.context);
        timed(&mut build)?;
        let times = (0..ROUNDS).map(|_| timed(&mut build));
        let cached = ms(Spread::of(times.collect::<Result<_>>()?)?.median);
        row = row.number("cached_build_ms", cached);
        let mut whole = Vec::new();
        for (name, words, rounds) in [
            ("du", &["du"][..], WHOLE_ROUNDS),
            ("history_ls", &["history", "ls"], WHOLE_ROUNDS),
            ("check", &["store", "check"], WHOLE_ROUNDS),
            ("prune_dry_run", &["prune", "--dry-run"], WHOLE_ROUNDS),
            ("prune", &["prune", "--force"], 1), // then there is nothing left
        ] {
            let times = (0..rounds).map(|_| timed(&mut self.cofferdam(&store, words)));
            let median = ms(Spread::of(times.collect::<Result<_>>()?)?.median);
            row = row.number(&format!("{name}_ms"), median);
            whole.push((name, median));
        }
        report.row(row);
        Ok(Times {
            objects,
            cached,
            whole,
        })
    }

    /// A large file comes into the store, beside what copying and hashing it costs.
    fn ingest(&self, mib: u64, report: &mut Report) -> Result<()> {
        let dir = self.bench.scratch.path();
        let file = dir.join("ingested");
        transfer::random_file(&file, mib)?;
        let copy = dir.join("copy");
        let mut cp = shell::command("cp", [&file, &copy]);
        let mut openssl = shell::command("openssl", ["dgst", "-sha256"]);
        openssl.arg(&file);
        let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..3 {
            let store = self.store(&format!("ingest-{round}"));
            let mut ingest = shell::command(&self.soak, ["ingest"]);
            ingest.arg(&store).arg(&file);
            for (command, times) in [&mut ingest, &mut openssl, &mut cp]
                .into_iter()
                .zip(&mut speeds)
            {
                times.push(timed(command)?);
            }
            std::fs::remove_dir_all(&store).context("store")?;
        }
        let mut medians = Vec::new();
        for (what, times) in ["ingest", "openssl dgst -sha256", "cp"]
            .into_iter()
            .zip(speeds)
        {
            let seconds = Spread::of(times)?.median.as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
            let speed = mib as f64 / seconds;
            report.row(Row::new(&format!("{what}, {mib} MiB")).number("mib_s", speed));
            medians.push(speed);
        }
        if let [ingest, openssl, cp] = medians[..] {
            report.ratio("ingest_vs_openssl", ingest / openssl);
            report.ratio("ingest_vs_cp", ingest / cp);
        }
        Ok(())
    }

    /// Two processes that make different layers, against one.
    fn beside(&self, report: &mut Report) -> Result<()> {
        for (objects, kib, size) in BESIDE {
            let fill = |store: &Path, name: &str| {
                let mut command = self.fill(store, objects, name);
                command.arg(format!("--kib={kib}"));
                command
            };
            let mut times = [Vec::new(), Vec::new()];
            for round in 0..BESIDE_ROUNDS {
                let store = self.store(&format!("alone-{kib}-{round}"));
                times[0].push(timed(&mut fill(&store, "one"))?);
                let store = self.store(&format!("beside-{kib}-{round}"));
                times[1].push(together(["one", "two"].map(|name| fill(&store, name)))?);
            }
            let [alone, both] = times.map(Spread::of);
            let [alone, both] = [alone?, both?].map(|times| times.median.as_secs_f64());
            for (who, seconds) in [("one process", alone), ("two processes", both)] {
                let what = format!("{who}, layers of {size}");
                report.row(Row::new(&what).number("seconds", seconds));
            }
            let name = format!("two_processes_vs_one_{}", size.replace(' ', "_"));
            report.ratio(&name, 2.0 * alone / both);
        }
        Ok(())
    }
}

/// Runs commands at the same time; how long all took.
fn together(commands: [Command; 2]) -> Result<Duration> {
    let begin = Instant::now();
    let mut children = Vec::new();
    for mut command in commands {
        children.push(command.spawn().context("soak")?);
    }
    for mut child in children {
        let status = child.wait().context("soak")?;
        ensure!(
            status.success(),
            "a process beside another one failed: {status}"
        );
    }
    Ok(begin.elapsed())
}
