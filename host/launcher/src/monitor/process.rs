//! A running monitor: its start, its end and its output.
//!
//! The kernel sends the parent-death signal when the *thread* that started a process ends, not
//! when its process does. So one thread starts all monitors and lives as long as this process.
//!
//! A monitor is killed through a pidfd, and it has ended when the kernel reports that, not when the
//! signal was sent.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::confine::Confinement;
use super::confine::handover::Handover;
use super::tail::{Drained, Tail};
use super::trampoline::Trampoline;

/// How long to wait for the rest of a dead monitor's output.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// How many lines of a console help to understand an end.
const LAST_LINES: usize = 12;

/// What to start.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The monitor's program: a path.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Its working directory.
    pub(crate) dir: PathBuf,
    /// The VM's lock file, locked. The monitor holds the lock as long as it lives.
    pub(crate) lock: File,
    /// What it is confined to.
    pub(crate) confinement: Confinement,
}

/// A monitor that was started. It may have ended since.
#[derive(Debug)]
pub(crate) struct Monitor {
    child: Mutex<Child>,
    pidfd: OwnedFd,
    /// What the guest wrote to its console, which is the monitor's standard output.
    pub(crate) console: Tail,
    /// What the monitor itself printed to standard error.
    pub(crate) messages: Tail,
    drains: [Drained; 2],
}

impl Monitor {
    /// Starts a monitor that cannot outlive this process.
    ///
    /// # Errors
    /// If the program cannot be started. A *monitor* that cannot be executed shows later, as its end.
    pub(crate) fn start(spec: Spec, trampoline: &Trampoline) -> io::Result<Self> {
        let handover = Handover {
            owner: std::process::id(),
            confinement: spec.confinement,
            program: spec.program,
            args: spec.args,
        };
        let mut command = Command::new(&trampoline.program);
        command
            .args(&trampoline.args)
            .args(handover.into_args())
            .current_dir(spec.dir)
            .stdin(spec.lock)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C at the terminal is for the owner, which then ends its VM in order.
            .process_group(0);
        let mut child = spawn(command)?;
        match Self::attach(&mut child) {
            Ok((pidfd, console, messages, drains)) => Ok(Self {
                child: Mutex::new(child),
                pidfd,
                console,
                messages,
                drains,
            }),
            Err(err) => {
                child.kill()?;
                child.wait()?;
                Err(err)
            }
        }
    }

    fn attach(child: &mut Child) -> io::Result<(OwnedFd, Tail, Tail, [Drained; 2])> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without an id"))?;
        // The child is not waited for yet, so its id still means this process.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let gone = || io::Error::other("a child without its pipes");
        let (console, one) = Tail::drain("console", child.stdout.take().ok_or_else(gone)?)?;
        let (messages, two) = Tail::drain("monitor", child.stderr.take().ok_or_else(gone)?)?;
        Ok((pidfd, console, messages, [one, two]))
    }

    /// Its process id, for messages.
    pub(crate) fn id(&self) -> u32 {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id()
    }

    /// Waits until it has ended, for at most `timeout`. `None` means that it lives.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
    }

    /// Kills it and waits until it has ended, for at most `timeout`. `None` means that it lives
    /// all the same: it hangs in the kernel.
    pub(crate) fn kill(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(err) => return Err(err.into()),
        }
        let ended = self.wait(timeout)?;
        if ended.is_some() && !self.drains.iter().all(|drain| drain.wait(LAST_OUTPUT)) {
            log::debug!(
                "another process keeps the output of monitor {} open",
                self.id()
            );
        }
        Ok(ended)
    }
}

impl Monitor {
    /// The last lines of its messages and of the console, as an appendix to an error message.
    pub(crate) fn last_words(&self) -> String {
        let mut text = String::new();
        for (source, tail) in [("monitor", &self.messages), ("console", &self.console)] {
            for line in tail.last_lines(LAST_LINES) {
                text.push_str(&format!("\n  {source}: {line}"));
            }
        }
        text
    }
}

