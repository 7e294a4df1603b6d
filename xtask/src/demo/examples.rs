//! The examples, set up and checked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::cofferdam::Cofferdam;
use crate::apt;
use crate::setup;
use crate::shell::{self, say};
use crate::workspace::{Workspace, make_dir};

/// A shell, a few steps, an OCI layout that other tools read.
pub(super) fn hello(workspace: &Workspace, cofferdam: &Cofferdam) -> Result<()> {
    say("\n== hello: a static busybox, three stages, no base image");
    let context = context(workspace, cofferdam, "hello")?;
    let busybox = setup::find("busybox").context("busybox has gone")?;
    copy(&busybox, &context.join("busybox"))?;
    let layout = removed(cofferdam.place.join("hello.oci"))?;
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let arguments = ["-t", "demo/hello:1", "-o", &output];
    cofferdam.build(&context, &arguments)?;

    let reference = format!("oci:{}:1", layout.display());
    let facts = shell::text(&mut shell::command("skopeo", ["inspect", &reference]))?;
    let layers = facts.matches("\"sha256:").count();
    say(format!("skopeo reads the layout: {layers} digests"));
    let bundle = removed(cofferdam.place.join("hello.bundle"))?;
    let image = format!("{}:1", layout.display());
    let mut umoci = shell::command("umoci", ["unpack", "--rootless", "--image", &image]);
    shell::output(umoci.arg(&bundle))?;
    let greeting = fs::read_to_string(bundle.join("rootfs/srv/greeting"))?;
    ensure!(
        greeting == "Hello, world!\n",
        "the image holds another greeting: {greeting:?}"
    );
    say(format!(
        "umoci unpacks it, and it says: {}",
        greeting.trim_end()
    ));

    say("\n== the same again: every step is cached, and no VM is started");
    let first = cofferdam.build(&context, &arguments[..2])?;
    say(format!(
        "{} of {} steps cached, {:?}, {}",
        first.cached.0, first.cached.1, first.took, first.digest
    ));
    fs::write(
        context.join("greet.sh"),
        "#!/bin/sh\nexec cat /srv/greeting\n",
    )?;
    say("\n== one file is changed: what depends on it is done again, nothing else");
    let changed = cofferdam.build(&context, &arguments[..2])?;
    ensure!(changed.digest != first.digest, "the image did not change");
    ensure!(
        changed.cached.0 > 0 && changed.cached.0 < first.cached.0,
        "{:?}",
        changed.cached
    );
    Ok(())
}

/// A Debian made here, and a package installed over the network.
pub(super) fn debian(workspace: &Workspace, cofferdam: &Cofferdam) -> Result<()> {
    say("\n== debian: a root file system made here, a package installed in the VM");
    let context = context(workspace, cofferdam, "debian")?;
    root_file_system(&context.join("rootfs.tar"), "ca-certificates")?;
    let built = cofferdam.build(&context, &["-t", "demo/debian:1"])?;
    say(format!("built in {:?}", built.took));
    Ok(())
}

/// A real C project, compiled in one image and run in another.
pub(super) fn c_project(workspace: &Workspace, cofferdam: &Cofferdam) -> Result<()> {
    say("\n== c-project: Lua from Debian's source package");
    let context = context(workspace, cofferdam, "c-project")?;
    root_file_system(&context.join("toolchain.tar"), "gcc,libc6-dev,make")?;
    let archive = context.join("lua.tar.gz");
    if !archive.is_file() {
        let source = apt::download_source("lua5.4", &cofferdam.place.join("apt"))?;
        copy(&source, &archive)?;
    }
    let out = removed(cofferdam.place.join("lua"))?;
    let built = cofferdam.build(
        &context,
        &["-t", "demo/lua:1", "-o", &out.to_string_lossy()],
    )?;
    say(format!("built in {:?}", built.took));
    let lua = out.join("bin/lua");
    let said = shell::text(&mut shell::command(lua, ["-e", "print(_VERSION)"]))?;
    say(format!(
        "and on this machine the program says: {}",
        said.trim_end()
    ));
    Ok(())
}

/// A copy of an example's directory, where files can be added. What is there already stays.
fn context(workspace: &Workspace, cofferdam: &Cofferdam, name: &str) -> Result<PathBuf> {
    let context = cofferdam.place.join(name);
    make_dir(&context)?;
    for entry in fs::read_dir(workspace.root.join("examples").join(name))? {
        let entry = entry?;
        copy(&entry.path(), &context.join(entry.file_name()))?;
    }
    Ok(context)
}

/// Makes a Debian root file system of the smallest kind plus `packages`, unless it is there.
fn root_file_system(file: &Path, packages: &str) -> Result<()> {
    if file.is_file() {
        return Ok(());
    }
    say(format!("making {} (minbase, {packages})", file.display()));
    let fresh = file.with_extension("fresh.tar");
    let include = format!("--include={packages}");
    let suite = suite();
    let mut make = shell::command(
        "mmdebstrap",
        ["--variant=minbase", "--quiet", &include, &suite],
    );
    shell::output(make.arg(&fresh))?;
    fs::rename(&fresh, file).with_context(|| format!("cannot make {}", file.display()))
}

/// This machine's Debian release, or a recent one.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let here = value("VERSION_CODENAME").filter(|_| value("ID").is_some_and(|id| id == "debian"));
    here.unwrap_or_else(|| "bookworm".into())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The path, with nothing there.
fn removed(path: PathBuf) -> Result<PathBuf> {
    if path.is_dir() {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(path)
}
