//! Compiles the agent, and what takes its place, as a static program.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::shell;
use crate::workspace::{Workspace, read};

/// A compiled agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) program: PathBuf,
    pub(super) version: String,
    pub(super) protocol: u16,
}

/// The agent as `given`, or compiled.
pub(super) fn obtain(workspace: &Workspace, given: Option<&Path>) -> Result<Agent> {
    let program = given.map_or_else(|| compile(workspace), |path| Ok(path.to_owned()))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Agent {
        program,
        version,
        protocol: protocol(workspace)?,
    })
}

/// Compiles the agent.
fn compile(workspace: &Workspace) -> Result<PathBuf> {
    Ok(compile_static(workspace, &["--package", "agent"])?.join("agent"))
}

/// Compiles what these words of `cargo build` name as a static program for this machine's
/// architecture. Returns the directory of what was made.
///
/// It has a target directory of its own: its compiler flags differ from everything else's, and
/// sharing one would compile all dependencies again at each change between the two.
pub(crate) fn compile_static(workspace: &Workspace, what: &[&str]) -> Result<PathBuf> {
    let target = target()?;
    let directory = workspace.target.join("agent");
    let mut cargo = shell::command(
        std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        [
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "agent",
            "--target",
        ],
    );
    cargo.arg(&target).arg("--target-dir").arg(&directory);
    cargo
        .args(what)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace))
        .current_dir(&workspace.root);
    shell::run(&mut cargo)?;
    Ok(directory.join(target).join("agent"))
}

/// musl gives a smaller program, but its target is often not installed; a static glibc does.
fn target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = shell::text(&mut shell::command(rustc, ["--print", "sysroot"]))?;
    let targets = PathBuf::from(sysroot.trim()).join("lib/rustlib");
    let musl = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    if targets.join(&musl).is_dir() {
        return Ok(musl);
    }
    Ok(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
}

/// Static, and without the paths of this machine, which would make the program differ from one
/// check-out to the next.
fn flags(workspace: &Workspace) -> String {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let places = [
        (Some(workspace.root.clone()), "/cofferdam"),
        (home, "/cargo"),
    ];
    for (place, name) in places {
        flags.extend(place.map(|at| format!("--remap-path-prefix={}={name}", at.display())));
    }
    flags.join("\x1f")
}

/// The protocol version, from its one definition.
fn protocol(workspace: &Workspace) -> Result<u16> {
    let path = workspace.root.join("guest/wire/src/lib.rs");
    let source = String::from_utf8_lossy(&read(&path)?).into_owned();
    parse_protocol(&source)
        .with_context(|| format!("no `pub const PROTOCOL: u16 = …;` in {}", path.display()))
}

fn parse_protocol(source: &str) -> Option<u16> {
    let line = source
        .lines()
        .find_map(|line| line.strip_prefix("pub const PROTOCOL: u16 = "))?;
    line.trim_end().strip_suffix(';')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_found_in_its_source() {
        let workspace = Workspace::find().unwrap();
        assert!(protocol(&workspace).unwrap() >= 1);
        assert_eq!(parse_protocol("pub const PROTOCOL: u32 = 1;"), None);
    }
}
