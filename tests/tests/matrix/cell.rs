//! One cell: a build is brought into a phase, the fault strikes it there, and it ends as the table says,
//! in time, and leaves nothing.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::qemu::OtherQemu;
use tests::{Bench, run};

use crate::dockerfiles;
use crate::faulty_image::{self, Death, Line};
use crate::gate::Gate;
use crate::leftovers;
use crate::running::{MIB, Running, code, within};
use crate::table::{End, Fault, Phase, SUCCESS};

/// How long what is continued was stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// Between two signals that are two: the product takes those within half a second for one.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a build that holds nothing any more has until its time limit, before the phases that can
/// be held for a few seconds only.
const LEAD: Duration = Duration::from_secs(3);

/// The rest of a build whose image is delivered. Whoever waits for the database waits for five seconds.
const HELD: Duration = Duration::from_millis(3500);

/// How often a phase may be over by the time that it is struck.
const ATTEMPTS: u32 = 4;

/// A cell that did what it should.
pub(crate) struct Done {
    pub(crate) end: End,
    /// From the strike to the end.
    pub(crate) took: Duration,
    /// The build that must succeed afterwards.
    pub(crate) next: Next,
}

/// A build that must succeed.
pub(crate) struct Next {
    dockerfile: String,
    gates: Vec<Gate>,
}

/// How long a build may take to end after the strike, on an emulated machine that does other work.
fn bound(fault: Fault) -> Duration {
    Duration::from_secs(match fault {
        Fault::KillHost => 2,
        // A step that has to be killed, a guest that has to answer.
        Fault::StepFails
        | Fault::Timeout
        | Fault::Interrupt
        | Fault::InterruptTwice
        | Fault::Terminate => 15,
        Fault::HostDiskFull => 60,
        // The rest of the build, with another VM where one is lost.
        Fault::Nothing
        | Fault::GuestDiskFull
        | Fault::StopHost
        | Fault::StopQemu
        | Fault::KillQemu
        | Fault::Panic
        | Fault::KillAgent => 120,
        // A guest counts as lost after a minute, and one that boots in emulation after four.
        Fault::StopQemuForGood => 300,
    })
}

/// Runs a cell until it struck in its phase.
pub(crate) fn cell(
    bench: &Bench,
    fault: Fault,
    phase: Phase,
    wanted: &[End],
    reach: &mut Duration,
) -> Result<Done, String> {
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt(bench, fault, phase, wanted, reach)? {
            return Ok(done);
        }
    }
    Err(format!(
        "in {ATTEMPTS} attempts the phase was over too early"
    ))
}

/// What a cell consists of.
struct Cell<'a> {
    fault: Fault,
    phase: Phase,
    running: Running<'a>,
    gates: dockerfiles::Gates,
    line: Option<Line>,
    /// When the build's time is up.
    limit: Option<Duration>,
    filler: Option<PathBuf>,
}

fn attempt(
    bench: &Bench,
    fault: Fault,
    phase: Phase,
    wanted: &[End],
    reach: &mut Duration,
) -> Result<Option<Done>, String> {
    let (dockerfile, gates) = dockerfiles::of(fault, phase);
    let mut command = command(bench, &dockerfile, &gates);
    let (line, limit) = prepare(&mut command, bench, fault, phase, *reach);
    let running = Running::start(bench, command, gates.work.clone());
    let mut cell = Cell {
        fault,
        phase,
        running,
        gates,
        line,
        limit,
        filler: None,
    };
    let struck = cell.bring_and_strike(reach);
    let done = struck.and_then(|in_phase| {
        if !in_phase {
            return Ok(None);
        }
        let began = Instant::now();
        let limit = cell.rest() + bound(fault);
        let status = cell.running.end(limit);
        let took = began.elapsed();
        let Some(status) = status else {
            return Err(format!("it did not end in {} s", limit.as_secs()));
        };
        Ok(Some((code(status), took)))
    });
    cell.running.unlock();
    if let Some(filler) = &cell.filler {
        fs::remove_file(filler).unwrap();
    }
    let said = cell.running.progress();
    let next = Next {
        dockerfile,
        gates: cell.gates.all(),
    };
    drop(cell);
    let judged = done.and_then(|done| {
        let Some((status, took)) = done else {
            return Ok(None);
        };
        let end = End {
            status,
            history: leave(bench, fault, status)?,
        };
        if !wanted.contains(&end) {
            return Err(format!("it ended as {end:?}, not as one of {wanted:?}"));
        }
        Ok(Some(Done { end, took, next }))
    });
    judged.map_err(|why| format!("{why}\n{said}"))
}

