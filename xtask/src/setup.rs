//! What a command needs from the machine: installed as root on Debian, else asked for.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};

/// A program that must be there, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
}

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// What every build in a VM needs.
pub(crate) const VM: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("/bin/busybox", "busybox-static"),
    need("cc", "gcc"),
    need("dpkg-deb", "dpkg"),
];

/// Independent tools that check what we made.
pub(crate) const CHECKERS: &[Need] = &[need("umoci", "umoci"), need("skopeo", "skopeo")];

/// What only the tests need.
pub(crate) const TESTS: &[Need] = &[
    need("docker-registry", "docker-registry"),
    need("ip", "iproute2"),
    need("mke2fs", "e2fsprogs"),
    need("openssl", "openssl"),
    need("strace", "strace"),
    need("zstd", "zstd"),
];

/// What links libFuzzer, which is written in C++.
pub(crate) const FUZZ: &[Need] = &[need("c++", "g++")];

/// What makes the base images of the larger examples.
pub(crate) const BASES: &[Need] = &[need("mmdebstrap", "mmdebstrap")];

/// Makes sure that everything is there.
///
/// # Errors
/// If something is missing and cannot be installed: with the command that installs it.
pub(crate) fn require(needs: &[&[Need]]) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .copied()
        .flatten()
        .filter(|need| find(need.program).is_none())
        .map(|need| need.package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !may_install() {
        bail!(
            "these packages are missing; as root, run:\n\n    apt-get install {}\n",
            missing.join(" ")
        );
    }
    install(&missing)
}

/// Root on a system with apt may install; everybody else is asked to.
fn may_install() -> bool {
    is_root() && find("apt-get").is_some()
}

/// Whether we run as root: `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn install(packages: &[&str]) -> Result<()> {
    say(format!("installing {}", packages.join(" ")));
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get", words);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Lists may be absent or old; if they cannot be fetched, what is there may still do.
    if let Err(error) = shell::output(&mut apt(&["--quiet=2", "update"])) {
        say(format!("package lists are not fresh: {error:#}"));
    }
    let mut words = vec!["--quiet=2", "--yes", "--no-install-recommends", "install"];
    words.extend(packages);
    shell::output(&mut apt(&words)).context("cannot install packages")?;
    Ok(())
}

/// A program by path, or by name in the search path and where administrators' programs are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir: PathBuf| Path::new(&dir).join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_name_and_by_path() {
        assert!(find("sh").is_some());
        assert!(find("/bin/sh").is_some());
        assert!(find("no-such-program").is_none());
    }
}
