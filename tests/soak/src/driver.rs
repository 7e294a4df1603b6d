//! The process that starts, kills and checks the others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::{BuildState, Store};

use crate::builder::{self, CANCELLED, FULL, USER};
use crate::counters::{Counters, complain, say};
use crate::recipe::{self, RECIPES, Recipe, make_dirs};

/// A process that takes longer hangs, even on a busy machine.
const BOUND: Duration = Duration::from_secs(120);

/// How often to check whether a process has ended.
const TICK: Duration = Duration::from_millis(2);

/// Longest time for which a process is stopped, in milliseconds: much less than others wait for it.
const MAX_STOPPED: u64 = 300;

/// Options of a run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The duration in minutes.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The directory of the store; kept if a check fails.
    #[arg(long)]
    dir: PathBuf,
    /// Processes at the same time.
    #[arg(long, default_value_t = 4)]
    processes: u64,
    /// The seed of the random choices. Processes race, so runs with the same seed are only similar.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What all threads share.
struct Soak<'a> {
    args: &'a Args,
    until: Instant,
    /// The image of each recipe, and the bytes of its archive.
    results: Mutex<BTreeMap<(u64, &'static str), String>>,
}

/// Runs until the time is up or a check fails.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    fs::create_dir_all(args.dir.join("out"))?;
    make_dirs(&args.dir)?;
    let soak = Soak {
        args,
        until: Instant::now() + Duration::from_secs_f64(args.minutes * 60.0),
        results: Mutex::default(),
    };
    let mut counters = Counters::default();
    let done = thread::scope(|scope| {
        let workers: Vec<_> = (0..args.processes)
            .map(|number| {
                let soak = &soak;
                scope.spawn(move || soak.work(number))
            })
            .collect();
        let mut done = Ok(());
        for worker in workers {
            let (counts, end) = worker.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            counters.add(&counts);
            done = done.and(end);
        }
        done
    });
    say(&counters);
    done.with_context(|| format!("seed {}", args.seed))?;
    check_at_end(&soak.store(), &args.dir.join(recipe::STEPS), &counters)?;
    say(format!(
        "{} builds, {} kills, {} faults of a full disk, and the store is clean",
        counters.of("builds"),
        counters.of("killed"),
        counters.of("ended by a full disk")
    ));
    Ok(ExitCode::SUCCESS)
}

/// When no process runs any more: nothing is left over, and each killed build counts as interrupted.
fn check_at_end(store: &Path, steps: &Path, counters: &Counters) -> Result<()> {
    let store = Store::open(store, &builder::options("check"))?;
    let report = store.check(false)?;
    ensure!(
        report.is_clean(),
        "the store is not clean: {:?}",
        report.findings
    );
    let builds = store.builds(usize::MAX)?;
    let running = builds
        .iter()
        .filter(|build| matches!(build.state, BuildState::Running))
        .count();
    ensure!(running == 0, "the history has {running} running builds");
    let interrupted = builds
        .iter()
        .filter(|build| matches!(build.state, BuildState::Interrupted))
        .count() as u64;
    ensure!(
        interrupted <= counters.of("killed") + counters.of("ended by a full disk"),
        "{interrupted} builds count as interrupted, more than were killed"
    );
    let left = fs::read_dir(steps)?.count();
    ensure!(left == 0, "{left} directories of dead steps are left over");
    Ok(store.close()?)
}