/// The command of a build that exports to standard output, and reaches the gates.
fn command(bench: &Bench, dockerfile: &str, gates: &dockerfiles::Gates) -> Command {
    bench.write("Dockerfile", dockerfile);
    let results = bench.out().join("results");
    let mut command = bench.build_command(&["-o", "-"]);
    for (option, name) in [("--iidfile", "iid"), ("--metadata-file", "metadata")] {
        command.arg(option).arg(results.join(name));
    }
    for gate in gates.all() {
        let address = format!("localhost:{}", gate.port);
        command.args(["--allow-net", &address, "--allow-host", &address]);
    }
    command.env("TMPDIR", bench.out().join("tmp"));
    command
}

/// What has to be different from the beginning of a build that will meet a fault.
fn prepare(
    command: &mut Command,
    bench: &Bench,
    fault: Fault,
    phase: Phase,
    reach: Duration,
) -> (Option<Line>, Option<Duration>) {
    match fault {
        Fault::Timeout => {
            let limit = if phase == Phase::Boot {
                Duration::from_secs(3)
            } else {
                Duration::from_secs((reach * 3 / 2 + LEAD * 2).as_secs())
            };
            command.args(["--timeout", &format!("{}s", limit.as_secs())]);
            return (None, Some(limit));
        }
        Fault::Panic | Fault::KillAgent if phase == Phase::Boot => {
            let image = faulty_image::deadly(bench, death(fault));
            command.env("COFFERDAM_VM_IMAGE", image);
        }
        Fault::Panic | Fault::KillAgent => {
            let (image, path, line) = faulty_image::obedient(bench);
            command.env("COFFERDAM_VM_IMAGE", image).env("PATH", path);
            return (Some(line), None);
        }
        Fault::GuestDiskFull => {
            // Too small for the layers, or for what the step makes on top of them.
            let mib = if phase == Phase::Put { MIB } else { 2 * MIB };
            let bytes = mib << 20;
            let disk = "driver=raw,node-name=disk,";
            let change = format!("{disk}*) word=\"{disk}size={bytes},${{word#{disk}}}\"");
            let other = OtherQemu {
                change: &change,
                ..OtherQemu::default()
            };
            command.env("PATH", other.install(bench));
        }
        Fault::HostDiskFull => {
            command.args(["--min-free-space", "0"]);
        }
        Fault::Nothing
        | Fault::StepFails
        | Fault::Interrupt
        | Fault::InterruptTwice
        | Fault::Terminate
        | Fault::KillHost
        | Fault::KillQemu
        | Fault::StopHost
        | Fault::StopQemu
        | Fault::StopQemuForGood => {}
    }
    (None, None)
}

fn death(fault: Fault) -> Death {
    if fault == Fault::KillAgent {
        Death::Agent
    } else {
        Death::Panic
    }
}

