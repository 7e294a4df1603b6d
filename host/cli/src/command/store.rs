//! `cofferdam store`: looks after the store itself.

use std::process::ExitCode;

use ::store::{CheckReport, Store, StoreError};
use clap::Subcommand;

use super::{Common, complain};
use crate::exit::{Class, Failure};
use crate::progress::clean;
use crate::size;

const EXAMPLES: &str = "\
Examples:
  cofferdam store check             compare the database with what is on disk, and hash everything
  cofferdam store check --repair    also remove what belongs to nothing and forget what is damaged;
                                    a database that cannot be read is made anew from the layers

Exit status of check: 0 if nothing is wrong (any more), 125 otherwise. What it forgets is made
anew by the next build that needs it.";

/// Look after the store
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Compare the database with what is really there
    #[command(after_help = EXAMPLES)]
    Check {
        /// Put in order what is wrong
        #[arg(long)]
        repair: bool,
    },
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let Action::Check { repair } = args.action;
    let store = match common.open() {
        Err(failure) if repair && is_damaged(&failure) => {
            complain(&format!("{}", failure.error));
            rebuild(common)?;
            common.open()?
        }
        opened => opened?,
    };
    let report = store.check(repair).map_err(Failure::host);
    common.close(store);
    let report = report?;
    show(&report)?;
    let fine = report.is_clean() || (repair && report.is_repaired());
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Class::Host.status())
    })
}

/// Whether the database cannot even be opened.
fn is_damaged(failure: &Failure) -> bool {
    let error = failure.error.downcast_ref::<StoreError>();
    matches!(error, Some(StoreError::Corrupt { .. }))
}

fn rebuild(common: &Common) -> Result<(), Failure> {
    complain("making a new database from the layers and blobs; all of them are read");
    let kept = Store::rebuild(&common.store_dir()?).map_err(Failure::host)?;
    complain(&format!(
        "kept {} layers and {} other blobs; names of images, results of steps and history are lost",
        kept.layers, kept.blobs
    ));
    Ok(())
}

fn show(report: &CheckReport) -> Result<ExitCode, Failure> {
    super::print(|out| {
        for (finding, repaired) in &report.findings {
            let end = if *repaired { " (repaired)" } else { "" };
            writeln!(out, "{}{end}", clean(finding.to_string().as_bytes()))?;
        }
        let bytes = size::show(report.bytes);
        match report.findings.len() {
            0 => writeln!(out, "{} objects, {bytes}: all in order", report.objects),
            wrong => writeln!(out, "{} objects, {bytes}: {wrong} findings", report.objects),
        }
    })
}
