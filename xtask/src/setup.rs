//! `cargo xtask setup`: what the other commands need on this machine.
//!
//! They call [`ensure`] first. As root on Debian it installs what is missing; elsewhere it stops at
//! once with the command to run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::shell::{self, say};

/// Install the programs that tests, demo and benchmarks use.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> Result<()> {
    ensure(ALL)?;
    say("everything that is needed is installed");
    Ok(())
}

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// The monitor of the builder VM.
pub(crate) const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86");
/// A static busybox: the smallest thing with a shell.
pub(crate) const BUSYBOX: Tool = tool("busybox", "busybox-static");
/// Checks and unpacks OCI layouts without a line of our code.
pub(crate) const UMOCI: Tool = tool("umoci", "umoci");
/// Copies images between layouts, archives and registries.
pub(crate) const SKOPEO: Tool = tool("skopeo", "skopeo");
/// A registry for the tests, on the loopback device.
pub(crate) const REGISTRY: Tool = tool("docker-registry", "docker-registry");
/// Makes Debian root file systems.
pub(crate) const MMDEBSTRAP: Tool = tool("mmdebstrap", "mmdebstrap");
/// Checks guest disks.
pub(crate) const E2FSPROGS: Tool = tool("mkfs.ext4", "e2fsprogs");
/// Reads what the initramfs writer wrote.
pub(crate) const CPIO: Tool = tool("cpio", "cpio");

const ALL: &[Tool] = &[
    QEMU, BUSYBOX, UMOCI, SKOPEO, REGISTRY, MMDEBSTRAP, E2FSPROGS, CPIO,
];

/// Sees to it that `tools` are installed.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<Tool> = tools
        .iter()
        .copied()
        .filter(|tool| !present(tool))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let packages = packages.join(" ");
    if !may_install() {
        let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
        bail!(
            "missing: {}\non Debian and its kin, run\n\n    sudo apt-get install --no-install-recommends {packages}\n",
            programs.join(", ")
        );
    }
    say(format!("installing {packages}"));
    install(&packages)?;
    if let Some(tool) = missing.iter().find(|tool| !present(tool)) {
        bail!(
            "{} is still missing although {} was installed",
            tool.program,
            tool.package
        );
    }
    Ok(())
}

/// Installs packages; with fresh lists if the present ones do not do.
fn install(packages: &str) -> Result<()> {
    let install = || {
        let mut apt = shell::command(
            "apt-get",
            ["install", "--yes", "--quiet=2", "--no-install-recommends"],
        );
        apt.args(packages.split(' '))
            .env("DEBIAN_FRONTEND", "noninteractive");
        shell::output(&mut apt)
    };
    if install().is_err() {
        // A source that cannot be reached is no reason to give up: the others may have it.
        shell::output(&mut shell::command("apt-get", ["update", "--quiet=2"])).ok();
        install()?;
    }
    Ok(())
}

/// Whether a package can be installed without asking anybody.
fn may_install() -> bool {
    let root = shell::text(&mut shell::command("id", ["--user"])).is_ok_and(|id| id.trim() == "0");
    root && find("apt-get").is_some()
}

fn present(tool: &Tool) -> bool {
    let Some(path) = find(tool.program) else {
        return false;
    };
    // Debian has a dynamic busybox too, under the same name; steps in an empty root need the other.
    *tool != BUSYBOX || is_static(&path)
}

/// Where a program is, if it is anywhere: also in the directories that only root searches.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether a program names no dynamic linker.
fn is_static(path: &Path) -> bool {
    const LINKER: &[u8] = b"/ld-linux";
    fs::read(path).is_ok_and(|bytes| !bytes.windows(LINKER.len()).any(|window| window == LINKER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn a_shell_is_not_static_as_a_rule() {
        let this = env::current_exe().unwrap();
        assert!(!is_static(&this));
    }
}
