//! Boot: from the kernel's hand-over to a machine in which steps can run.
//!
//! The initramfs is a file system that `pivot_root` cannot leave and nobody can unmount, so the agent
//! first moves a tmpfs over it. [`MOUNTS`] lists what is mounted then. A failure ends the VM with a
//! message on the console.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot};

use crate::modules::Modules;
use crate::sandbox::{CGROUP_MOUNT, set_up_cgroups};
use crate::stat;

/// Where the new root directory is made.
const SYSROOT: &str = "/sysroot";

/// A file system of the agent.
struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// The file systems of the agent, in the order in which they are mounted.
const MOUNTS: &[Mount] = &[
    Mount {
        kind: "devtmpfs",
        at: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: "mode=755",
    },
    Mount {
        kind: "proc",
        at: "/proc",
        flags: SAFE,
        options: "",
    },
    Mount {
        kind: "sysfs",
        at: "/sys",
        flags: SAFE,
        options: "",
    },
    Mount {
        kind: "cgroup2",
        at: CGROUP_MOUNT,
        flags: SAFE,
        options: "",
    },
];

/// Further directories in the agent's root: where sandboxes are assembled, and where the guest disk
/// is mounted.
const DIRECTORIES: &[&str] = &["/mnt", "/disk"];

/// Settings of the kernel.
const SETTINGS: &[(&str, &str)] = &[
    // The agent loads all modules. A socket of an unknown family must not make the kernel start a
    // program that is not there.
    ("kernel/modprobe", "\n"),
    // As on other hosts of containers: the users of a step cannot lead each other astray in
    // directories such as `/tmp`.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "1"),
];

/// Loads these modules and sets up the machine as far as the agent needs it to greet the host.
pub(crate) fn boot(first: Modules) -> Result<()> {
    // Files get exactly the modes that they are created with, in layers as elsewhere.
    umask(Mode::empty());
    first.load()?;
    leave_initramfs()?;
    for dir in DIRECTORIES {
        fs::create_dir(dir)?;
    }
    for mount in MOUNTS {
        apply(mount)?;
    }
    for (setting, value) in SETTINGS {
        fs::write(format!("/proc/sys/{setting}"), value)
            .with_context(|| format!("cannot set {setting}"))?;
    }
    // When memory runs out, the kernel kills anything else before the agent.
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    // One descriptor for each level of a tree, and a step may nest directories as deep as it likes.
    let most = 1 << 20;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .context("cannot raise the limit of open files")?;
    set_up_cgroups(stat::memory()?)
}

fn apply(
    Mount {
        kind,
        at,
        flags,
        options,
    }: &Mount,
) -> Result<()> {
    match fs::create_dir(at) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        done => done.with_context(|| format!("cannot create {at}"))?,
    }
    mount(Some(*kind), *at, Some(*kind), *flags, Some(*options))
        .with_context(|| format!("cannot mount {at}"))
}

/// Moves an empty tmpfs over the root directory and makes it the root of this process.
fn leave_initramfs() -> Result<()> {
    fs::DirBuilder::new().mode(0o755).create(SYSROOT)?;
    mount(
        Some("tmpfs"),
        SYSROOT,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("cannot mount a new root directory")?;
    chdir(SYSROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the new root directory")?;
    chroot(".")?;
    chdir("/").context("cannot enter the new root directory")
}
