//! The process that starts, kills and judges the others.

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
use store::{BuildState, Digest, Store};

use crate::builder::{self, CANCELLED, FULL, USER};
use crate::recipe::{self, RECIPES, Recipe, make_dirs};
use crate::tally::{Tally, complain, say};

/// No process may take longer, on the busiest machine: it would be a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at a process.
const TICK: Duration = Duration::from_millis(2);

/// How long a process is stopped, at most; far below what others wait for it.
const STOPPED: u64 = 300;

/// Builds and prunes at random.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Where the store is made; kept if something is wrong.
    #[arg(long)]
    dir: PathBuf,
    /// Processes at the same time.
    #[arg(long, default_value_t = 4)]
    processes: u64,
    /// Of the random choices. Processes race, so the same seed is only similar.
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

/// Runs until the time is up or something is wrong.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    fs::create_dir_all(args.dir.join("out"))?;
    make_dirs(&args.dir)?;
    let soak = Soak {
        args,
        until: Instant::now() + Duration::from_secs_f64(args.minutes * 60.0),
        results: Mutex::default(),
    };
    let mut tally = Tally::default();
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
            tally.add(&counts);
            done = done.and(end);
        }
        done
    });
    say(&tally);
    done.with_context(|| format!("seed {}", args.seed))?;
    judge(&soak.store(), &args.dir.join(recipe::STEPS), &tally)?;
    say(format!(
        "{} builds, {} kills, {} faults of a full disk, and the store is clean",
        tally.of("builds"),
        tally.of("killed"),
        tally.of("ended by a full disk")
    ));
    Ok(ExitCode::SUCCESS)
}

/// At rest: nothing runs, nothing is left over, and each build that was killed is told so.
fn judge(store: &Path, steps: &Path, tally: &Tally) -> Result<()> {
    let store = Store::open(store, &builder::options("judge"))?;
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
    ensure!(running == 0, "{running} builds run, says the history");
    let interrupted = builds
        .iter()
        .filter(|build| matches!(build.state, BuildState::Interrupted))
        .count() as u64;
    ensure!(
        interrupted <= tally.of("killed") + tally.of("ended by a full disk"),
        "{interrupted} builds are interrupted, more than were killed"
    );
    let left = fs::read_dir(steps)?.count();
    ensure!(left == 0, "{left} directories of dead steps are left");
    Ok(store.close()?)
}

