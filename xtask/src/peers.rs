//! Peers that somebody else wrote: what our vsock driver and our device are tested and compared
//! with. The kernel's driver comes with the VM, the device from crates.io.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::cargo;
use crate::image;
use crate::shell::say;
use crate::workspace::{Workspace, make_dir, read, update};

/// The stock device. Another version has other faults, which the conformance suite lists.
const DEVICE: &str = "vhost-device-vsock";
const VERSION: &str = "0.3.0";

/// Where things are that the conformance suite of the vsock crate needs.
#[derive(Debug)]
pub(crate) struct Peers {
    device: PathBuf,
    vm: PathBuf,
}

impl Peers {
    /// Compiles whatever is not there yet.
    pub(crate) fn obtain(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            device: stock_device(workspace)?,
            vm: vm(workspace)?,
        })
    }

    /// Tells a command where they are.
    pub(crate) fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("COFFERDAM_STOCK_DEVICE", &self.device)
            .env("COFFERDAM_CONFORM_VM", &self.vm)
    }
}

/// The stock device, installed from crates.io the first time: optimised, since it is measured too.
pub(crate) fn stock_device(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.target.join(format!("tools/{DEVICE}-{VERSION}"));
    let program = root.join("bin").join(DEVICE);
    if program.is_file() {
        return Ok(program);
    }
    say(format!(
        "installing {DEVICE} {VERSION} in {}",
        root.display()
    ));
    make_dir(&root)?;
    let build = root.join("build");
    let [to, with] = [&root, &build].map(|path| path.to_str().context("a path is no text"));
    let words = [
        "install",
        "--quiet",
        "--locked",
        "--version",
        VERSION,
        DEVICE,
    ];
    cargo(
        workspace,
        &[&words[..], &["--root", to?, "--target-dir", with?]].concat(),
    )?;
    // Hundreds of megabytes that nobody needs again.
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(program)
}

/// The files of a VM whose first program does what the conformance suite orders.
fn vm(workspace: &Workspace) -> Result<PathBuf> {
    let dir = workspace.target.join("conform");
    make_dir(&dir)?;
    let guest = ["--package", "vsock-driver", "--example", "conform_guest"];
    let guest = image::compile_static(workspace, &guest)?.join("examples/conform_guest");
    let other = image::with_program(workspace, &guest, &dir)?;
    update(&dir.join("vmlinuz"), &read(&other.kernel)?)?;
    update(&dir.join("cmdline"), other.cmdline.as_bytes())?;
    Ok(dir)
}
