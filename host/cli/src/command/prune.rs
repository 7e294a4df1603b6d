//! `cofferdam prune`: makes room.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use ::store::{
    Filter, FilterError, Item, Pin, PruneEnd, PruneOptions, PruneReport, Pruned, Removal, Store,
};
use exec::Cancel;
use launcher::disk;

use super::{Common, complain, du};
use crate::exit::{Class, Failure};
use crate::progress::clean;
use crate::table::{self, Side};
use crate::{signals, size};

const EXAMPLES: &str = "\
Examples:
  cofferdam prune                        what no named image and no running build needs
  cofferdam prune --all -f               images and logs of builds too, without asking
  cofferdam prune --until 7d             only what was not used for a week
  cofferdam prune --keep-storage 10g     the oldest first, until 10 GiB are left
  cofferdam prune --filter type=layer --filter 'description~=^RUN apt'
                                         only what was made so
  cofferdam prune --dry-run              only say what would go

A filter is until=TIME, or FIELD=VALUE, FIELD!=VALUE or FIELD~=PATTERN. Fields are id,
type (the column KIND) and description (`origin` in `cofferdam du --format json`).

What a running build uses is never taken. Sizes count in powers of 1024.";

/// The type of the disk of a builder VM, as filters and lists have it.
const DISK: &str = "disk";

/// Remove what is not needed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also images that have names, and without limits or filters caches, and the history of builds with
    /// its logs
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Only what was not used for this long, such as 24h or 7d
    #[arg(long, value_name = "TIME", value_parser = size::parse_duration)]
    until: Option<Duration>,
    /// Only what passes this; can be given more than once
    #[arg(long = "filter", value_name = "FILTER", value_parser = Wanted::parse)]
    filters: Vec<Wanted>,
    /// Stop when the store takes no more than this
    #[arg(long, alias = "max-used-space", value_name = "SIZE", value_parser = size::parse)]
    keep_storage: Option<u64>,
    /// Stop when the file system has this much room
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    min_free_space: Option<u64>,
    /// Never take the store below this
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    reserved_space: u64,
}

/// What a filter of the command line asks for.
#[derive(Debug, Clone)]
enum Wanted {
    /// Not used for this long.
    Until(Duration),
    /// Objects of some kind.
    Objects(Filter),
}

impl Wanted {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(("until" | "unused-for", time)) = text.split_once('=') {
            return size::parse_duration(time).map(Self::Until);
        }
        let filter = text.parse().map(Self::Objects);
        filter.map_err(|error: FilterError| format!("{:#}", anyhow::Error::new(error)))
    }
}

/// What the arguments ask the store for.
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
    for wanted in &args.filters {
        match wanted {
            // All filters must pass.
            Wanted::Until(time) => options.unused_for = options.unused_for.max(Some(*time)),
            Wanted::Objects(filter) => options.filters.push(filter.clone()),
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
    signals::watch(&cancel, || complain("stopping; once more to leave at once"))?;
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
        complain(&text);
    }
    explain(&report)
}

/// What is to be said if the file system has `gained` far less than was removed, in bytes.
fn shortfall(removed: u64, gained: u64) -> Option<String> {
    /// Less than this is lost among what others write meanwhile.
    const TELLING: u64 = 64 << 20;
    (removed >= TELLING && gained < removed / 2).then(|| {
        let gained = size::show(gained);
        format!(
            "the file system has only {gained} more room than before: others write to it, or still \
             have open what was removed"
        )
    })
}