impl Soak<'_> {
    fn store(&self) -> PathBuf {
        self.args.dir.join("store")
    }

    fn work(&self, number: u64) -> (Tally, Result<()>) {
        let mut rng = Rng::with_seed(self.args.seed.wrapping_mul(1000) + number);
        let mut tally = Tally::default();
        while Instant::now() < self.until {
            let done = match rng.u64(..100) {
                0..84 => self.build(number, &mut rng, &mut tally),
                84..96 => self.prune(&mut rng, &mut tally),
                _ => self.look(&mut tally),
            };
            if done.is_err() {
                return (tally, done);
            }
        }
        (tally, Ok(()))
    }

    fn build(&self, worker: u64, rng: &mut Rng, tally: &mut Tally) -> Result<()> {
        let number = rng.u64(..RECIPES);
        let mut command = self.myself("build")?;
        command.arg(&self.args.dir);
        command.arg(number.to_string());
        if rng.u64(..10) == 0 {
            command.arg("--no-cache");
        }
        // Not both: the name of an image stands in its archive.
        let archive = self.args.dir.join(format!("out/{worker}.tar"));
        let archive = (rng.u64(..10) == 0).then_some(archive);
        if let Some(archive) = &archive {
            command.arg(format!("--output=type=oci,dest={}", archive.display()));
        } else if rng.u64(..4) == 0 {
            command.arg(format!("--tag=image-{}", rng.u64(..5)));
        }
        tally.count("builds");
        let what = format!("build of recipe {number}");
        let Some(done) = self.finish(command, rng, tally, &what)? else {
            return Ok(());
        };
        let status = done.status.code().and_then(|code| u8::try_from(code).ok());
        match status {
            Some(0) => {
                ensure!(!Recipe::new(number).fails, "{what} cannot succeed");
                tally.count("ended well");
                let image = String::from_utf8_lossy(&done.stdout).trim().to_owned();
                self.same(number, "image", image)?;
                if let Some(archive) = &archive {
                    let bytes = fs::read(archive).context("the archive of a build")?;
                    let sum = Digest::of(&bytes).hex();
                    self.same(number, "archive", sum)?;
                }
            }
            Some(USER) if Recipe::new(number).fails => tally.count("failed as they should"),
            Some(FULL) => tally.count("ended by a full disk"),
            Some(CANCELLED) => tally.count("cancelled"),
            _ => bail!("{what} ended with {}: {}", done.status, said(&done)),
        }
        Ok(())
    }

    /// The same recipe comes to the same each time.
    fn same(&self, number: u64, what: &'static str, found: String) -> Result<()> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let first = results
            .entry((number, what))
            .or_insert_with(|| found.clone());
        ensure!(
            *first == found,
            "recipe {number}: {what} {found}, and it was {first}"
        );
        Ok(())
    }

    fn prune(&self, rng: &mut Rng, tally: &mut Tally) -> Result<()> {
        let mut command = self.myself("prune")?;
        match rng.u64(..4) {
            0 => drop(command.arg("--images")),
            1 | 2 => drop(command.arg(format!("--keep={}", rng.u64(..20 << 20)))),
            _ => {}
        }
        tally.count("prunes");
        let Some(done) = self.finish(command, rng, tally, "prune")? else {
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

    /// While others work: whatever they do, what is valid is whole.
    fn look(&self, tally: &mut Tally) -> Result<()> {
        let store = match Store::open(&self.store(), &builder::options("look")) {
            Err(store::StoreError::Full { .. }) => return Ok(()),
            opened => opened?,
        };
        let report = store.check(false)?;
        for (finding, _) in &report.findings {
            let text = finding.to_string();
            // What others left a moment ago is settled by whoever comes next.
            let is_wrong = !matches!(
                finding,
                store::Finding::DeadInstance(_)
                    | store::Finding::Stray(_)
                    | store::Finding::Leftover { .. }
            );
            ensure!(!is_wrong, "beside other processes: {text}");
        }
        // Who looks does not build, and whoever was killed does not run.
        let running = store.builds(usize::MAX)?.into_iter();
        let running = running.filter(|build| build.state == BuildState::Running);
        let (running, most) = (running.count() as u64, self.args.processes - 1);
        ensure!(
            running <= most,
            "{running} builds run, and there can be {most}"
        );
        tally.count("checks beside others");
        match store.close() {
            Ok(()) | Err(store::StoreError::Full { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn myself(&self, role: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(self.store());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Lets a process end, or sees to its end. `None` if it was killed.
    fn finish(
        &self,
        mut command: Command,
        rng: &mut Rng,
        tally: &mut Tally,
        what: &str,
    ) -> Result<Option<Output>> {
        let mut child = command.spawn().context("cannot start a process")?;
        let delay = Duration::from_millis(rng.u64(..250));
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let fate = rng.u64(..100);
        let begin = Instant::now();
        let is_done = wait(&mut child, begin + delay)?;
        match fate {
            _ if is_done => {}
            0..40 => kill(pid, Signal::SIGKILL)?,
            40..50 => kill(pid, Signal::SIGINT)?,
            50..56 => {
                kill(pid, Signal::SIGSTOP)?;
                thread::sleep(Duration::from_millis(rng.u64(..STOPPED)));
                kill(pid, Signal::SIGCONT)?;
                tally.count("stopped for a while");
            }
            _ => {}
        }
        if !wait(&mut child, begin + PATIENCE)? {
            complain(format!("{what}, process {pid}, does not end"));
            kill(pid, Signal::SIGKILL)?;
            child.wait()?;
            bail!("{what} hung for {} s", PATIENCE.as_secs());
        }
        let done = child.wait_with_output()?;
        // An interrupt kills, too, where nobody has begun to listen for it.
        let deadly = [Signal::SIGKILL as i32, Signal::SIGINT as i32];
        if done.status.signal().is_some_and(|it| deadly.contains(&it)) {
            tally.count("killed");
            return Ok(None);
        }
        Ok(Some(done))
    }
}

/// Waits for a process until then. Its output is small and waits in the pipe.
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
