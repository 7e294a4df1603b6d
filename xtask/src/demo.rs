//! `cargo xtask demo`: shows that it works, from nothing, with tools that share no code with us.

mod cofferdam;
mod examples;

use anyhow::Result;

use crate::image;
use crate::setup::{self, BUSYBOX, MMDEBSTRAP, QEMU, SKOPEO, UMOCI};
use crate::shell::say;
use crate::test;
use crate::workspace::Workspace;
use cofferdam::Cofferdam;

/// Set everything up, build an example in a VM, and check the result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also a Debian image that installs a package over the network, and a C project.
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    setup::ensure(&[QEMU, BUSYBOX, UMOCI, SKOPEO])?;
    if args.all {
        setup::ensure(&[MMDEBSTRAP])?;
    }
    say("== compiling cofferdam, and the image of the builder VM");
    let program = test::program(&workspace, "release")?;
    let image = image::build(&workspace, &image::Args::default())?;
    let cofferdam = Cofferdam {
        program,
        image,
        place: workspace.target.join("demo"),
    };
    examples::hello(&workspace, &cofferdam)?;
    if args.all {
        examples::debian(&workspace, &cofferdam)?;
        examples::c_project(&workspace, &cofferdam)?;
    }
    say("\n== the store is in order");
    cofferdam.check()?;
    say(format!(
        "\nAll of it is in {}; try for yourself:",
        cofferdam.place.display()
    ));
    say(format!(
        "  export COFFERDAM_STORE={}",
        cofferdam.store().display()
    ));
    say(format!("  {} images", cofferdam.program.display()));
    Ok(())
}
