//! Steps without walls: all layers lie over each other in the root directory of PID 1, and programs run
//! there with everything that PID 1 has.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use vsock_guest::init::Outcome;
use wire::RunStep;

use crate::attacks::Said;

/// File systems, and where they are mounted.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/disk"),
];

/// The one root directory of all steps.
#[derive(Debug)]
pub(crate) struct Bare;

impl Bare {
    /// Moves an empty tmpfs over the root directory, as the agent does: whoever lives in a mere `chroot`
    /// may not make user namespaces, which would be a wall. What is read from the initramfs must be read
    /// before.
    pub(crate) fn new() -> Outcome<Self> {
        let at = "/root-of-steps";
        fs::create_dir(at)?;
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        chdir(at)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        chroot(".")?;
        chdir("/")?;
        for (kind, at) in MOUNTS {
            fs::create_dir_all(at)?;
            mount(
                Some(*kind),
                *at,
                Some(*kind),
                MsFlags::empty(),
                None::<&str>,
            )?;
        }
        Ok(Self)
    }

    /// Unpacks a layer over those before it.
    pub(crate) fn unpack(&self, mut tar: &[u8]) -> Outcome<()> {
        let mut archive = tar::Archive::new(&mut tar);
        archive.set_preserve_permissions(true);
        archive.set_overwrite(true);
        Ok(archive.unpack("/")?)
    }

    /// Runs a step to its end.
    pub(crate) fn run(&self, step: &RunStep) -> Outcome<Said> {
        let mut args = step.args.iter().map(|arg| OsStr::from_bytes(arg));
        let mut command = Command::new(args.next().ok_or("a step without a program")?);
        command.args(args).env_clear().stdin(Stdio::null());
        for entry in &step.env {
            let mut parts = entry.splitn(2, |byte| *byte == b'=');
            if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
            }
        }
        let done = command.output()?;
        Ok(Said {
            output: [done.stdout, done.stderr].concat(),
            status: Some(done.status.code().unwrap_or(255)),
        })
    }
}
