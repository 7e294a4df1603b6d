//! The first program of a step: builds the sandbox around itself, then becomes the step's program.
//!
//! It is the agent's own binary, started in new namespaces and in the step's control group. It has
//! one thread, and no descriptor but those it was given, so nothing of the agent can leak into the
//! step. What becomes of it is reported on a pipe: [`wire::Reply::Done`] when the sandbox stands, a
//! [`wire::Failure`] when something goes wrong. The pipe closes when the step's program starts.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{Gid, Uid, fchown, sethostname, setsid};
use wire::{Reply, Request, RunStep, frame, message};

use super::{exec, privileges, rootfs};
use crate::disk;
use crate::fault;
use crate::layers::{self, Attributes, Implicit, View, file_name};
use crate::network;
use crate::{diff, sys, tree};

/// Name under which the agent starts itself for this.
pub(crate) const NAME: &str = "sandbox-init";

/// Descriptors that it is given beyond the standard ones: the step and the pipe for failures, and
/// with a network the namespace of the network card.
const FIRST_FD: i32 = 3;
const UPLINK_FD: i32 = 5;

/// Where, in the mount namespace of the step, its pieces are put together.
const WORKSHOP: &str = "/mnt";

/// Runs. The only argument is the number of the step's network address, or `-` for none.
pub(crate) fn main(network: Option<&OsStr>) -> ! {
    let [spec, errors] = sys::inherited(FIRST_FD);
    let network = network
        .and_then(OsStr::to_str)
        .and_then(|number| number.parse().ok());
    let uplink = network.map(|number| {
        let [uplink] = sys::inherited(UPLINK_FD);
        (uplink, number)
    });
    let mut errors = File::from(errors);
    let err = match run(spec, uplink, &mut errors) {
        Err(err) => err,
        Ok(never) => match never {},
    };
    report(&mut errors, &err);
    std::process::exit(127)
}

/// Tells the agent. If that fails too, the status is all it learns.
fn report(errors: &mut File, err: &anyhow::Error) {
    if let Ok(frame) = message::encode(0, &fault::failure(err)) {
        errors.write_all(&frame).ok();
    }
}

fn run(spec: OwnedFd, uplink: Option<(OwnedFd, u8)>, report: &mut File) -> Result<Infallible> {
    sys::close_on_exec_from(FIRST_FD).context("cannot close descriptors")?;
    let step = read_spec(File::from(spec))?;
    // The agent is the last that the kernel may kill when memory runs out; a step is not.
    fs::write("/proc/self/oom_score_adj", "0")?;
    setsid()?;
    // Only from within does it show this process's own group as the root.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot leave the namespace of groups")?;
    sethostname(&step.hostname).context("cannot set the host name")?;
    network::set_up_step(
        uplink
            .as_ref()
            .map(|(uplink, number)| (uplink.as_fd(), *number)),
    )?;
    drop(uplink);
    make_workshop(&step)?;
    rootfs::apply(&rootfs::plan(&step), |merged| {
        describe_implicit(&step, merged)
    })?;
    rootfs::enter_cwd(Path::new(OsStr::from_bytes(&step.cwd)))?;
    for standard in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        // So that /dev/stdout can be opened again by another user than root.
        fchown(
            standard,
            Some(Uid::from_raw(step.uid)),
            Some(Gid::from_raw(step.gid)),
        )?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // A Rust program ignores this one; other programs expect to be ended by it.
    sys::default_signal(libc::SIGPIPE)?;
    privileges::give_up(&step)?;
    report.write_all(&message::encode(0, &Reply::Done)?)?;
    exec::exec(&step.args, &step.env)
}

fn read_spec(mut spec: File) -> Result<RunStep> {
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |room| spec.read(room)).context("cannot read the step")?;
    let request = message::decode(&frame.context("there is no step")?)?;
    let Request::Run(step) = request else {
        return Err(fault::violation("this is no step"));
    };
    Ok(step)
}

/// Collects the pieces of the root file system under short names, out of sight of all others.
fn make_workshop(step: &RunStep) -> Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("tmpfs"),
        WORKSHOP,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    std::env::set_current_dir(WORKSHOP)?;
    for (number, layer) in step.layers.iter().enumerate() {
        symlink(layer_path(layer)?, number.to_string())?;
    }
    symlink(disk::SKELETON, "skeleton")?;
    let dir = disk::step_dir(step.step);
    for name in ["upper", "work"] {
        symlink(dir.join(name), name)?;
    }
    fs::create_dir("merged")?;
    Ok(())
}

fn layer_path(layer: &wire::LayerName) -> Result<PathBuf> {
    Ok(Path::new(disk::LAYERS).join(OsStr::from_bytes(file_name(layer)?.to_bytes())))
}

/// Gives directories that the topmost layers left undescribed what a lower layer says.
fn describe_implicit(step: &RunStep, merged: &Path) -> Result<()> {
    let sealed = File::open(disk::LAYERS)?;
    let implicit = step
        .layers
        .iter()
        .map(|layer| Implicit::read(sealed.as_fd(), &file_name(layer)?))
        .collect::<Result<Vec<_>>>()?;
    // The agent has described the root directory itself.
    let fixes = layers::plan(&implicit, |at, path| look(step, at, path))?;
    for (path, at) in fixes {
        let Some(from) = lower(step, at, &path)? else {
            continue;
        };
        let attributes = diff::describe(from.as_fd())?;
        let merged = File::open(merged)?;
        if let Some(to) = below(merged.as_fd(), &path)? {
            copy_up(to, &attributes)?;
        }
    }
    Ok(())
}

fn copy_up(dir: OwnedFd, attributes: &Attributes) -> Result<()> {
    layers::describe(dir.as_fd(), attributes)?;
    layers::set_time(dir.as_fd(), attributes.mtime)
}

/// What a layer has at a path, apart from the root directory.
fn look(step: &RunStep, at: usize, path: &[u8]) -> Result<View> {
    let Some(layer) = step.layers.get(at).filter(|_| !path.is_empty()) else {
        return Ok(View::default());
    };
    let says = diff::look(File::open(layer_path(layer)?)?.as_fd(), path)?;
    Ok(View {
        directory: says
            .has
            .is_some_and(|stat| layers::is_type(&stat, SFlag::S_IFDIR)),
        hides: says.hides,
    })
}

/// The directory that a layer has at a path.
fn lower(step: &RunStep, at: usize, path: &[u8]) -> Result<Option<OwnedFd>> {
    let Some(layer) = step.layers.get(at) else {
        return Ok(None);
    };
    below(File::open(layer_path(layer)?)?.as_fd(), path)
}

fn below(root: std::os::fd::BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new()
        .flags(tree::LIST | OFlag::O_CLOEXEC)
        .resolve(resolve);
    match openat2(root, path, how) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno).context("cannot look into a layer"),
    }
}
