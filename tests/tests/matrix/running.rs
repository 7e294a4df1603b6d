//! A build that runs, and how a test sees in which phase it is, without a word of the product about it:
//! from its processes and descriptors, the rows of its store, and what it writes.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rusqlite::Connection;
use tests::Bench;

use crate::archive::Archive;
use crate::gate::Gate;
use crate::table::Phase;

/// Size of the layer that is put into the guest, and of what a step makes, in MiB. It takes longer than
/// it takes to look.
pub(crate) const MIB: u64 = 64;

/// So many bytes of an image are more than is below its last layer.
const LAST_LAYER: u64 = (MIB + MIB / 4) << 20;

/// Longest wait for a phase.
const REACH: Duration = Duration::from_secs(150);

/// So often a phase is looked for.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) struct Running<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) child: Child,
    pub(crate) began: Instant,
    pub(crate) archive: Archive,
    /// The gate of the step that the phases belong to.
    pub(crate) gate: Gate,
    store: Connection,
    /// Holds the write lock of the database.
    lock: Option<Connection>,
    progress: PathBuf,
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap())
}

/// Waits until `condition` holds; false if that takes too long.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > limit {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

impl<'a> Running<'a> {
    /// Starts a command that exports to standard output.
    pub(crate) fn start(bench: &'a Bench, mut command: Command, gate: Gate) -> Self {
        let progress = bench.out().join("progress");
        command
            .stdout(Stdio::piped())
            .stderr(File::create(&progress).unwrap())
            .process_group(0);
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        let archive = Archive::of(child.stdout.take().unwrap());
        Self {
            bench,
            child,
            began,
            archive,
            gate,
            store: database(bench),
            lock: None,
            progress,
        }
    }

    pub(crate) fn progress(&self) -> String {
        fs::read_to_string(&self.progress).unwrap()
    }

    /// Brings the build to this phase, as far as it does not get there by itself, and holds it there
    /// where that does not disturb it. `Err` says why it did not get there.
    pub(crate) fn reach(&mut self, phase: Phase) -> Result<(), String> {
        match phase {
            Phase::Boot | Phase::Put => {}
            Phase::Run => self.until("the step runs", |it| it.gate.came() > 0)?,
            Phase::Take | Phase::Commit | Phase::Export | Phase::Teardown => {
                self.until("the step runs", |it| it.gate.came() > 0)?;
                self.gate.open();
            }
        }
        match phase {
            Phase::Commit => {
                self.until("changes are taken", |it| it.takes())?;
                self.lock();
            }
            Phase::Teardown => {
                // An export opens the layers one after the other, which the store records.
                self.until("an export begins", |it| it.archive.waits())?;
                self.archive.want(LAST_LAYER);
                self.until("it comes to the last layer", |it| it.archive.waits())?;
                self.lock();
                self.archive.want(u64::MAX);
            }
            Phase::Boot | Phase::Put | Phase::Run | Phase::Take | Phase::Export => {}
        }
        self.until(phase.name(), |it| it.is_in(phase))
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut ended = None;
        let reached = within(REACH, || {
            let holds = condition(self);
            ended = self.child.try_wait().unwrap();
            holds || ended.is_some()
        });
        match ended {
            Some(status) => Err(format!("it ended with {status} before: {what}")),
            None if reached => Ok(()),
            None => Err(format!("it never came to this: {what}")),
        }
    }

    /// Whether the build is in this phase now.
    pub(crate) fn is_in(&self, phase: Phase) -> bool {
        match phase {
            Phase::Boot => !self.monitors().is_empty() && self.count(LIVE_VMS) == 0,
            Phase::Put => self.puts(),
            Phase::Run => self.gate.came() > 0 && !self.takes(),
            Phase::Take => self.takes(),
            Phase::Commit => self.lock.is_some() && self.has_taken(),
            Phase::Export => self.archive.waits(),
            Phase::Teardown => self.lock.is_some() && self.is_exported(),
        }
    }