fn confirmed(images: bool) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is nobody to ask; add --force to go on without asking",
        ));
    }
    let what = if images {
        "everything that no running build needs"
    } else {
        "everything that no named image and no running build needs"
    };
    complain(&format!("This removes {what} from the store. Go on? [y/N]"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Nothing is printed during the pass: a terminal that does not read must not hold it up.
fn prune(
    args: &Args,
    store: &Store,
    cancel: &Cancel,
) -> Result<(Vec<Pruned>, PruneReport), Failure> {
    let mut options = options(args);
    let mut tried = prune_disks(&options, store)?;
    let disks: u64 = tried.iter().map(freed).sum();
    let stuck: Vec<String> = tried.iter().filter_map(why_not).collect();
    if options.dry_run {
        // They are there still, and must not count a second time.
        options.max_used = options.max_used.map(|most| most.saturating_add(disks));
        options.min_free = options.min_free.map(|least| least.saturating_sub(disks));
    }
    let mut report = store
        .prune(&options, &mut |one| {
            tried.push(one.clone());
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(Failure::host)?;
    report.freed += disks;
    report.failed.extend(stuck);
    Ok((tried, report))
}

/// Disks of VMs go first: what is on them is in the store too.
pub(super) fn prune_disks(options: &PruneOptions, store: &Store) -> Result<Vec<Pruned>, Failure> {
    let mut goal = store.prune_goal(options).map_err(Failure::host)?;
    let mut tried = Vec::new();
    for disk in disk::free(&store.disks_dir()).map_err(Failure::host)? {
        let idle = disk.given_back().and_then(|since| since.elapsed().ok());
        let wanted = options.unused_for.zip(idle);
        let is_young = wanted.is_some_and(|(wanted, idle)| idle < wanted);
        if goal == 0 {
            break;
        } else if is_young || !options.takes(None, DISK, "") {
            continue;
        }
        let bytes = disk.allocated();
        let removal = if options.dry_run {
            Removal::Gone
        } else {
            match disk.remove() {
                Ok(()) => Removal::Gone,
                Err(error) => Removal::Failed(format!("{:#}", anyhow::Error::new(error))),
            }
        };
        let (digest, kind) = (None, DISK.to_owned());
        let one = Pruned {
            digest,
            kind,
            bytes,
            removal,
        };
        goal = goal.saturating_sub(freed(&one));
        tried.push(one);
    }
    Ok(tried)
}

fn why_not(one: &Pruned) -> Option<String> {
    match &one.removal {
        Removal::Failed(why) => Some(why.clone()),
        Removal::Gone | Removal::Busy(_) => None,
    }
}

pub(super) fn freed(one: &Pruned) -> u64 {
    match one.removal {
        Removal::Gone => one.bytes,
        Removal::Busy(_) | Removal::Failed(_) => 0,
    }
}

fn show(tried: &[Pruned], report: &PruneReport, dry_run: bool) -> Result<(), Failure> {
    let rows: Vec<_> = tried.iter().map(row).collect();
    let columns = [
        ("ID", Side::Left),
        ("RECLAIMABLE", Side::Left),
        ("SIZE", Side::Right),
        ("KIND", Side::Left),
    ];
    super::print(|out| {
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

/// How much of the store builds use that run, and which.
pub(super) fn in_use(report: &PruneReport) -> Option<String> {
    /// Owners that are named.
    const MOST: usize = 5;
    let bytes = sum(&report.in_use);
    let pins = report.in_use.iter().flat_map(|item| &item.pins);
    let running = pins.filter(|pin| matches!(pin, Pin::Instance { .. }));
    let owners: BTreeSet<String> = running.map(du::kept_by).collect();
    let mut named: Vec<String> = owners.iter().take(MOST).cloned().collect();
    if let Some(more) = owners.len().checked_sub(MOST).filter(|more| *more > 0) {
        named.push(format!("and {more} more"));
    }
    let owners = named.join(", ");
    (bytes > 0).then(|| format!("{} are in use ({owners})", size::show(bytes)))
}

/// How much of the store images with names keep.
fn kept(report: &PruneReport) -> Option<String> {
    let bytes = sum(&report.kept);
    let pins = report.kept.iter().flat_map(|item| &item.pins);
    let named = pins.filter(|pin| matches!(pin, Pin::Image(_)));
    let names: BTreeSet<String> = named.map(du::kept_by).collect();
    (!names.is_empty()).then(|| {
        let (bytes, n) = (size::show(bytes), names.len());
        format!(
            "{bytes} are kept for {n} image names; `cofferdam du` says which, `--all` takes them"
        )
    })
}

fn sum(items: &[Item]) -> u64 {
    items.iter().map(|item| item.allocated).sum()
}

/// Says what stayed and why, and decides the exit status.
fn explain(report: &PruneReport) -> Result<ExitCode, Failure> {
    for trouble in &report.failed {
        complain(&format!("could not remove {}", clean(trouble.as_bytes())));
    }
    for text in in_use(report).into_iter().chain(kept(report)) {
        complain(&text);
    }
    match report.end {
        PruneEnd::Complete if report.failed.is_empty() => Ok(ExitCode::SUCCESS),
        PruneEnd::Complete => Ok(ExitCode::from(Class::Host.status())),
        PruneEnd::Incomplete => {
            complain("less could be freed than was asked for");
            Ok(ExitCode::from(Class::Host.status()))
        }
        PruneEnd::Cancelled => Ok(ExitCode::from(Class::Cancelled.status())),
        PruneEnd::AlreadyRunning => {
            complain("another process is pruning this store already");
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prune_that_gave_no_room_says_so() {
        const MIB: u64 = 1 << 20;
        assert_eq!(shortfall(0, 0), None);
        assert_eq!(shortfall(63 * MIB, 0), None);
        assert_eq!(shortfall(100 * MIB, 50 * MIB), None);
        let text = shortfall(100 * MIB, 49 * MIB).unwrap();
        assert!(text.contains("only 49.0MiB more"), "{text}");
    }

    #[test]
    fn filters_are_read_and_the_longest_time_counts() {
        let parse = |text: &str| Wanted::parse(text);
        assert!(matches!(parse("until=1h"), Ok(Wanted::Until(time)) if time.as_secs() == 3600));
        assert!(matches!(parse("unused-for=2h"), Ok(Wanted::Until(_))));
        assert!(matches!(parse("type=layer"), Ok(Wanted::Objects(_))));
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