impl Drop for Monitor {
    /// The last resort: a monitor without an owner must not stay.
    fn drop(&mut self) {
        match self.wait(Duration::ZERO) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                log::warn!("killing monitor {}, which was not shut down", self.id());
                if let Err(err) = self.kill(Duration::from_secs(1)) {
                    log::warn!("cannot kill monitor {}: {err}", self.id());
                }
            }
        }
    }
}

struct Job {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// Starts a process from the thread that lives as long as this one.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: Mutex<Option<Sender<Job>>> = Mutex::new(None);
    let gone = || io::Error::other("the thread that starts monitors has ended");
    let spawner = {
        let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
        match spawner.as_ref() {
            Some(jobs) => jobs.clone(),
            None => spawner.insert(start_spawner()?).clone(),
        }
    };
    let (answer, answered) = bounded(1);
    spawner.send(Job { command, answer }).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

fn start_spawner() -> io::Result<Sender<Job>> {
    let (jobs, work) = bounded::<Job>(1);
    thread::Builder::new()
        .name("monitors".into())
        .spawn(move || {
            // Never ends: the sender is a static.
            for mut job in work {
                let started = job.command.spawn();
                // The command holds this process's copy of the VM lock.
                drop(job.command);
                if let Err(unheard) = job.answer.send(started)
                    && let Ok(mut child) = unheard.into_inner()
                {
                    log::warn!("killing a monitor whose requester has gone");
                    child.kill().and_then(|()| child.wait()).ok();
                }
            }
        })?;
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use std::fs::TryLockError;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::time::Instant;

    use super::super::confine::tests::walls;
    use super::super::qemu::look_up;
    use super::super::trampoline::become_monitor;
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const OWNER: &str = "COFFERDAM_TEST_OWNER";

    /// Not a test of its own: the program that becomes a monitor in the tests below.
    #[test]
    #[ignore = "a process of other tests"]
    fn helper_trampoline() {
        let args = std::env::args_os().skip_while(|arg| arg != "--").skip(1);
        panic!("{}", become_monitor(args).unwrap_err());
    }

    fn ours() -> Trampoline {
        let args = [
            "--exact",
            "monitor::process::tests::helper_trampoline",
            "--ignored",
            "--nocapture",
            "--",
        ];
        Trampoline {
            program: "/proc/self/exe".into(),
            args: args.map(Into::into).into(),
        }
    }

    fn start(dir: &Path, args: &[&str]) -> Monitor {
        let lock = File::create(dir.join("lock")).unwrap();
        lock.try_lock().unwrap();
        let [program, args @ ..] = args else {
            panic!("no program")
        };
        let args = args.iter().map(Into::into).collect();
        Monitor::start(
            Spec {
                program: look_up(Path::new(program)).unwrap(),
                args,
                dir: dir.into(),
                lock,
                // All guarantees hold for a monitor that is confined.
                confinement: Confinement {
                    walls: walls(),
                    file_size: 1 << 30,
                    ..Confinement::default()
                },
            },
            &ours(),
        )
        .unwrap()
    }

    /// Waits until the lock is free and says how long that took, or `None`.
    fn lock_becomes_free(path: &Path, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < limit {
            match File::open(path).unwrap().try_lock() {
                Ok(()) => return Some(began.elapsed()),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
                Err(TryLockError::Error(err)) => panic!("{err}"),
            }
        }
        None
    }

    #[test]
    fn a_monitor_holds_the_lock_until_it_is_killed_and_then_its_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &["sleep", "600"]);
        assert_eq!(monitor.wait(Duration::from_millis(100)).unwrap(), None);
        let lock = dir.path().join("lock");
        assert_eq!(lock_becomes_free(&lock, Duration::ZERO), None);
        let status = monitor.kill(SOON).unwrap().unwrap();
        assert_eq!(status.signal(), Some(9));
        assert!(lock_becomes_free(&lock, SOON).is_some());
        assert_eq!(
            monitor.kill(SOON).unwrap(),
            Some(status),
            "killing again changes nothing"
        );
    }

    #[test]
    fn the_lock_file_names_the_process_that_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &["sh", "-c", "echo ready; exec sleep 600"]);
        while monitor.console.total() < 6 {
            thread::sleep(Duration::from_millis(5));
        }
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text.trim(), monitor.id().to_string());
        monitor.kill(SOON).unwrap().unwrap();
    }

    #[test]
    fn the_messages_of_a_monitor_are_kept_apart_from_the_console() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(
            dir.path(),
            &["sh", "-c", "echo panic; echo bad option >&2; exit 3"],
        );
        assert_eq!(monitor.wait(SOON).unwrap().unwrap().code(), Some(3));
        monitor.kill(SOON).unwrap().unwrap();
        assert!(monitor.console.last_lines(9).contains(&"panic".to_owned()));
        assert!(
            monitor
                .messages
                .last_lines(9)
                .contains(&"bad option".to_owned())
        );
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_delays_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &["sh", "-c", "sleep 5 & echo ready; wait"]);
        while monitor.console.total() < 6 {
            thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        assert!(monitor.kill(SOON).unwrap().is_some());
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_program_that_does_not_exist_shows_as_the_monitors_end() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &["/nonexistent/qemu"]);
        assert!(!monitor.wait(SOON).unwrap().unwrap().success());
    }

    #[test]
    fn a_stopped_monitor_can_be_killed() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &["sleep", "600"]);
        pidfd_send_signal(&monitor.pidfd, Signal::STOP).unwrap();
        assert!(monitor.kill(SOON).unwrap().is_some());
    }

    #[test]
    fn a_monitor_whose_handle_is_dropped_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        drop(start(dir.path(), &["sleep", "600"]));
        assert!(lock_becomes_free(&dir.path().join("lock"), SOON).is_some());
    }

    #[test]
    fn a_monitor_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let monitor = thread::spawn(move || start(&path, &["sleep", "600"]))
            .join()
            .unwrap();
        assert_eq!(monitor.wait(Duration::from_millis(300)).unwrap(), None);
        monitor.kill(SOON).unwrap().unwrap();
    }

    #[test]
    fn an_owner_that_has_ended_before_the_signal_is_set_is_detected() {
        let not_our_parent = OsString::from(std::process::id().to_string());
        // This process is the parent of nobody here: its own parent is somebody else.
        let refused = thread::spawn(move || {
            become_monitor([not_our_parent, "--".into(), "true".into()])
                .unwrap_err()
                .to_string()
        });
        assert!(refused.join().unwrap().contains("has ended"));
    }

    /// Not a test of its own: an owner with a monitor, to be killed.
    #[test]
    #[ignore = "a process of other tests"]
    #[expect(
        clippy::print_stdout,
        reason = "the other process is talked to through it"
    )]
    fn helper_owner() {
        let dir = std::env::var_os(OWNER).unwrap();
        let monitor = start(Path::new(&dir), &["sleep", "600"]);
        println!("\nmonitor {}", monitor.id());
        thread::sleep(Duration::from_secs(60));
    }

    #[test]
    fn a_monitor_dies_when_its_owner_is_killed() {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let mut owner = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "monitor::process::tests::helper_owner"])
                .args(["--ignored", "--nocapture"])
                .env(OWNER, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
            lines
                .find(|line| line.as_ref().unwrap().starts_with("monitor "))
                .unwrap()
                .unwrap();
            // The owner may die before the monitor could ask for the signal, or after.
            owner.kill().unwrap();
            owner.wait().unwrap();
            let took = lock_becomes_free(&dir.path().join("lock"), SOON);
            assert!(took.is_some(), "the monitor outlives its owner");
        }
    }
}
