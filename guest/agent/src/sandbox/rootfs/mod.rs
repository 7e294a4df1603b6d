//! The root file system of a step.
//!
//! [`plan`] lists what is mounted where, and [`apply()`] does it, with few system calls for each
//! operation. Everything after [`Op::Enter`] happens inside the new root, and the old one is gone: a
//! symbolic link in the image can only lead to a place in the image.
//!
//! **Law:** nothing is ever written into the upper directory. Mount points that the image lacks come
//! from a skeleton, which is a layer below the lowest one.

mod apply;

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Result;
use nix::mount::MsFlags;
use wire::flow::NAMESERVERS;
use wire::{Network, RunStep};

pub(super) use apply::{apply, enter_cwd};

/// Directories and files of the skeleton: mount points that an image may lack.
const SKELETON_DIRS: [&str; 4] = ["proc", "sys", "dev", "etc"];
const SKELETON_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

const NO_DEV: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);
const NO_EXEC: MsFlags = NO_DEV.union(MsFlags::MS_NOEXEC);
const READ_ONLY: MsFlags = NO_EXEC.union(MsFlags::MS_RDONLY);

/// Device nodes in `/dev`: name, major and minor number.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Symbolic links in `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Paths that are hidden from a step, if the kernel has them: those that Docker hides, then more
/// of what tells about the machine and is of no use to a build.
const MASKED: [&str; 26] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    // Not in Docker.
    "/proc/bus/pci",
    "/proc/cmdline",
    "/proc/dynamic_debug",
    "/proc/kallsyms",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/vmallocinfo",
    // The registers of the vsock device, and reading some of them changes its state.
    "/sys/bus/pci",
    "/sys/devices/pci0000:00",
    "/sys/hypervisor",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// Paths that a step cannot write to, although its root user owns them.
const PROTECTED: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// One operation of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Mount the layers with the step's upper directory as the new root directory, and leave the old
    /// one.
    Enter { options: String },
    /// Check that a path is a directory and not a symbolic link.
    CheckDirectory(&'static str),
    /// Mount a file system.
    Mount {
        kind: &'static str,
        at: &'static str,
        flags: MsFlags,
        options: &'static str,
    },
    /// Create a directory.
    CreateDirectory(&'static str),
    /// Create a symbolic link.
    Symlink { at: String, to: &'static str },
    /// Mount devices and files of the step's own, each over a path.
    MountFiles(Vec<StepFile>),
    /// Hide a path.
    Mask(&'static str),
    /// Make a path read-only.
    Protect(&'static str),
}

/// A device or file of the step's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StepFile {
    at: String,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Device(u64, u64),
    /// A file over one of the image or the skeleton. The step can write to it, and the layer has
    /// nothing of it.
    File(String),
    /// A program in `/dev/pipes`.
    Script(Vec<u8>),
}

impl Content {
    /// Attributes of its mount.
    const fn attributes(&self) -> u64 {
        match self {
            Self::Device(..) => libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
            Self::File(_) => {
                libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV
            }
            Self::Script(_) => {
                libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY
            }
        }
    }
}

/// Creates the skeleton in an empty directory of the guest disk.
pub(crate) fn make_skeleton(dir: &Path) -> Result<()> {
    // Steps see these modes, and layers keep them.
    for name in SKELETON_DIRS {
        DirBuilder::new().mode(0o755).create(dir.join(name))?;
    }
    for name in SKELETON_FILES {
        write_file(dir.join(name), 0o644, b"")?;
    }
    Ok(())
}

/// Mount options of the overlay. Paths are relative and short, since all of them together must fit
/// into a page: `0` is the lowest layer.
pub(super) fn overlay_options(layers: usize) -> String {
    let lower: Vec<String> = (0..layers).rev().map(|number| number.to_string()).collect();
    let separator = if lower.is_empty() { "" } else { ":" };
    // The defaults depend on how the kernel was built. `volatile` ignores syncs of programs: the layer
    // is synced as a whole when it is committed.
    format!(
        "lowerdir={}{separator}skeleton,upperdir=upper,workdir=work,\
         redirect_dir=off,metacopy=off,index=off,volatile",
        lower.join(":")
    )
}

/// Plans the root file system of a step.
pub(super) fn plan(step: &RunStep) -> Vec<Op> {
    let mut ops = vec![Op::Enter {
        options: overlay_options(step.layers.len()),
    }];
    let mut mount = |kind, at, flags, options| {
        ops.push(Op::CheckDirectory(at));
        ops.push(Op::Mount {
            kind,
            at,
            flags,
            options,
        });
    };
    mount("proc", "/proc", NO_EXEC, "");
    mount("sysfs", "/sys", READ_ONLY, "");
    mount("cgroup2", "/sys/fs/cgroup", READ_ONLY, "");
    ops.extend(devices());
    ops.push(Op::MountFiles(files(step)));
    if let Some(script) = &step.script {
        ops.push(Op::CreateDirectory(SCRIPTS));
        ops.push(Op::MountFiles(vec![StepFile {
            at: format!("{SCRIPTS}/{}", script.name),
            content: Content::Script(script.data.clone()),
        }]));
    }
    // In this order: what is mounted over a path hides what was mounted below it.
    ops.extend(PROTECTED.map(Op::Protect));
    ops.extend(MASKED.map(Op::Mask));
    ops
}

/// Plans `/dev`. Device nodes have no effect in its file systems, so a step cannot use those that it
/// creates itself; the real ones are mounted one by one.
fn devices() -> Vec<Op> {
    let fs = |kind, at, flags, options| Op::Mount {
        kind,
        at,
        flags,
        options,
    };
    let devices = DEVICES.map(|(name, major, minor)| StepFile {
        at: format!("/dev/{name}"),
        content: Content::Device(major, minor),
    });
    let mut ops = vec![
        Op::CheckDirectory("/dev"),
        Op::MountFiles(devices.into()),
        Op::CreateDirectory("/dev/pts"),
        fs(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            PTS,
        ),
        Op::CreateDirectory("/dev/shm"),
        fs("tmpfs", "/dev/shm", NO_EXEC, "mode=1777,size=65536k"),
        Op::CreateDirectory("/dev/mqueue"),
        fs("mqueue", "/dev/mqueue", NO_EXEC, ""),
    ];
    ops.extend(LINKS.map(|(name, to)| Op::Symlink {
        at: format!("/dev/{name}"),
        to,
    }));
    ops
}

/// Where a step finds the script that comes with it.
const SCRIPTS: &str = "/dev/pipes";
const PTS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5";
const DEV: &str = "mode=755,size=65536k";

/// Of the file system with the step's own files. It can write to some of them.
const FILES: &str = "mode=700,size=65536k";

/// The files that describe the step's network.
fn files(step: &RunStep) -> Vec<StepFile> {
    let mut hosts =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let own = [("127.0.1.1".to_owned(), step.hostname.clone())];
    for (address, name) in step
        .hosts
        .iter()
        .chain(&own)
        .filter(|(_, name)| !name.is_empty())
    {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let servers = match step.network {
        Network::Default { .. } => format!("nameserver {}\n", NAMESERVERS.0),
        Network::None => String::new(),
    };
    let file = |at: &str, text| StepFile {
        at: at.into(),
        content: Content::File(text),
    };
    vec![file("/etc/hosts", hosts), file("/etc/resolv.conf", servers)]
}

/// Creates a file with this content.
fn write_file(path: impl AsRef<Path>, mode: u32, data: &[u8]) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    Ok(options.open(path)?.write_all(data)?)
}

#[cfg(test)]
mod tests;