impl Soak<'_> {
    fn store(&self) -> PathBuf {
        self.args.dir.join("store")
    }

    fn work(&self, number: u64) -> (Counters, Result<()>) {
        let mut rng = Rng::with_seed(self.args.seed.wrapping_mul(1000) + number);
        let mut counters = Counters::default();
        while Instant::now() < self.until {
            let done = match rng.u64(..100) {
                0..84 => self.build(number, &mut rng, &mut counters),
                84..96 => self.prune(&mut rng, &mut counters),
                _ => self.check_meanwhile(&mut counters),
            };
            if done.is_err() {
                return (counters, done);
            }
        }
        (counters, Ok(()))
    }

    fn build(&self, worker: u64, rng: &mut Rng, counters: &mut Counters) -> Result<()> {
        let number = rng.u64(..RECIPES);
        let mut command = self.command("build")?;
        command.arg(&self.args.dir);
        command.arg(number.to_string());
        if rng.u64(..10) == 0 {
            command.arg("--no-cache");
        }
        // Not both: an archive contains the name of its image.
        let archive = self.args.dir.join(format!("out/{worker}.tar"));
        let archive = (rng.u64(..10) == 0).then_some(archive);
        if let Some(archive) = &archive {
            command.arg(format!("--output=type=oci,dest={}", archive.display()));
        } else if rng.u64(..4) == 0 {
            command.arg(format!("--tag=image-{}", rng.u64(..5)));
        }
        counters.count("builds");
        let what = format!("build of recipe {number}");
        let Some(done) = self.finish(command, rng, counters, &what)? else {
            return Ok(());
        };
        let status = done.status.code().and_then(|code| u8::try_from(code).ok());
        match status {
            Some(0) => {
                ensure!(!Recipe::new(number).fails, "{what} cannot succeed");
                counters.count("succeeded");
                let image = String::from_utf8_lossy(&done.stdout).trim().to_owned();
                self.check_same(number, "image", image)?;
                if let Some(archive) = &archive {
                    let bytes = fs::read(archive).context("the archive of a build")?;
                    let sum = store::sha256(&bytes).hex();
                    self.check_same(number, "archive", sum)?;
                }
            }
            Some(USER) if Recipe::new(number).fails => counters.count("failed as expected"),
            Some(FULL) => counters.count("ended by a full disk"),
            Some(CANCELLED) => counters.count("cancelled"),
            _ => bail!("{what} ended with {}: {}", done.status, said(&done)),
        }
        Ok(())
    }

    /// The same recipe must give the same result each time.
    fn check_same(&self, number: u64, what: &'static str, found: String) -> Result<()> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let first = results
            .entry((number, what))
            .or_insert_with(|| found.clone());
        ensure!(
            *first == found,
            "recipe {number}: {what} is {found}, and was {first} before"
        );
        Ok(())
    }

    fn prune(&self, rng: &mut Rng, counters: &mut Counters) -> Result<()> {
        let mut command = self.command("prune")?;
        match rng.u64(..4) {
            0 => drop(command.arg("--images")),
            1 | 2 => drop(command.arg(format!("--keep={}", rng.u64(..20 << 20)))),
            _ => {}
        }
        counters.count("prunes");
        let Some(done) = self.finish(command, rng, counters, "prune")? else {
            return Ok(());
        };
        let text = said(&done);
        let is_full = text.contains("no space left");
        ensure!(
            done.status.success() || is_full,
            "prune: {}: {text}",
            done.status
        );
        Ok(())
    }

    /// While other processes work: whatever they do, everything valid is complete.
    fn check_meanwhile(&self, counters: &mut Counters) -> Result<()> {
        let store = match Store::open(&self.store(), &builder::options("check meanwhile")) {
            Err(store::StoreError::Full { .. }) => return Ok(()),
            opened => opened?,
        };
        let report = store.check(false)?;
        for (finding, _) in &report.findings {
            let text = finding.to_string();
            // The next process cleans up what others left a moment ago.
            let is_wrong = !matches!(
                finding,
                store::Finding::DeadInstance(_)
                    | store::Finding::Stray(_)
                    | store::Finding::Leftover { .. }
            );
            ensure!(!is_wrong, "while other processes run: {text}");
        }
        // This process does not build, and a killed one does not run.
        let running = store.builds(usize::MAX)?.into_iter();
        let running = running.filter(|build| build.state == BuildState::Running);
        let (running, most) = (running.count() as u64, self.args.processes - 1);
        ensure!(
            running <= most,
            "{running} builds count as running, and there can be only {most}"
        );
        counters.count("checks meanwhile");
        match store.close() {
            Ok(()) | Err(store::StoreError::Full { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn command(&self, role: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(self.store());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Waits for the end of a process, or interrupts, stops or kills it at random. `None` if it was
    /// killed.
    fn finish(
        &self,
        mut command: Command,
        rng: &mut Rng,
        counters: &mut Counters,
        what: &str,
    ) -> Result<Option<Output>> {
        let mut child = command.spawn().context("cannot start a process")?;
        let delay = Duration::from_millis(rng.u64(..250));
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let action = rng.u64(..100);
        let begin = Instant::now();
        let is_done = wait(&mut child, begin + delay)?;
        match action {
            _ if is_done => {}
            0..40 => kill(pid, Signal::SIGKILL)?,
            40..50 => kill(pid, Signal::SIGINT)?,
            50..56 => {
                kill(pid, Signal::SIGSTOP)?;
                thread::sleep(Duration::from_millis(rng.u64(..MAX_STOPPED)));
                kill(pid, Signal::SIGCONT)?;
                counters.count("stopped for a while");
            }
            _ => {}
        }
        if !wait(&mut child, begin + BOUND)? {
            complain(format!("{what} (process {pid}) does not end"));
            kill(pid, Signal::SIGKILL)?;
            child.wait()?;
            bail!("{what} took longer than {} s", BOUND.as_secs());
        }
        let done = child.wait_with_output()?;
        // An interrupt kills a process that has not installed its handler yet.
        let deadly = [Signal::SIGKILL as i32, Signal::SIGINT as i32];
        if done.status.signal().is_some_and(|it| deadly.contains(&it)) {
            counters.count("killed");
            return Ok(None);
        }
        Ok(Some(done))
    }
}

/// Waits for a process until then. Its output is small enough for the buffer of the pipe.
fn wait(child: &mut Child, until: Instant) -> Result<bool> {
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(TICK);
    }
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).to_lowercase()
}