impl Cell<'_> {
    /// False if the phase was over before the strike.
    fn bring_and_strike(&mut self, reach: &mut Duration) -> Result<bool, String> {
        self.bring()?;
        if self.phase == Phase::Run {
            *reach = (*reach).max(self.running.began.elapsed());
        }
        self.running.freeze();
        if !self.running.is_in(self.phase) {
            self.running.thaw();
            return Ok(false);
        }
        self.strike();
        if !self.ends_the_build() {
            self.running.archive.want(u64::MAX);
            self.gates.open_all();
        }
        self.running.unlock();
        Ok(true)
    }

    /// Brings the build into the phase.
    fn bring(&mut self) -> Result<(), String> {
        let waits = matches!(self.phase, Phase::Commit | Phase::Teardown);
        if let (Some(limit), true) = (self.limit, waits) {
            // The phase can be held for a short time only, so it begins shortly before the limit.
            let before = if self.phase == Phase::Commit {
                Phase::Run
            } else {
                Phase::Export
            };
            self.running.reach(before)?;
            let left = (limit.saturating_sub(LEAD)).saturating_sub(self.running.began.elapsed());
            thread::sleep(left);
        }
        if self.fault == Fault::StepFails {
            self.gates.let_the_first_go(self.phase);
            if self.phase == Phase::Boot {
                // The download waits for its answer while the VM boots.
                self.until_came(&self.gates.other.clone())?;
            }
        }
        self.running.reach(self.phase)
    }

    fn until_came(&self, gate: &Gate) -> Result<(), String> {
        if within(Duration::from_secs(60), || gate.came() > 0) {
            return Ok(());
        }
        Err("the other step did not begin".to_owned())
    }

    /// Strikes a build that is frozen, and lets it go on.
    fn strike(&mut self) {
        let Self { running, fault, .. } = self;
        match fault {
            Fault::Nothing | Fault::GuestDiskFull => {}
            Fault::StepFails => self.gates.fail(self.phase),
            Fault::Timeout => {
                running.thaw();
                self.hold_until_the_limit();
            }
            Fault::Interrupt => running.signal_group(Signal::SIGINT),
            Fault::InterruptTwice => {
                running.signal_group(Signal::SIGINT);
                running.thaw();
                self.repeat();
            }
            Fault::Terminate => running.signal(Signal::SIGTERM),
            Fault::KillHost => running.signal(Signal::SIGKILL),
            Fault::KillQemu => {
                running.signal_monitors(Signal::SIGKILL);
                let gone = within(bound(Fault::KillHost), || running.monitors().is_empty());
                assert!(gone, "QEMU survives SIGKILL");
            }
            Fault::Panic | Fault::KillAgent => {
                let monitors = running.monitors();
                // Without a line, its guest dies by itself while it boots.
                if let Some(line) = &mut self.line {
                    let is_dead = || running.monitors() != monitors;
                    let dead = line.kill(death(*fault), is_dead, || running.thaw());
                    assert!(dead, "the guest survives");
                }
            }
            Fault::HostDiskFull => self.fill_the_disk(),
            Fault::StopHost => thread::sleep(STOPPED),
            Fault::StopQemu => {
                running.signal_monitors(Signal::SIGSTOP);
                running.thaw();
                thread::sleep(STOPPED);
                running.signal_monitors(Signal::SIGCONT);
            }
            Fault::StopQemuForGood => running.signal_monitors(Signal::SIGSTOP),
        }
        if self.running.child.try_wait().unwrap().is_none() {
            self.running.thaw();
        }
    }

    /// A step that only hears from us goes on for ever, and nobody reads the image. What would go on by
    /// itself is stopped.
    fn hold_until_the_limit(&mut self) {
        match self.phase {
            Phase::Boot | Phase::Put | Phase::Take => {
                self.running.signal_monitors(Signal::SIGSTOP);
            }
            Phase::Run | Phase::Export => {}
            Phase::Commit | Phase::Teardown => {
                let limit = self.limit.unwrap_or_default();
                let left = limit.saturating_sub(self.running.began.elapsed());
                thread::sleep((left + AGAIN * 3).min(HELD));
            }
        }
    }

    /// Signals again and again, until one is the second one or the build has ended.
    fn repeat(&mut self) {
        let began = Instant::now();
        while self.running.child.try_wait().unwrap().is_none()
            && began.elapsed() < bound(self.fault)
        {
            thread::sleep(AGAIN);
            self.running.signal_group(Signal::SIGINT);
            // It records that it was told to stop, before it can be told again.
            self.running.unlock();
        }
    }

    fn fill_the_disk(&mut self) {
        let path = self.running.bench.store().join("filler");
        let mut filler = fs::File::create(&path).unwrap();
        for size in [1 << 20, 1 << 12] {
            let piece = vec![1; size];
            while filler.write_all(&piece).is_ok() {}
        }
        self.filler = Some(path);
    }

    /// Whether the fault itself ends the build, so that nothing that holds it has to let go.
    fn ends_the_build(&self) -> bool {
        match self.fault {
            Fault::StepFails
            | Fault::Timeout
            | Fault::Interrupt
            | Fault::InterruptTwice
            | Fault::Terminate
            | Fault::KillHost => true,
            Fault::Nothing
            | Fault::KillQemu
            | Fault::Panic
            | Fault::KillAgent
            | Fault::HostDiskFull
            | Fault::GuestDiskFull
            | Fault::StopHost
            | Fault::StopQemu
            | Fault::StopQemuForGood => false,
        }
    }

    /// What is left of the build's time, if that ends it.
    fn rest(&self) -> Duration {
        self.limit.map_or(Duration::ZERO, |limit| {
            limit.saturating_sub(self.running.began.elapsed())
        })
    }
}

