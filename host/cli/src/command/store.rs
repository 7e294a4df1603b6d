//! `cofferdam store`: looks after the store itself.

use std::process::ExitCode;

use ::store::CheckReport;
use clap::Subcommand;

use super::Common;
use crate::exit::{Class, Failure};
use crate::progress::clean;
use crate::size;

const EXAMPLES: &str = "\
Examples:
  cofferdam store check             compare the database with what is on disk, and hash everything
  cofferdam store check --repair    also remove what belongs to nothing and forget what is damaged

Exit status of check: 0 if nothing is wrong (any more), 125 otherwise. What it forgets is made anew by
the next build that needs it.";

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
    let store = common.open()?;
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
