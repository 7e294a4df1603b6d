//! `cofferdam version`.

use std::path::PathBuf;
use std::process::ExitCode;

use launcher::GuestImage;

use crate::directories;
use crate::exit::Failure;
use crate::output::print;

/// Show version information
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the guest image
    #[arg(
        long,
        value_name = "DIR",
        env = "COFFERDAM_VM_IMAGE",
        hide_env_values = true
    )]
    vm_image: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let dir = directories::guest_image(args.vm_image.as_deref());
    let image = match GuestImage::open(&dir) {
        Ok(image) => format!(
            "agent {}, protocol {}, Linux {} ({})",
            image.manifest.agent_version,
            image.manifest.protocol,
            image.manifest.kernel_version,
            dir.display()
        ),
        Err(error) => format!("unavailable: {error}"),
    };
    print(|out| {
        writeln!(out, "cofferdam {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "guest image: {image}")
    })
}