/// Checks that nothing is left, and returns what the history says. What was killed leaves the rest to
/// the next command, but no process.
fn leave(bench: &Bench, fault: Fault, status: Option<i32>) -> Result<&'static str, String> {
    let at_once = status.is_none() || fault == Fault::InterruptTwice && status == Some(130);
    if at_once {
        within(Duration::from_secs(10), || {
            leftovers::processes(bench).is_empty()
        });
        let processes = leftovers::processes(bench);
        if !processes.is_empty() {
            return Err(format!("it left processes: {processes:?}"));
        }
        let cleaned = run(bench.cofferdam(["store", "check"]));
        if cleaned.status != Some(0) {
            return Err(format!("the next command did not clean up: {cleaned:?}"));
        }
    }
    let left = leftovers::of(bench);
    if !left.is_empty() {
        return Err(format!("it left {left:#?}"));
    }
    let checked = run(bench.cofferdam(["store", "check"]));
    if checked.status != Some(0) {
        return Err(format!("the store is not clean: {checked:?}"));
    }
    let list = run(bench.cofferdam(["history", "ls", "--format", "json"])).expect_status(0);
    let newest = list.stdout.lines().next().unwrap_or_default();
    let newest: serde_json::Value = serde_json::from_str(newest).unwrap();
    let known = [
        "success",
        "user",
        "limit",
        "host",
        "cancelled",
        "interrupted",
    ];
    let said = newest["status"].as_str().unwrap();
    known
        .into_iter()
        .find(|known| *known == said)
        .ok_or_else(|| format!("the history says {said}"))
}

impl Next {
    /// Builds, and checks that it succeeds.
    pub(crate) fn succeeds(&self, bench: &Bench) -> Result<(), String> {
        for gate in &self.gates {
            gate.open();
        }
        let mut args = Vec::new();
        let addresses: Vec<String> = self
            .gates
            .iter()
            .map(|gate| format!("localhost:{}", gate.port))
            .collect();
        for address in &addresses {
            args.extend(["--allow-net", address, "--allow-host", address]);
        }
        let built = bench.build(&self.dockerfile, &args);
        if built.status != SUCCESS.status {
            return Err(format!("the next build does not succeed: {built:?}"));
        }
        let left = leftovers::of(bench);
        if left.is_empty() {
            return Ok(());
        }
        Err(format!("the next build left {left:#?}"))
    }
}
