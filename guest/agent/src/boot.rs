//! From the kernel's hand-over to a machine in which steps can run.
//!
//! The initramfs is a file system that can neither be left by `pivot_root` nor unmounted, so the
//! agent first moves a tmpfs over it. What is to be mounted is a list ([`MOUNTS`]); a failure there
//! ends the VM with a word on the console.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{UnlinkatFlags, chdir, chroot, unlinkat};

use crate::sandbox::{CGROUP_MOUNT, set_up_cgroups};
use crate::stat;

/// Where the initramfs has kernel modules and the file that lists them in load order.
const MODULES: &str = "/modules";

/// The new root directory before it is one.
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

/// In the order in which they must be made.
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

/// Directories of the agent's root that nothing of [`MOUNTS`] makes. The workshop of the sandboxes
/// is one of them.
const DIRECTORIES: &[&str] = &["/mnt", "/disk"];

/// Modules that are not loaded yet.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What our own vsock driver needs.
    pub(crate) ring: Modules,
    /// The kernel's vsock driver.
    pub(crate) fallback: Modules,
    /// All others.
    pub(crate) later: Modules,
}

/// Makes this process's surroundings, as far as greeting the host needs them.
pub(crate) fn boot() -> Result<Pending> {
    // Modes are what they are said to be, in layers as elsewhere.
    umask(Mode::empty());
    let [first, ring, fallback, later] = Modules::find()?;
    first.load()?;
    leave_initramfs()?;
    for dir in DIRECTORIES {
        fs::create_dir(dir)?;
    }
    for mount in MOUNTS {
        apply(mount)?;
    }
    // When memory runs out, the kernel kills anything before it kills the agent.
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    // One descriptor for each level of a tree that a step may nest as deep as it likes.
    let most = 1 << 20;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .context("cannot raise the limit of descriptors")?;
    set_up_cgroups(stat::memory()?)?;
    Ok(Pending {
        ring,
        fallback,
        later,
    })
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
        done => done.with_context(|| format!("cannot make {at}"))?,
    }
    mount(Some(*kind), *at, Some(*kind), *flags, Some(*options))
        .with_context(|| format!("cannot mount {at}"))
}

/// Kernel modules to be loaded.
#[derive(Debug)]
pub(crate) struct Modules {
    /// Their directory, which has no path once the initramfs is left.
    dir: OwnedFd,
    /// Their files, in load order.
    names: Vec<String>,
}

impl Modules {
    /// Those without which nothing works, and those of [`Pending`]. The word before each name tells.
    fn find() -> Result<[Self; 4]> {
        let dir = open(
            MODULES,
            OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("no modules")?;
        let order = Path::new(MODULES).join("order");
        let order = fs::read_to_string(order).context("cannot read the list of modules")?;
        let group = |word: &str| -> Result<Self> {
            let lines = order.lines().filter_map(|line| line.split_once(' '));
            let names = lines.filter(|(found, _)| *found == word);
            Ok(Self {
                dir: dir.try_clone()?,
                names: names.map(|(_, name)| name.to_owned()).collect(),
            })
        };
        Ok([
            group("first")?,
            group("ring")?,
            group("fallback")?,
            group("later")?,
        ])
    }

    /// Loads them, and frees the memory that their files take.
    pub(crate) fn load(self) -> Result<()> {
        for name in &self.names {
            let name = name.as_str();
            let file = openat(&self.dir, name, OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| format!("no module {name}"))?;
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("cannot load module {name}"));
                }
            }
            unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }
}

/// Moves an empty tmpfs over the root directory and makes it that of this process.
fn leave_initramfs() -> Result<()> {
    fs::DirBuilder::new().mode(0o755).create(SYSROOT)?;
    mount(
        Some("tmpfs"),
        SYSROOT,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("cannot make a new root directory")?;
    chdir(SYSROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the new root directory")?;
    chroot(".")?;
    chdir("/").context("cannot enter the new root directory")
}
