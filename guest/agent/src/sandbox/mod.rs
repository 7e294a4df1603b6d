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
//! | [`privileges`], [`filter`] | capabilities, limits and forbidden system calls |
//! | [`exec`] | looking up and starting the program of the step |

mod cgroup;
mod exec;
mod filter;
mod implicit;
pub(crate) mod init;
mod privileges;
mod rootfs;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use wire::limits::MAX_STEPS;
use wire::{Kind, Network, Request, RunStep, frame, message};

use crate::fault;
use crate::network::Uplink;
use crate::reap::{Child, Reaper};
use crate::sys;

pub(crate) use cgroup::{Cgroup, MOUNT as CGROUP_MOUNT, set_up as set_up_cgroups};
pub(crate) use rootfs::make_skeleton;

/// New namespaces of a step. The cgroup namespace is entered later, from inside the cgroup.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET;

/// Starts sandboxes.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    program: OwnedFd,
    null: OwnedFd,
    uplink: Option<Uplink>,
    /// Which network addresses are in use.
    addresses: Mutex<[bool; MAX_STEPS]>,
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

/// A network address that is reserved as long as the step runs.
#[derive(Debug)]
pub(crate) struct Address<'a> {
    all: &'a Mutex<[bool; MAX_STEPS]>,
    number: u8,
}

impl Drop for Address<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = all.get_mut(usize::from(self.number)) {
            *used = false;
        }
    }
}

impl Sandboxes {
    /// Starts sandboxes with this network device, if the VM has one.
    pub(crate) fn new(uplink: Option<Uplink>, reaper: Reaper) -> Result<Self> {
        let program = open(
            "/proc/self/exe",
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self {
            program,
            null: sys::duplicate_above(null.as_fd())?,
            uplink,
            addresses: Mutex::new([false; MAX_STEPS]),
            reaper,
        })
    }

    /// Reserves a network address for a step that needs one.
    pub(crate) fn address(&self, network: Network) -> Result<Option<Address<'_>>> {
        match network {
            Network::None => return Ok(None),
            Network::Default { .. } if self.uplink.is_none() => {
                return Err(fault::setup(
                    "the step needs network access, but this VM has no network device",
                ));
            }
            Network::Default { .. } => {}
        }
        let mut all = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let free = all.iter_mut().zip(0..).find(|(used, _)| !**used);
        let (used, number) = free.context("all network addresses are in use")?;
        *used = true;
        Ok(Some(Address {
            all: &self.addresses,
            number,
        }))
    }

    /// Starts a step in its cgroup. Its directories on the guest disk must exist.
    pub(crate) fn start(
        &self,
        step: &RunStep,
        address: Option<&Address<'_>>,
        cgroup: &Cgroup,
    ) -> Result<Running> {
        let spec = sys::duplicate_above(spec(step)?.as_fd())?;
        let (stdout, to_stdout) = pipe()?;
        let (stderr, to_stderr) = pipe()?;
        let (report, to_report) = pipe()?;
        let mut files = vec![&self.null, &to_stdout, &to_stderr, &spec, &to_report];
        let number = CString::new(address.map_or_else(|| "-".into(), |a| a.number.to_string()))?;
        let uplink = match (&self.uplink, address) {
            (Some(uplink), Some(_)) => Some(sys::duplicate_above(uplink.namespace())?),
            _ => None,
        };
        files.extend(&uplink);
        let name = CString::new(init::NAME)?;
        let args: [&CStr; 2] = [&name, &number];
        let files: Vec<BorrowedFd<'_>> = files.into_iter().map(AsFd::as_fd).collect();
        let spawn = sys::Spawn {
            program: self.program.as_fd(),
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
