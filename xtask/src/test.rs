//! `cargo xtask test` and `cargo xtask vm-test`.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::build;
use crate::image;
use crate::peers::{self, Peers};
use crate::setup;
use crate::shell::{self, say};
use crate::soak;
use crate::workspace::Workspace;

/// VMs at the same time: each emulated one keeps a processor busy.
const VMS: &str = "2";

/// Run all tests: unit, integration, and whole builds in VMs.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Everything; the builds in VMs come last.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&[setup::VM, setup::CHECKERS, setup::TESTS])?;
    let workspace = Workspace::find()?;
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    let cofferdam = build::everything(&workspace)?;
    // The image first: some integration tests boot it.
    let vm_image = image::build(&workspace, &image::Args::default())?;
    let peers = Peers::obtain(&workspace)?;
    let mut words = vec![
        "test",
        "--workspace",
        "--exclude",
        "tests",
        "--locked",
        "--all-targets",
    ];
    words.extend(&filter);
    let mut command = shell::command("cargo", words);
    command.current_dir(&workspace.root);
    command.env("COFFERDAM_VM_IMAGE", &vm_image);
    shell::run(peers.tell(&mut command))?;
    if args.filter.is_none() {
        soak::drive(&workspace, &soak::Args::default())?;
    }
    builds_in_vms(&workspace, &cofferdam, &vm_image, args)
}

/// Whole builds in VMs.
pub(crate) fn run_vm(args: &Args) -> Result<()> {
    setup::require(&[setup::VM, setup::CHECKERS, setup::TESTS])?;
    let workspace = Workspace::find()?;
    let cofferdam = build::cofferdam(&workspace)?;
    let vm_image = image::build(&workspace, &image::Args::default())?;
    builds_in_vms(&workspace, &cofferdam, &vm_image, args)
}

fn builds_in_vms(
    workspace: &Workspace,
    cofferdam: &Path,
    vm_image: &Path,
    args: &Args,
) -> Result<()> {
    let accelerator = accelerator(workspace, cofferdam, vm_image)?;
    let mut words = vec!["test", "--package", "tests", "--locked", "--no-fail-fast"];
    words.extend(args.filter.as_deref());
    words.extend(["--", "--test-threads", VMS]);
    shell::run(
        shell::command("cargo", words)
            .current_dir(&workspace.root)
            .env("COFFERDAM_BIN", cofferdam)
            .env("COFFERDAM_ACCEL", accelerator)
            .env("COFFERDAM_STOCK_DEVICE", peers::stock_device(workspace)?)
            .env("COFFERDAM_VM_IMAGE", vm_image),
    )
}

/// Boots the VM once and says by which accelerator. Each test has a store of its own and would
/// otherwise have to find out anew that this machine's KVM does not work.
fn accelerator(workspace: &Workspace, cofferdam: &Path, vm_image: &Path) -> Result<String> {
    let said = shell::output(
        shell::command(cofferdam, ["doctor", "--boot", "--json"])
            .env("COFFERDAM_STORE", workspace.target.join("test-store"))
            .env("COFFERDAM_VM_IMAGE", vm_image),
    )
    .context("the builder VM does not boot")?;
    let report: Value = serde_json::from_slice(&said).context("report of `doctor --boot`")?;
    let accelerator = report.pointer("/boot/accelerator").and_then(Value::as_str);
    let accelerator = accelerator.context("`doctor --boot` names no accelerator")?;
    say(format!("the builder VM boots with {accelerator}"));
    Ok(accelerator.to_owned())
}