    /// Whether a large layer is being read, and is not at its end.
    fn puts(&self) -> bool {
        self.blobs().any(|blob| {
            !blob.writes && blob.at > 0 && blob.at < blob.size && blob.size >= MIB << 20
        })
    }

    /// Whether a layer is being written.
    fn takes(&self) -> bool {
        let sizes = (1 << 20)..(MIB << 20);
        self.blobs()
            .any(|blob| blob.writes && sizes.contains(&blob.size))
    }

    /// Whether a layer has arrived, and the store does not have it yet. The store writes pieces of a
    /// mebibyte, and a rest only at the end.
    fn has_taken(&self) -> bool {
        self.blobs()
            .any(|blob| blob.writes && blob.size > 1 << 20 && blob.size % (1 << 20) > 0)
    }

    /// Whether the display says that the export is done.
    fn is_exported(&self) -> bool {
        let progress = self.progress();
        let exporting = progress.lines().find_map(|line| {
            let (number, rest) = line.split_once(' ')?;
            rest.starts_with("exporting to")
                .then(|| format!("{number} DONE"))
        });
        exporting.is_some_and(|done| progress.lines().any(|line| line.starts_with(&done)))
    }

    fn count(&self, query: &str) -> i64 {
        let mut count = self.store.prepare_cached(query).unwrap();
        count.query_row([], |row| row.get(0)).unwrap()
    }

    /// The blobs of the store that the process has open.
    fn blobs(&self) -> impl Iterator<Item = Blob> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let blobs = fs::canonicalize(self.bench.store()).unwrap().join("blobs");
        let files = fs::read_dir(process.join("fd")).into_iter().flatten();
        files.filter_map(move |file| {
            let file = file.ok()?;
            let blob = fs::read_link(file.path()).ok()?;
            if !blob.starts_with(&blobs) {
                return None;
            }
            let info = fs::read_to_string(process.join("fdinfo").join(file.file_name())).ok()?;
            let member = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
            let flags = u32::from_str_radix(member("flags:")?.trim(), 8).ok()?;
            Some(Blob {
                writes: flags & 0o3 != 0,
                at: member("pos:")?.trim().parse().ok()?,
                size: fs::metadata(&blob).ok()?.len(),
            })
        })
    }

    pub(crate) fn monitors(&self) -> Vec<u32> {
        self.bench.monitors()
    }

    /// Takes the write lock of the database, so that the build waits for it where it writes next; not for
    /// as long as it would wait.
    fn lock(&mut self) {
        let connection = database(self.bench);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        self.lock = Some(connection);
    }

    pub(crate) fn unlock(&mut self) {
        if let Some(connection) = self.lock.take() {
            connection.execute_batch("ROLLBACK").unwrap();
        }
    }

    /// Stops the process, so that what is seen of it stays true.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        let stopped = within(REACH, || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
            // Stopped, or dead before that.
            state.is_none_or(|state| state.starts_with(['T', 'Z']))
        });
        assert!(stopped, "cofferdam cannot be stopped");
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(pid(self.child.id()), signal).unwrap();
    }

    /// To the process group, as a terminal does.
    pub(crate) fn signal_group(&self, signal: Signal) {
        killpg(pid(self.child.id()), signal).unwrap();
    }

    pub(crate) fn signal_monitors(&self, signal: Signal) {
        for monitor in self.monitors() {
            // It may have ended.
            kill(pid(monitor), signal).ok();
        }
    }

    /// Waits for the end; `None` if it does not end in time, and then ends it.
    pub(crate) fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut ended = None;
        within(limit, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        if ended.is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        ended
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Also if a test fails half-way; otherwise it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// VMs that have said hello.
const LIVE_VMS: &str = "SELECT count(*) FROM vm WHERE instance IS NOT NULL";

/// An open blob.
struct Blob {
    writes: bool,
    at: u64,
    size: u64,
}

fn database(bench: &Bench) -> Connection {
    let connection = Connection::open(bench.store().join("store.db")).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection
}

/// The exit status, unless a signal ended it.
pub(crate) fn code(status: ExitStatus) -> Option<i32> {
    status.signal().is_none().then(|| status.code()).flatten()
}
