//! Puts a confinement into force in the trampoline, which then becomes the monitor.
//!
//! The order matters. Files are opened while the owner's rights are there, the bounding set is lowered
//! before the capability for it goes, and the parent-death signal is set last: a change of user
//! clears it (prctl(2), `PR_SET_PDEATHSIG`).

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{self, Gid, Pid, Uid, getpid, getppid};
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::detect::FIRST_ID;
use super::handover::Handover;
use super::{Confinement, Inherited, Source, Wall, landlock};

/// The last standard descriptor. Input is the VM's lock, output the console, errors the messages.
const STANDARD: RawFd = 2;

/// Descriptors of a monitor: QEMU needs a few for each processor, of which it has 255 at most.
const MAX_DESCRIPTORS: u64 = 4096;

/// Threads of a user that has one monitor only: one for each processor, and up to 64 for the disk.
const MAX_THREADS: u64 = 1024;

/// Confines this process and becomes the monitor. Returns only if that fails.
pub(crate) fn become_confined(handover: Handover) -> io::Result<Infallible> {
    let confinement = &handover.confinement;
    let has = |wall| confinement.walls.have(wall);
    if has(Wall::Descriptors) {
        close_all_others().map_err(|err| because("close descriptors", &err))?;
    }
    let kept = open_all(confinement)?;
    let rules = has(Wall::Landlock).then(|| {
        let rules = landlock::rules(confinement, &handover.program)?;
        kept.iter()
            .filter(|kept| kept.read_again)
            .try_fold(rules, |rules, kept| {
                landlock::allow_reading(rules, &kept.descriptor)
            })
    });
    let rules = rules
        .transpose()
        .map_err(|err| because("prepare Landlock", &err))?;
    if has(Wall::Limits) {
        limit(confinement).map_err(|err| because("set limits", &err))?;
    }
    if has(Wall::Capabilities) {
        lower_bounding_set().map_err(|err| because("drop capabilities", &err))?;
    }
    if has(Wall::User) {
        change_user(&confinement.walls.groups).map_err(|err| because("change the user", &err))?;
    }
    if has(Wall::Capabilities) {
        drop_capabilities().map_err(|err| because("drop capabilities", &err))?;
    }
    die_with(handover.owner)?;
    if has(Wall::NoNewPrivileges) {
        set_no_new_privs(true).map_err(|err| because("refuse privileges", &err.into()))?;
    }
    if let Some(rules) = rules {
        landlock::enforce(rules).map_err(|err| because("enforce Landlock", &err))?;
    }
    let mut monitor = Command::new(&handover.program);
    monitor.args(&handover.args);
    if has(Wall::Environment) {
        monitor.env_clear();
    }
    let failed = monitor.exec();
    drop(kept);
    let program = handover.program.display().to_string();
    Err(because(&format!("execute `{program}`"), &failed))
}

fn because(what: &str, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("cannot {what}: {err}"))
}

/// Fails if the owner is not this process's parent.
pub(crate) fn check_owner(owner: u32) -> io::Result<()> {
    let owner = i32::try_from(owner).map(Pid::from_raw);
    if owner.is_ok_and(|owner| owner == getppid()) {
        return Ok(());
    }
    Err(io::Error::other("the owner of this monitor has ended"))
}

fn die_with(owner: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // An owner that ended before the line above sends no signal any more; then somebody else is the
    // parent by now.
    check_owner(owner)
}

