//! `cofferdam prune`: removes unused build cache.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use ::store::{
    Filter, FilterError, Item, Pin, PruneEnd, PruneOptions, PruneReport, Pruned, Removal, Store,
};
use exec::Cancel;

use super::common::Common;
use super::du;
use crate::exit::{Class, Failure};
use crate::output::{message, print};
use crate::sanitize::sanitize;
use crate::table::{self, Align};
use crate::{signals, size};

const EXAMPLES: &str = "\
Examples:
  cofferdam prune                        remove cache that no image and no running build uses
  cofferdam prune --all -f               also remove images and history, without confirmation
  cofferdam prune --until 7d             remove cache not used for a week
  cofferdam prune --keep-storage 10g     remove the oldest cache until 10 GiB are left
  cofferdam prune --filter type=layer --filter 'description~=^RUN apt'
                                         remove only matching cache
  cofferdam prune --dry-run              show what would be removed

A filter is until=TIME, FIELD=VALUE, FIELD!=VALUE or FIELD~=PATTERN. FIELD is id, type (the
column KIND) or description (`origin` in `cofferdam du --format json`).

Cache in use by running builds is never removed. Sizes are in powers of 1024.";

/// Remove unused build cache
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also remove images. Without limits or filters, also remove the build history, its logs and all
    /// other caches
    #[arg(short, long)]
    all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Show what would be removed without removing it
    #[arg(long)]
    dry_run: bool,
    /// Only remove cache not used for TIME, for example 24h or 7d
    #[arg(long, value_name = "TIME", value_parser = size::parse_duration)]
    until: Option<Duration>,
    /// Only remove cache that matches FILTER; repeatable
    #[arg(long = "filter", value_name = "FILTER", value_parser = FilterArg::parse)]
    filters: Vec<FilterArg>,
    /// Prune until the store uses at most SIZE
    #[arg(long, alias = "max-used-space", value_name = "SIZE", value_parser = size::parse)]
    keep_storage: Option<u64>,
    /// Prune until SIZE of disk space is free
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    min_free_space: Option<u64>,
    /// Never shrink the store below SIZE
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    reserved_space: u64,
}

/// A value of `--filter`.
#[derive(Debug, Clone)]
enum FilterArg {
    /// Objects not used for this long.
    Until(Duration),
    /// Objects with matching properties.
    Objects(Filter),
}

impl FilterArg {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(("until" | "unused-for", time)) = text.split_once('=') {
            return size::parse_duration(time).map(Self::Until);
        }
        let filter = text.parse().map(Self::Objects);
        filter.map_err(|error: FilterError| format!("{:#}", anyhow::Error::new(error)))
    }
}

/// The prune options of the store that the arguments describe.
fn options(args: &Args) -> PruneOptions {
    let mut options = PruneOptions {
        images: args.all,
        unused_for: args.until,
        filters: Vec::new(),
        max_used: args.keep_storage,
        min_free: args.min_free_space,
        reserved: args.reserved_space,
        dry_run: args.dry_run,
    };
    for filter in &args.filters {
        match filter {
            // All filters must match, so the longest time counts.
            FilterArg::Until(time) => options.unused_for = options.unused_for.max(Some(*time)),
            FilterArg::Objects(filter) => options.filters.push(filter.clone()),
        }
    }
    options
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    if !args.dry_run && !args.force && !confirmed(args.all)? {
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = Cancel::new();
    signals::watch(&cancel, || {
        message("stopping; press Ctrl-C again to exit immediately");
    })?;
    let store = common.open_to_prune()?;
    let free = || store.space().map(|space| space.free).map_err(Failure::host);
    let before = free()?;
    let done = prune(args, &store, &cancel).and_then(|done| Ok((done, free()?)));
    common.close(store);
    let ((tried, report), after) = done?;
    show(&tried, &report, args.dry_run)?;
    if !args.dry_run
        && let Some(text) = shortfall(report.freed, after.saturating_sub(before))
    {
        message(&text);
    }
    explain(&report)
}

/// The warning if free space has grown by far less than was removed. Both are in bytes.
fn shortfall(removed: u64, gained: u64) -> Option<String> {
    /// Below this, the difference may come from other writers.
    const THRESHOLD: u64 = 64 << 20;
    (removed >= THRESHOLD && gained < removed / 2).then(|| {
        let gained = size::show(gained);
        format!(
            "free disk space grew by only {gained}; other processes may be writing to the disk or \
             holding deleted files open"
        )
    })
}

fn confirmed(images: bool) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "cannot prompt for confirmation without a terminal; use --force",
        ));
    }
    let what = if images {
        "all images and all build cache that no running build uses"
    } else {
        "all build cache that no image and no running build uses"
    };
    message(&format!(
        "WARNING! This will remove {what}. Are you sure you want to continue? [y/N]"
    ));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Prints nothing while pruning, so that a stopped terminal cannot block it.
