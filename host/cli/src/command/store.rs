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
  cofferdam store check             compare the database with what is on disk, with the VMs that run,
                                    and hash everything
  cofferdam store check --repair    also remove what belongs to nothing and forget what is damaged;
                                    a database that is damaged is made anew from the layers

Exit status of check: 0 if nothing is wrong (any more), 125 otherwise. What is damaged is made
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
    let looked = look(repair, common);
    let damage = match &looked {
        Err(failure) if is_damaged(failure) => Some(format!("{:#}", failure.error)),
        Err(_) => None,
        Ok((_, report)) => report.database_damage().map(ToString::to_string),
    };
    let (vms, report) = match damage {
        Some(damage) if repair => {
            complain(&damage);
            rebuild(common)?;
            look(repair, common)?
        }
        Some(_) | None => looked?,
    };
    show(&vms, &report)?;
    let are_mended = vms.iter().all(|(_, mended)| *mended);
    let fine = (report.is_clean() || (repair && report.is_repaired())) && are_mended;
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Class::Host.status())
    })
}

/// What is wrong with VMs, and with the store.
type Looked = (Vec<(launcher::Finding, bool)>, CheckReport);

fn look(repair: bool, common: &Common) -> Result<Looked, Failure> {
    let store = if repair {
        common.open_to_prune()?
    } else {
        common.open_to_look()?
    };
    let vms = launcher::audit(&store, repair).map_err(Failure::host);
    let report = store.check(repair).map_err(Failure::host);
    common.close(store);
    Ok((vms?, report?))
}

/// Whether the database cannot be read.
fn is_damaged(failure: &Failure) -> bool {
    let error = failure.error.downcast_ref::<StoreError>();
    matches!(error, Some(StoreError::Corrupt { .. }))
}

fn rebuild(common: &Common) -> Result<(), Failure> {
    complain("making a new database from the layers and blobs; all of them are read");
    let kept = Store::rebuild(&common.store_dir()?).map_err(Failure::host)?;
    complain(&format!(
        "kept {} layers, {} other blobs and the logs of {} builds; names of images, results of steps \
         and the rest of the history are lost",
        kept.layers, kept.blobs, kept.builds
    ));
    Ok(())
}

fn show(vms: &[(launcher::Finding, bool)], report: &CheckReport) -> Result<ExitCode, Failure> {
    let vms = vms.iter().map(|(what, done)| (what.to_string(), *done));
    let rows = report.findings.iter();
    let rows = rows.map(|(what, done)| (what.to_string(), *done));
    let findings: Vec<(String, bool)> = vms.chain(rows).collect();
    super::print(|out| {
        for (finding, repaired) in &findings {
            let end = if *repaired { " (repaired)" } else { "" };
            writeln!(out, "{}{end}", clean(finding.as_bytes()))?;
        }
        let bytes = size::show(report.bytes);
        match findings.len() {
            0 => writeln!(out, "{} objects, {bytes}: all in order", report.objects),
            wrong => writeln!(out, "{} objects, {bytes}: {wrong} findings", report.objects),
        }
    })
}
