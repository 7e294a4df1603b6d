//! Running one process tree in a sandbox.
//!
//! The agent has threads, so it does not set up the sandbox itself. It starts its own program again,
//! in new namespaces and already inside the step's cgroup ([`init`]), and waits until the pipe for
//! failures closes.
//!
//! | module | content |
//! |---|---|
//! | [`init`] | the first program of a step, which sets up the sandbox from inside |
//! | [`rootfs`] | the root file system: a plan, and the system calls that carry it out |
//! | [`implicit`] | attributes that directories inherit from lower layers |
//! | [`cgroup`] | what holds the processes of a step together |
//! | [`privileges`], [`seccomp`] | capabilities, limits and allowed system calls |
//! | [`exec`] | looking up and starting the program of the step |

mod cgroup;
mod exec;
mod implicit;
pub(crate) mod init;
mod privileges;
mod rootfs;
mod seccomp;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use wire::{Kind, Request, RunStep, frame, message};

use crate::fault;
use crate::network::{Net, StepNetwork};
use crate::reap::{Child, Reaper};
use crate::sys;

pub(crate) use cgroup::{
    Cgroup, MOUNT as CGROUP_MOUNT, network as network_cgroup, set_up as set_up_cgroups,
};
pub(crate) use privileges::drop_bounding;
pub(crate) use rootfs::make_skeleton;
pub(crate) use seccomp::bpf;

/// New namespaces of a step, and of the process `net`. A step enters its cgroup namespace later, from
/// inside the cgroup.
pub(crate) const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET;

/// The agent's own program, with which it starts others.
#[derive(Debug)]
pub(crate) struct Program {
    file: OwnedFd,
    null: OwnedFd,
}

impl Program {
    /// Opens both, once `/proc` and `/dev` are mounted.
    pub(crate) fn find() -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let file = open("/proc/self/exe", flags, Mode::empty())?;
        // At boot the numbers that a child's files get are still free, and must not be its program's.
        let file = sys::duplicate_above(file.as_fd())?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        let null = sys::duplicate_above(null.as_fd())?;
        Ok(Self { file, null })
    }

    /// The program.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A file that is empty and takes everything, for the standard descriptors of a program.
    pub(crate) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }
}

/// Starts sandboxes.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    program: Arc<Program>,
    network: Net,
    reaper: Reaper,
}

/// A step whose program runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Reports how the setup of the sandbox goes, and ends when the program starts.
    pub(crate) report: File,
}

impl Sandboxes {
    /// Starts sandboxes, whose packets this process takes.
    pub(crate) const fn new(program: Arc<Program>, network: Net, reaper: Reaper) -> Self {
        Self {
            program,
            network,
            reaper,
        }
    }

    /// The process that takes the packets of steps.
    pub(crate) const fn network(&self) -> &Net {
        &self.network
    }

    /// Starts a step in its cgroup. Its directories on the guest disk must exist.
    pub(crate) fn start(
        &self,
        step: &RunStep,
        network: Option<StepNetwork>,
        cgroup: &Cgroup,
    ) -> Result<Running> {
        let spec = sys::duplicate_above(spec(step)?.as_fd())?;
        let (stdout, to_stdout) = pipe()?;
        let (stderr, to_stderr) = pipe()?;
        let (report, to_report) = pipe()?;
        // A mount of its own, so that the step's first process can lock itself out of it.
        let program = sys::duplicate_above(sys::copy_mount(self.program.file())?.as_fd())?;
        let ours = [&to_stdout, &to_stderr, &spec, &to_report, &program];
        let theirs = network.iter().flat_map(|net| [&net.control, &net.theirs]);
        let files: Vec<BorrowedFd<'_>> = std::iter::once(self.program.null())
            .chain(ours.into_iter().chain(theirs).map(AsFd::as_fd))
            .collect();
        let name = CString::new(init::NAME)?;
        let network = if network.is_some() {
            init::NETWORK
        } else {
            c"-"
        };
        let args: [&CStr; 2] = [&name, network];
        let spawn = sys::Spawn {
            program: program.as_fd(),
            args: &args,
            files: &files,
            cgroup: cgroup.as_fd(),
            namespaces: NAMESPACES,
        };
        let started = self.reaper.spawn(|| sys::spawn(&spawn));
        let (child, _pidfd) = started.context("cannot start the first process of the step")?;
        Ok(Running {
            child,
            stdout,
            stderr,
            report: File::from(report),
        })
    }
}

/// Waits until the step's program starts, or fails with the reason why it does not.
pub(crate) fn wait_for_start(mut report: File) -> Result<()> {
    let mut buf = Vec::new();
    let mut ready = false;
    loop {
        let frame = frame::read(&mut buf, |buf| report.read(buf));
        match frame.context("cannot read the report of the sandbox")? {
            None if ready => return Ok(()),
            None => bail!("the sandbox ended before it was set up"),
            Some(frame) if frame.kind == Kind::Reply => ready = true,
            Some(frame) => return Err(fault::reported(message::decode(&frame)?)),
        }
    }
}

/// The specification of the step, as a file that its first program reads.
fn spec(step: &RunStep) -> Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"step", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&message::encode(step.step, &Request::Run(step.clone()))?)?;
    file.rewind()?;
    Ok(file.into())
}

/// A pipe whose writing end can be passed to a child.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((reader, sys::duplicate_above(writer.as_fd())?))
}
