//! The files of a monitor: what QEMU opens by name, and nothing else.
//!
//! Rules cover what is needed to load the program: its libraries, modules and firmware, which are in
//! the system's directories or beside the program. They hold no secrets. Nothing may be written but
//! devices.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus,
    Scope,
};

use super::Confinement;

/// The version whose rights are taken away, as far as the kernel knows them. Raise it only together
/// with a test on a kernel that has the newer one.
const VERSION: ABI = ABI::V7;

/// Where systems keep programs, libraries and firmware.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/snap",
    "/home/linuxbrew/.linuxbrew",
];

/// What lies beside a program outside of these, such as `/opt/qemu/bin/qemu-system-x86_64`, or one in
/// its build directory.
const BESIDE: [&str; 6] = [
    "pc-bios",
    "qemu-bundle",
    "../lib",
    "../lib64",
    "../share/qemu",
    "../share/seabios",
];

/// Files and directories that libraries read when they are loaded: processors, memory nodes, pages.
const FACTS: [&str; 6] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/sys/devices/system",
    "/sys/kernel/mm",
    "/dev/urandom",
];

/// The newest version that the kernel offers, of those that are used here. Zero: none.
pub(super) fn version() -> u8 {
    let hard = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let files = |abi| hard().handle_access(AccessFs::from_all(abi)).is_ok();
    if hard().scope(Scope::Signal).is_ok() {
        6
    } else if files(ABI::V5) {
        5
    } else if hard().handle_access(AccessNet::ConnectTcp).is_ok() {
        4
    } else if files(ABI::V3) {
        3
    } else if files(ABI::V2) {
        2
    } else {
        u8::from(files(ABI::V1))
    }
}

/// The rules for a monitor with this program. They are in force after [`enforce`].
pub(super) fn rules(confinement: &Confinement, program: &Path) -> io::Result<RulesetCreated> {
    let rules = Ruleset::default().handle_access(AccessFs::from_all(VERSION));
    let rules = rules.and_then(|rules| rules.handle_access(AccessNet::from_all(VERSION)));
    let rules = rules.and_then(|rules| rules.scope(Scope::from_all(VERSION)));
    let rules = rules.and_then(Ruleset::create).map_err(io::Error::other)?;
    let load = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let system = SYSTEM.iter().map(|path| (PathBuf::from(path), load));
    let facts = AccessFs::ReadFile | AccessFs::ReadDir;
    let facts = FACTS.iter().map(|path| (PathBuf::from(path), facts));
    let devices = confinement.devices.iter().map(PathBuf::as_path);
    let devices = devices.chain([Path::new("/dev/null")]);
    let devices = devices.map(|path| (path.to_owned(), device));
    system
        .chain(facts)
        .chain(devices)
        .chain(of_program(program).map(|path| (path, load)))
        .try_fold(rules, |rules, (path, access)| {
            // What does not exist cannot be opened either.
            match PathFd::new(&path) {
                Ok(opened) => allow(rules, &opened, access),
                Err(_) => Ok(rules),
            }
        })
}

/// The program by both of its names, and what lies beside it.
fn of_program(program: &Path) -> impl Iterator<Item = PathBuf> {
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.into());
    let dir = real.parent().map(Path::to_owned).unwrap_or_default();
    let beside = BESIDE.into_iter().map(move |name| dir.join(name));
    [program.to_owned(), real].into_iter().chain(beside)
}

/// Allows the monitor to open this file again, for reading.
pub(super) fn allow_reading(rules: RulesetCreated, file: impl AsFd) -> io::Result<RulesetCreated> {
    allow(rules, file, AccessFs::ReadFile.into())
}

fn allow(
    rules: RulesetCreated,
    opened: impl AsFd,
    access: BitFlags<AccessFs>,
) -> io::Result<RulesetCreated> {
    // A right to a directory means nothing for a file: then the crate takes it away.
    let rule = PathBeneath::new(opened, access).set_compatibility(CompatLevel::BestEffort);
    rules.add_rule(rule).map_err(io::Error::other)
}

/// Puts the rules into force for this process and what it becomes.
pub(super) fn enforce(rules: RulesetCreated) -> io::Result<()> {
    let status = rules.restrict_self().map_err(io::Error::other)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(io::Error::other("the kernel did not take the rules"));
    }
    Ok(())
}