/// Closes every descriptor but the standard ones, whether the owner's owner meant to hand it down or
/// not. Works where `close_range` does not exist.
fn close_all_others() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name();
        open.extend(
            number
                .to_str()
                .and_then(|number| number.parse::<RawFd>().ok()),
        );
    }
    for number in open.into_iter().filter(|number| *number > STANDARD) {
        match unistd::close(number) {
            // The one through which they were listed is closed already.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// A descriptor under its number.
struct Kept {
    descriptor: OwnedFd,
    /// The monitor opens its file again.
    read_again: bool,
}

fn open_all(confinement: &Confinement) -> io::Result<Vec<Kept>> {
    let another_user = confinement.walls.have(Wall::User);
    let open = |inherited: &Inherited| -> io::Result<Kept> {
        let (opened, read_again) = open(&inherited.source, another_user)?;
        let descriptor = fcntl_dupfd_cloexec(opened, inherited.number)?;
        if descriptor.as_raw_fd() != inherited.number {
            let number = inherited.number;
            return Err(io::Error::other(format!("descriptor {number} is in use")));
        }
        fcntl_setfd(&descriptor, FdFlags::empty())?;
        Ok(Kept {
            descriptor,
            read_again,
        })
    };
    confinement.inherited.iter().map(open).collect()
}

/// Opens a source. The flag says whether the monitor needs a right to open its file again.
fn open(source: &Source, another_user: bool) -> io::Result<(OwnedFd, bool)> {
    let named = |what: &str, path: &Path, err: io::Error| {
        because(&format!("{what} `{}`", path.display()), &err)
    };
    match source {
        Source::Read(path) => {
            let file = File::open(path).map_err(|err| named("open", path, err))?;
            if another_user && file.metadata()?.mode() & 0o004 == 0 {
                return Ok((copy(file).map_err(|err| named("copy", path, err))?, false));
            }
            Ok((file.into(), true))
        }
        Source::ReadWrite(path) => {
            let file = File::options().read(true).write(true).open(path);
            Ok((file.map_err(|err| named("open", path, err))?.into(), false))
        }
        Source::Connect(path) => {
            let socket = UnixStream::connect(path);
            let socket = socket.map_err(|err| named("connect to", path, err))?;
            Ok((socket.into(), false))
        }
        Source::Output => Ok((io::stdout().as_fd().try_clone_to_owned()?, false)),
    }
}

/// A copy in memory, of a file that another user could not open again. Landlock knows no such files,
/// so they need no rule.
fn copy(mut file: File) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("copy", MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    io::copy(&mut file, &mut memory)?;
    Ok(memory.into())
}

fn limit(confinement: &Confinement) -> io::Result<()> {
    lower(Resource::Core, 0)?;
    // Where the kernel pipes core dumps to a program it ignores the limit. Then none of the memory is
    // in them. A container may forbid this; the guest's memory is left out by QEMU all the same.
    fs::write("/proc/self/coredump_filter", "0").ok();
    lower(Resource::Fsize, confinement.file_size)?;
    lower(Resource::Nofile, MAX_DESCRIPTORS)?;
    if confinement.walls.have(Wall::User) {
        // The limit counts all processes of a user. Only here the user has no others.
        lower(Resource::Nproc, MAX_THREADS)?;
    }
    Ok(())
}

/// Lowers both values of a limit to `most`, unless they are lower.
fn lower(resource: Resource, most: u64) -> io::Result<()> {
    let now = getrlimit(resource)
        .maximum
        .map_or(most, |now| now.min(most));
    let limit = Rlimit {
        current: Some(now),
        maximum: Some(now),
    };
    Ok(setrlimit(resource, limit)?)
}

/// Takes all capabilities out of the bounding set, if this process may. A process that may not has
/// none, and `no_new_privs` sees to it that it gets none.
fn lower_bounding_set() -> io::Result<()> {
    if !capabilities(None)?
        .effective
        .contains(CapabilitySet::SETPCAP)
    {
        return Ok(());
    }
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            done => done?,
        }
    }
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    // Kernels before 4.3 have no ambient set.
    match clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(err) => return Err(err.into()),
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, none)?)
}

fn change_user(groups: &[u32]) -> io::Result<()> {
    let id = FIRST_ID + getpid().as_raw().unsigned_abs();
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    unistd::setgroups(&groups)?;
    unistd::setresgid(group, group, group)?;
    Ok(unistd::setresuid(user, user, user)?)
}
