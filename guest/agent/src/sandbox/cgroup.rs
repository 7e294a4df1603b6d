//! Cgroups: what holds the processes of a step together.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::StepLimits;
use wire::limits::MAX_STEPS;

/// Where the cgroup file system is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// The parent of all cgroups of steps. The agent itself is outside of it.
const STEPS: &str = "/sys/fs/cgroup/steps";

/// Memory that steps cannot use, in bytes, so that the agent answers whatever they do: a 32nd of all
/// memory, but at least this much.
const RESERVE: u64 = 96 << 20;

/// Most processes of a step if the host sets no limit.
const DEFAULT_PIDS: u64 = 32_768;

/// The kernel's own maximum for process ids.
const MAX_PID: &str = "4194304";

/// How long killed processes may take to die. Only the kernel can delay that, when a disk does not
/// answer.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates the parent of all cgroups of steps. Together they may use all but the agent's share of
/// `memory`, in bytes.
pub(crate) fn set_up(memory: u64) -> Result<()> {
    let wanted = ["memory", "pids", "cpu", "io"];
    for dir in [MOUNT, STEPS] {
        make(Path::new(dir))?;
        let available = fs::read_to_string(format!("{dir}/cgroup.controllers"))?;
        let enable: Vec<String> = available
            .split_whitespace()
            .filter(|name| wanted.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        write(Path::new(dir), "cgroup.subtree_control", &enable.join(" "))?;
    }
    let share = memory.saturating_sub(RESERVE.max(memory / 32));
    write(Path::new(STEPS), "memory.max", &share.to_string())?;
    // Process ids must not run out before the limit on processes, and steps must leave some of them
    // to the agent.
    fs::write("/proc/sys/kernel/pid_max", MAX_PID).context("cannot raise pid_max")?;
    let threads =
        fs::read_to_string("/proc/sys/kernel/threads-max").context("cannot read threads-max")?;
    let threads: u64 = threads.trim().parse().context("cannot read threads-max")?;
    write(Path::new(STEPS), "pids.max", &(threads / 4 * 3).to_string())
}

/// Creates the cgroup of the process that takes the packets of steps. Its memory is theirs, and it has
/// a thread for each.
pub(crate) fn network() -> Result<File> {
    let path = Path::new(STEPS).join("net");
    make(&path)?;
    write(&path, "pids.max", &(MAX_STEPS + 1).to_string())?;
    Ok(File::open(path)?)
}

fn make(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.with_context(|| format!("cannot create {}", dir.display())),
    }
}

fn write(dir: &Path, name: &str, value: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {}", path.display()))
}

/// The cgroup of one step.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    dir: File,
}

/// The resources that a step has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// The kernel killed a process because memory ran out.
    pub(crate) out_of_memory: bool,
    /// Peak memory in bytes; zero if the kernel does not report it.
    pub(crate) peak_memory: u64,
}

impl Cgroup {
    /// Creates the cgroup of a step.
    pub(crate) fn create(step: u64, limits: StepLimits) -> Result<Self> {
        let path = Path::new(STEPS).join(step.to_string());
        fs::create_dir(&path).context("cannot create the cgroup of a step")?;
        let cgroup = Self {
            dir: File::open(&path)?,
            path,
        };
        let pids = if limits.pids == 0 {
            DEFAULT_PIDS
        } else {
            limits.pids
        };
        write(&cgroup.path, "pids.max", &pids.to_string())?;
        if limits.memory != 0 {
            write(&cgroup.path, "memory.max", &limits.memory.to_string())?;
        }
        Ok(cgroup)
    }

    /// The directory of the cgroup, to start a process in it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Kills all processes in the cgroup, including those that are just being forked.
    pub(crate) fn kill(&self) -> Result<()> {
        write(&self.path, "cgroup.kill", "1")
    }

    /// Kills all processes and waits until the cgroup is empty.
    pub(crate) fn kill_and_wait(&self) -> Result<()> {
        self.kill()?;
        let deadline = Instant::now() + KILL_TIMEOUT;
        let events = File::open(self.path.join("cgroup.events"))?;
        loop {
            // Read before each wait, since the change may come between two waits.
            let text = fs::read_to_string(self.path.join("cgroup.events"))?;
            if value(&text, "populated") == Some(0) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("a process of the step cannot be killed");
            }
            // Short, in case a notification is lost.
            let left = PollTimeout::try_from(left.min(Duration::from_millis(200)))?;
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], left)?;
        }
    }

    /// The resources that the step has used so far.
    pub(crate) fn usage(&self) -> Usage {
        let read = |name| fs::read_to_string(self.path.join(name)).unwrap_or_default();
        Usage {
            out_of_memory: value(&read("memory.events"), "oom_kill").is_some_and(|count| count > 0),
            // Kernels before 5.19 do not have this file.
            peak_memory: read("memory.peak").trim().parse().unwrap_or(0),
        }
    }

    /// Removes the cgroup, which must be empty.
    pub(crate) fn remove(&self) -> Result<()> {
        fs::remove_dir(&self.path).context("cannot remove the cgroup of a step")
    }
}

/// A value in a file of lines `name value`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "oom 3\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(value(text, "oom_kill"), Some(1));
        assert_eq!(value(text, "oom"), Some(3));
        assert_eq!(value(text, "kill"), None);
    }
}
