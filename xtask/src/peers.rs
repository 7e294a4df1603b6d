//! Peers that somebody else wrote: what our vsock driver and our device are tested and compared
//! with. The kernel's driver comes with the VM, the device from crates.io.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::image;
use crate::tools;
use crate::workspace::{Workspace, make_dir, read, update};

/// Paths that the conformance suite needs (`tests/vsock-testbed/tests/conformance`).
#[derive(Debug)]
pub(crate) struct Peers {
    device: PathBuf,
    vm: PathBuf,
}

impl Peers {
    /// Compiles whatever is not there yet.
    pub(crate) fn obtain(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            device: tools::STOCK_DEVICE.obtain(workspace)?,
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

/// The files of a VM whose first program executes the commands of the conformance suite.
fn vm(workspace: &Workspace) -> Result<PathBuf> {
    let dir = workspace.target.join("conform");
    make_dir(&dir)?;
    let guest = ["--package", "vsock-guest", "--bin", "conformance_guest"];
    let guest = image::compile_static(workspace, &guest)?.join("conformance_guest");
    let other = image::with_program(workspace, &guest, &dir)?;
    update(&dir.join("vmlinuz"), &read(&other.kernel)?)?;
    update(&dir.join("cmdline"), other.cmdline.as_bytes())?;
    Ok(dir)
}
