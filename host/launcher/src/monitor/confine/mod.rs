//! The confinement of a monitor: what a guest that has taken over QEMU still finds in its way.
//!
//! `detect` finds out which walls this host offers, `handover` carries the plan to the trampoline,
//! `apply` puts it into force there, with `landlock` for the files, and `observed` reads from the
//! kernel what a running monitor is confined by.
//!
//! The law: what the host does not offer is left out by `detect`, with a reason that `doctor` shows.
//! What is planned is in force, or the monitor does not start.
//!
//! The monitor opens no file of the user's by name. The trampoline opens what it needs (disk, kernel,
//! initramfs, the socket of the vsock device) and hands it over as descriptors with fixed numbers.

pub(crate) mod apply;
pub(crate) mod detect;
pub(crate) mod handover;
mod landlock;
pub mod observed;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::PathBuf;

pub use detect::{detect, landlock_version};
pub use observed::Observed;

/// Something that separates a monitor from the rest of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// A filter of system calls, which QEMU installs: no program, no other user, no old call.
    Seccomp,
    /// Of files only the program's own, no TCP, no abstract socket, no signal to others.
    Landlock,
    /// A user of its own, for a monitor that root starts.
    User,
    /// No capabilities; where root starts it, none that it could ever get back.
    Capabilities,
    /// No program gives it rights.
    NoNewPrivileges,
    /// No descriptor of its owner's but those that are handed over.
    Descriptors,
    /// No environment variables.
    Environment,
    /// Limits of files, descriptors and threads; no core dump.
    Limits,
}

impl Wall {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Seccomp,
        Self::Landlock,
        Self::User,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Descriptors,
        Self::Environment,
        Self::Limits,
    ];

    /// Its name in the arguments of the trampoline.
    fn word(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::User => "user",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Descriptors => "descriptors",
            Self::Environment => "environment",
            Self::Limits => "limits",
        }
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seccomp => "seccomp",
            Self::Landlock => "Landlock",
            Self::User => "a user of its own",
            Self::Capabilities => "no capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::Descriptors => "no other descriptors",
            Self::Environment => "no environment",
            Self::Limits => "resource limits",
        })
    }
}

/// The walls that a monitor gets on this host, and those that it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Walls {
    /// Those in force.
    pub present: Vec<Wall>,
    /// Those that the host does not offer, and why.
    pub missing: Vec<(Wall, String)>,
    /// Groups that let a user of its own open the devices.
    pub groups: Vec<u32>,
}

impl Walls {
    /// Whether this one is in force.
    #[must_use]
    pub fn have(&self, wall: Wall) -> bool {
        self.present.contains(&wall)
    }

    /// Leaves one out, for this reason.
    pub(crate) fn remove(&mut self, wall: Wall, why: impl Into<String>) {
        self.present.retain(|present| *present != wall);
        self.missing.push((wall, why.into()));
    }

    /// The same without these, for tests that show what each is good for.
    #[cfg(test)]
    pub(crate) fn without(mut self, walls: &[Wall]) -> Self {
        for wall in walls {
            self.remove(*wall, "torn down by a test");
        }
        self
    }
}

/// What a monitor is confined to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Confinement {
    pub(crate) walls: Walls,
    /// Descriptors that are handed over, besides the standard ones.
    pub(crate) inherited: Vec<Inherited>,
    /// Devices that the monitor opens by name.
    pub(crate) devices: Vec<PathBuf>,
    /// No file that it writes grows beyond this, in bytes.
    pub(crate) file_size: u64,
}

/// A descriptor that the trampoline opens, with the number that it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) number: i32,
    pub(crate) source: Source,
}

/// What a descriptor is opened from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file that is read. The monitor opens it again, through the descriptor.
    Read(PathBuf),
    /// A file that is read and written.
    ReadWrite(PathBuf),
    /// A Unix socket that is connected to.
    Connect(PathBuf),
    /// Standard output once more: QEMU lets only other descriptors be named.
    Output,
}