fn prune(
    args: &Args,
    store: &Store,
    cancel: &Cancel,
) -> Result<(Vec<Pruned>, PruneReport), Failure> {
    let mut tried = Vec::new();
    let report = store
        .prune(&options(args), &mut |one| {
            tried.push(one.clone());
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(Failure::host)?;
    Ok((tried, report))
}

fn show(tried: &[Pruned], report: &PruneReport, dry_run: bool) -> Result<(), Failure> {
    let rows: Vec<_> = tried.iter().map(row).collect();
    let columns = [
        ("ID", Align::Left),
        ("RECLAIMABLE", Align::Left),
        ("SIZE", Align::Right),
        ("KIND", Align::Left),
    ];
    print(|out| {
        if !rows.is_empty() {
            table::write(out, columns, &rows)?;
        }
        let word = if dry_run { "Would free:" } else { "Total:" };
        writeln!(out, "{word}\t{}", size::show(report.freed))
    })?;
    Ok(())
}

fn row(one: &Pruned) -> [String; 4] {
    const ID_DIGITS: usize = 12;
    let id = one
        .digest
        .map(|digest| digest.hex().chars().take(ID_DIGITS).collect());
    let gone = match &one.removal {
        Removal::Gone => "true",
        Removal::Busy(_) | Removal::Failed(_) => "false",
    };
    [
        id.unwrap_or_default(),
        gone.into(),
        size::show(one.bytes),
        one.kind.clone(),
    ]
}

/// How much of the store running builds use, and which builds.
pub(super) fn in_use(report: &PruneReport) -> Option<String> {
    /// Builds that are named.
    const MAX_NAMED: usize = 5;
    let bytes = sum(&report.in_use);
    let pins = report.in_use.iter().flat_map(|item| &item.pins);
    let running = pins.filter(|pin| matches!(pin, Pin::Instance { .. }));
    let owners: BTreeSet<String> = running.map(du::kept_by).collect();
    let mut named: Vec<String> = owners.iter().take(MAX_NAMED).cloned().collect();
    if let Some(more) = owners.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        named.push(format!("and {more} more"));
    }
    let owners = named.join(", ");
    (bytes > 0).then(|| format!("{} in use ({owners})", size::show(bytes)))
}

/// How much of the store images keep.
fn kept(report: &PruneReport) -> Option<String> {
    let bytes = sum(&report.kept);
    let pins = report.kept.iter().flat_map(|item| &item.pins);
    let named = pins.filter(|pin| matches!(pin, Pin::Image(_)));
    let names: BTreeSet<String> = named.map(du::kept_by).collect();
    (!names.is_empty()).then(|| {
        let bytes = size::show(bytes);
        let names = match names.len() {
            1 => "1 image name".to_owned(),
            n => format!("{n} image names"),
        };
        format!("{bytes} kept by {names}; list them with `cofferdam du`, remove them with --all")
    })
}

fn sum(items: &[Item]) -> u64 {
    items.iter().map(|item| item.allocated).sum()
}

/// Prints what was kept and why, and returns the exit status.
fn explain(report: &PruneReport) -> Result<ExitCode, Failure> {
    for error in &report.failed {
        message(&format!("cannot remove {}", sanitize(error.as_bytes())));
    }
    for text in in_use(report).into_iter().chain(kept(report)) {
        message(&text);
    }
    match report.end {
        PruneEnd::Complete if report.failed.is_empty() => Ok(ExitCode::SUCCESS),
        PruneEnd::Complete => Ok(ExitCode::from(Class::Host.status())),
        PruneEnd::Incomplete => {
            message(
                "could not free as much disk space as requested; list what uses it with `cofferdam du`",
            );
            Ok(ExitCode::from(Class::Host.status()))
        }
        PruneEnd::Cancelled => Ok(ExitCode::from(Class::Cancelled.status())),
        PruneEnd::AlreadyRunning => {
            message("another process is pruning this store; try again later");
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prune_that_freed_no_space_warns() {
        const MIB: u64 = 1 << 20;
        assert_eq!(shortfall(0, 0), None);
        assert_eq!(shortfall(63 * MIB, 0), None);
        assert_eq!(shortfall(100 * MIB, 50 * MIB), None);
        let text = shortfall(100 * MIB, 49 * MIB).unwrap();
        assert!(text.contains("only 49.0MiB"), "{text}");
    }

    #[test]
    fn filters_are_parsed_and_the_longest_time_counts() {
        let parse = |text: &str| FilterArg::parse(text);
        assert!(matches!(parse("until=1h"), Ok(FilterArg::Until(time)) if time.as_secs() == 3600));
        assert!(matches!(parse("unused-for=2h"), Ok(FilterArg::Until(_))));
        assert!(matches!(parse("type=layer"), Ok(FilterArg::Objects(_))));
        for wrong in ["until=soon", "private", "size=3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let args = Args {
            all: false,
            force: true,
            dry_run: false,
            until: Some(Duration::from_secs(60)),
            filters: ["until=1h", "id=ab", "until=30m"]
                .map(|text| parse(text).unwrap())
                .into(),
            keep_storage: None,
            min_free_space: None,
            reserved_space: 0,
        };
        let options = options(&args);
        assert_eq!(options.unused_for, Some(Duration::from_secs(3600)));
        assert_eq!(options.filters.len(), 1);
    }
}
