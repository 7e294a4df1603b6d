//! `cofferdam store`: checks and repairs the store.

use std::process::ExitCode;

use ::store::{CheckReport, Store, StoreError};
use clap::Subcommand;

use super::common::Common;
use crate::exit::{Class, Failure};
use crate::output::{message, print};
use crate::sanitize::sanitize;
use crate::size;

const EXAMPLES: &str = "\
Examples:
  cofferdam store check             verify the database, all files of the store and running VMs
  cofferdam store check --repair    also remove orphaned and damaged files; rebuild a damaged
                                    database from the layers

Exit status: 0 if no problems were found or all were repaired, 125 otherwise. Builds recreate
damaged results when they need them.";

/// Check and repair the store
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Verify the database, all files of the store and running VMs
    #[command(after_help = EXAMPLES)]
    Check {
        /// Repair the problems found
        #[arg(long)]
        repair: bool,
    },
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let Action::Check { repair } = args.action;
    let checked = check(repair, common);
    let damage = match &checked {
        Err(failure) if is_damaged(failure) => Some(format!("{:#}", failure.error)),
        Err(_) => None,
        Ok((_, report)) => report.database_damage().map(ToString::to_string),
    };
    let (vms, report) = match damage {
        Some(damage) if repair => {
            message(&damage);
            rebuild(common)?;
            check(repair, common)?
        }
        Some(_) | None => checked?,
    };
    show(&vms, &report)?;
    let vms_are_fine = vms.iter().all(|(_, repaired)| *repaired);
    let store_is_fine = report.is_clean() || (repair && report.is_repaired());
    if vms_are_fine && store_is_fine {
        return Ok(ExitCode::SUCCESS);
    }
    if !repair {
        message("repair it with `cofferdam store check --repair`");
    }
    Ok(ExitCode::from(Class::Host.status()))
}

/// Problems with VMs, each with whether it was repaired, and the report on the store.
type Checked = (Vec<(launcher::Finding, bool)>, CheckReport);

fn check(repair: bool, common: &Common) -> Result<Checked, Failure> {
    let store = if repair {
        common.open_to_prune()?
    } else {
        common.open_to_inspect()?
    };
    let vms = launcher::audit(&store, repair).map_err(Failure::host);
    let report = store.check(repair).map_err(Failure::host);
    common.close(store);
    Ok((vms?, report?))
}

/// Whether the database is damaged.
fn is_damaged(failure: &Failure) -> bool {
    let error = failure.error.downcast_ref::<StoreError>();
    matches!(error, Some(StoreError::Corrupt { .. }))
}

fn rebuild(common: &Common) -> Result<(), Failure> {
    message("rebuilding the database from the layers and blobs; this reads all of them");
    let kept = Store::rebuild(&common.store_dir()?).map_err(Failure::host)?;
    message(&format!(
        "recovered {} layers, {} other blobs and the logs of {} builds; lost image names, step results \
         and the rest of the build history",
        kept.layers, kept.blobs, kept.builds
    ));
    Ok(())
}

fn show(vms: &[(launcher::Finding, bool)], report: &CheckReport) -> Result<ExitCode, Failure> {
    let vms = vms.iter().map(|(what, done)| (what.to_string(), *done));
    let rows = report.findings.iter();
    let rows = rows.map(|(what, done)| (what.to_string(), *done));
    let findings: Vec<(String, bool)> = vms.chain(rows).collect();
    print(|out| {
        for (finding, repaired) in &findings {
            let end = if *repaired { " (repaired)" } else { "" };
            writeln!(out, "{}{end}", sanitize(finding.as_bytes()))?;
        }
        let bytes = size::show(report.bytes);
        let problems = match findings.len() {
            0 => "no problems".to_owned(),
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        };
        writeln!(out, "{} objects, {bytes}: {problems} found", report.objects)
    })
}
