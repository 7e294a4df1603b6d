//! Metadata of a file.

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};
use store::Mtime;

/// Coarsest resolution of file times, in seconds (that of FAT). A file that changes twice within it
/// can look the same, so content that is read so soon after a change is not cached.
const TICK: i64 = 2;

/// A moment: seconds since 1970, and nanoseconds.
pub(crate) type Moment = (i64, u32);

/// Everything that changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    /// Type and permission bits.
    pub(crate) mode: u32,
    pub(crate) mtime: Moment,
    /// Set by the kernel at every change of content or metadata; cannot be set by programs.
    pub(crate) ctime: Moment,
    /// Whether the file has other names.
    pub(crate) linked: bool,
}

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Directory,
    Link,
    /// Any other type; the text says which.
    Special(&'static str),
}

impl Stat {
    pub(crate) fn mtime(&self) -> Mtime {
        Mtime {
            secs: self.mtime.0,
            nanos: self.mtime.1,
        }
    }

    /// The twelve permission bits.
    pub(crate) fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    pub(crate) fn kind(&self) -> Type {
        match self.mode & libc_type::MASK {
            libc_type::FILE => Type::File,
            libc_type::DIRECTORY => Type::Directory,
            libc_type::LINK => Type::Link,
            libc_type::FIFO => Type::Special("a named pipe"),
            libc_type::SOCKET => Type::Special("a socket"),
            _ => Type::Special("a device"),
        }
    }

    /// Whether any change at `now` or later changes `ctime`.
    pub(crate) fn is_settled(&self, now: Moment) -> bool {
        self.ctime.0.saturating_add(TICK) < now.0
    }
}

/// Type bits of a mode (POSIX `sys/stat.h`; the values are the same on all systems we know).
mod libc_type {
    pub(super) const MASK: u32 = 0o170_000;
    pub(super) const FILE: u32 = 0o100_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const LINK: u32 = 0o120_000;
    pub(super) const FIFO: u32 = 0o010_000;
    pub(super) const SOCKET: u32 = 0o140_000;
}

#[expect(
    clippy::useless_conversion,
    reason = "the width and sign of these members differ between systems"
)]
impl From<&FileStat> for Stat {
    fn from(stat: &FileStat) -> Self {
        let moment = |secs: i64, nanos| (secs, u32::try_from(nanos).unwrap_or_default());
        Self {
            dev: u64::try_from(stat.st_dev).unwrap_or_default(),
            ino: stat.st_ino.into(),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mode: stat.st_mode.into(),
            mtime: moment(stat.st_mtime, stat.st_mtime_nsec),
            ctime: moment(stat.st_ctime, stat.st_ctime_nsec),
            linked: stat.st_nlink > 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_settled_only_when_its_clock_has_moved_on() {
        let stat = Stat {
            dev: 1,
            ino: 1,
            size: 0,
            mode: 0o100_644,
            mtime: (0, 0),
            ctime: (100, 5),
            linked: false,
        };
        assert!(!stat.is_settled((100, 6)));
        assert!(!stat.is_settled((102, 0)));
        assert!(stat.is_settled((103, 0)));
        assert!(
            !stat.is_settled((50, 0)),
            "a clock that was set back proves nothing"
        );
    }
}
