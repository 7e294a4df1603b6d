//! QEMU as a program: where it is and which version it is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use thiserror::Error;

use crate::time_budget::{Clock, TimeBudget};

/// The program, looked up in `PATH` unless another one is named.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The first version with everything that a builder VM needs.
pub const MINIMUM: (u32, u32) = (6, 0);

/// The filter of system calls that QEMU installs before the guest runs: none of old times, none that
/// gains rights, none that starts a program, none that changes priorities. libvirt uses the same.
pub(crate) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Printing a version takes milliseconds; a host that swaps takes longer.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// A QEMU that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program: a path, whatever it was called.
    pub program: PathBuf,
    /// Its version, as it prints it: with the packager's own part.
    pub version: String,
    /// Major and minor part of its version.
    pub(crate) number: (u32, u32),
    /// Whether it can filter its own system calls.
    pub sandbox: bool,
}

/// Why no QEMU can be used.
#[derive(Debug, Error)]
pub enum QemuError {
    /// There is none.
    #[error("`{}` is not installed (Debian, Ubuntu: apt install qemu-system-x86; Fedora: dnf install qemu-system-x86)", .0.display())]
    Missing(PathBuf),
    /// It cannot be started.
    #[error("cannot run `{}`", .0.display())]
    Unusable(PathBuf, #[source] io::Error),
    /// It prints something other than its version.
    #[error("`{} --version` did not print a version: `{said}`", program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// The beginning of its output.
        said: String,
    },
    /// It is too old.
    #[error("`{}` is version {version}; install version {}.{} or later", program.display(), MINIMUM.0, MINIMUM.1)]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: String,
    },
}

impl Qemu {
    /// Looks up `program` and asks it for its version.
    ///
    /// # Errors
    /// If it cannot be run, or is too old.
    pub fn find(program: &Path) -> Result<Self, QemuError> {
        let found = look_up(program).ok_or_else(|| QemuError::Missing(program.into()))?;
        let program = found.as_path();
        let ask = |args: &[&str]| {
            output(program, args).map_err(|err| {
                if err.kind() == io::ErrorKind::NotFound {
                    QemuError::Missing(program.into())
                } else {
                    QemuError::Unusable(program.into(), err)
                }
            })
        };
        // A QEMU that was built without the filter refuses the option, before it comes to the version.
        let filtered = ask(&["-sandbox", SANDBOX, "--version"])?;
        let sandbox = parse_version(&filtered).is_some();
        let text = if sandbox {
            filtered
        } else {
            ask(&["--version"])?
        };
        let Some((version, number)) = parse_version(&text) else {
            let said = text.chars().take(100).collect();
            return Err(QemuError::NoVersion {
                program: program.into(),
                said,
            });
        };
        if number < MINIMUM {
            return Err(QemuError::TooOld {
                program: program.into(),
                version,
            });
        }
        Ok(Self {
            program: program.into(),
            version,
            number,
            sandbox,
        })
    }
}

/// The path of a program: itself, or the first one of this name in `PATH`. The monitor is started
/// without `PATH`, and its confinement names the files beside it.
pub(crate) fn look_up(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        // The monitor has another working directory.
        return std::path::absolute(program).ok();
    }
    let path = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&path).map(|dir| dir.join(program));
    let found = files.find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())?;
    std::path::absolute(found).ok()
}

fn output(program: &Path, args: &[&str]) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let clock = Clock::default();
    let mut budget = TimeBudget::new(VERSION_LIMIT, clock.now());
    // Two lines fit into any pipe, so the program can end before they are read.
    while child.try_wait()?.is_none() {
        if budget.elapse(clock.now()) {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child
        .stdout
        .take()
        .map_or_else(|| Ok(String::new()), io::read_to_string)
}

/// Splits `QEMU emulator version 7.2.22 (Debian …)` into the text of the version and its number.
fn parse_version(text: &str) -> Option<(String, (u32, u32))> {
    let line = text.lines().next()?;
    let (_, version) = line.split_once("version ")?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((version.trim().to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let read = |text| parse_version(text).map(|(_, number)| number);
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)";
        assert_eq!(read(debian), Some((7, 2)));
        assert_eq!(read("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(
            read("QEMU emulator version 9.1.50 (v9.1.0-5-gabc)"),
            Some((9, 1))
        );
        assert_eq!(read("bash: command not found"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn the_error_for_a_missing_program_says_what_to_install() {
        let text = Qemu::find(Path::new("/nonexistent/qemu"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("apt install"), "{text}");
    }

    #[test]
    fn a_program_that_prints_something_else_is_not_taken_for_qemu() {
        let refused = Qemu::find(Path::new("echo")).unwrap_err();
        assert!(matches!(refused, QemuError::NoVersion { .. }));
    }
}
