//! The first program of a step: it sets up the sandbox around itself, then executes the step's
//! program.
//!
//! It is the agent's own binary, started in new namespaces and in the step's cgroup. It has one
//! thread, and no descriptors but those it was given, so nothing of the agent can leak into the step.
//! It reports on a pipe: [`wire::Reply::Done`] when the sandbox is ready, a [`wire::Failure`] if
//! something fails. The pipe closes when the step's program starts.

use std::convert::Infallible;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, sethostname, setsid};
use wire::{Reply, Request, RunStep, frame, message};

use super::{exec, implicit, privileges, rootfs};
use crate::disk;
use crate::fault;
use crate::network::{self, StepNetwork};
use crate::sys;

/// The name under which the agent starts itself as this program.
pub(crate) const NAME: &str = "sandbox-init";

/// The argument with which it sets up a network.
pub(super) const NETWORK: &CStr = c"network";

/// Descriptors that it is given besides the standard ones: the step and the pipe for reports, and for
/// a network the socket of the process that serves it and the step's stream.
const FIRST_FD: i32 = 3;
const NETWORK_FD: i32 = 5;

/// Where the root file system is assembled, in the mount namespace of the step.
const STAGING: &str = "/mnt";

/// The main function. Its only argument says whether the step has a network.
pub(crate) fn main(network: Option<&OsStr>) -> ! {
    let [spec, errors] = sys::inherited(FIRST_FD);
    let network = network.filter(|word| word.as_bytes() == NETWORK.to_bytes());
    let network = network.map(|_| {
        let [control, theirs] = sys::inherited(NETWORK_FD);
        StepNetwork { control, theirs }
    });
    let mut errors = File::from(errors);
    let err = match run(spec, network, &mut errors) {
        Err(err) => err,
        Ok(never) => match never {},
    };
    report(&mut errors, &err);
    std::process::exit(127)
}

/// Reports an error to the agent. If that fails too, the agent only learns the exit status.
fn report(errors: &mut File, err: &anyhow::Error) {
    if let Ok(frame) = message::encode(0, &fault::failure(err)) {
        errors.write_all(&frame).ok();
    }
}

fn run(spec: OwnedFd, network: Option<StepNetwork>, report: &mut File) -> Result<Infallible> {
    sys::close_on_exec_from(FIRST_FD).context("cannot close descriptors")?;
    let step = read_spec(File::from(spec))?;
    // When memory runs out, the kernel may kill a step, but not the agent.
    fs::write("/proc/self/oom_score_adj", "0")?;
    setsid()?;
    // Entered from inside the cgroup, so that it shows this cgroup as the root.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot enter a new cgroup namespace")?;
    sethostname(&step.hostname).context("cannot set the host name")?;
    network::set_up_step(network)?;
    make_staging(&step)?;
    rootfs::apply(&rootfs::plan(&step), |merged| {
        implicit::apply(&step, merged)
    })?;
    rootfs::enter_cwd(Path::new(OsStr::from_bytes(&step.cwd)))?;
    for standard in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        // So that other users than root can open /dev/stdout.
        fchown(
            standard,
            Some(Uid::from_raw(step.uid)),
            Some(Gid::from_raw(step.gid)),
        )?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // A Rust program ignores SIGPIPE; other programs expect it to end them.
    sys::default_signal(libc::SIGPIPE)?;
    privileges::give_up(&step)?;
    report.write_all(&message::encode(0, &Reply::Done)?)?;
    exec::exec(&step.args, &step.env)
}

fn read_spec(mut spec: File) -> Result<RunStep> {
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |buf| spec.read(buf)).context("cannot read the step")?;
    let request = message::decode(&frame.context("the step is missing")?)?;
    let Request::Run(step) = request else {
        return Err(fault::violation("this is not a step"));
    };
    Ok(step)
}

/// Collects the parts of the root file system under short names, in a private mount.
fn make_staging(step: &RunStep) -> Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("tmpfs"),
        STAGING,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    std::env::set_current_dir(STAGING)?;
    for (number, layer) in step.layers.iter().enumerate() {
        symlink(disk::layer_dir(layer)?, number.to_string())?;
    }
    symlink(disk::SKELETON, "skeleton")?;
    let dir = disk::step_dir(step.step);
    for name in ["upper", "work"] {
        symlink(dir.join(name), name)?;
    }
    fs::create_dir("merged")?;
    Ok(())
}
