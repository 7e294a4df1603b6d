//! `cofferdam du`: what the store takes, and who keeps what.

use std::io::{self, Write};
use std::process::ExitCode;

use ::store::{Item, Pin, Store, Usage};
use jiff::Timestamp;
use launcher::disk::{self, FreeDisk};
use serde_json::{Value, json};

use super::Common;
use super::images::Format;
use crate::exit::Failure;
use crate::progress::clean;
use crate::size;
use crate::table::{self, Side};

const EXAMPLES: &str = "\
Examples:
  cofferdam du                   every object with what keeps it, then the sums
  cofferdam du --format json     for programs: an object for each item, then one with the sums

The total is what the store takes on disk, everything counted: database, disks of builder VMs, logs.";

/// Show what the store takes on disk
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Form of the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let store = common.open_to_look()?;
    let usage = look(&store);
    common.close(store);
    let usage = usage?;
    super::print(|out| match args.format {
        Format::Table => table(out, &usage),
        Format::Json => {
            usage
                .items
                .iter()
                .try_for_each(|item| writeln!(out, "{}", object(item)))?;
            writeln!(out, "{}", sums(&usage))
        }
    })
}

/// What takes room, with the disks of VMs that no build has among what can go.
fn look(store: &Store) -> Result<Usage, Failure> {
    let mut usage = store.du().map_err(Failure::host)?;
    let idle = disk::free(&store.disks_dir()).map_err(Failure::host)?;
    usage.reclaimable += idle.iter().map(FreeDisk::allocated).sum::<u64>();
    Ok(usage)
}

fn table(out: &mut dyn Write, usage: &Usage) -> io::Result<()> {
    let now = Timestamp::now().as_second();
    let rows: Vec<_> = usage.items.iter().map(|item| row(item, now)).collect();
    let columns = [
        ("ID", Side::Left),
        ("RECLAIMABLE", Side::Left),
        ("SIZE", Side::Right),
        ("LAST ACCESSED", Side::Left),
        ("KIND", Side::Left),
        ("KEPT BY", Side::Left),
    ];
    table::write(out, columns, &rows)?;
    let parts = [
        ("Layers and blobs:", usage.blobs),
        ("Indexes:", usage.indexes),
        ("Database:", usage.database),
        ("Disks of VMs:", usage.disks),
        ("Logs:", usage.logs),
        ("Scratch:", usage.scratch),
        ("Caches:", usage.caches),
        ("Reclaimable:", usage.reclaimable),
        ("Total:", usage.total),
    ];
    writeln!(out)?;
    parts
        .iter()
        .try_for_each(|(name, bytes)| writeln!(out, "{name:<18}{:>10}", size::show(*bytes)))
}

fn row(item: &Item, now: i64) -> [String; 6] {
    const ID_DIGITS: usize = 12;
    [
        item.digest.hex().chars().take(ID_DIGITS).collect(),
        item.pins.is_empty().to_string(),
        size::show(item.allocated),
        table::ago(item.used, now),
        item.kind.clone(),
        item.pins.first().map(kept_by).unwrap_or_default(),
    ]
}

/// Why something stays, in a few words.
pub(super) fn kept_by(pin: &Pin) -> String {
    match pin {
        Pin::Instance { command, .. } => format!("running: {}", clean(command.as_bytes())),
        Pin::Image(name) => format!("image {name}"),
        Pin::Child(digest) => {
            let id: String = digest.hex().chars().take(12).collect();
            format!("layer {id} above it")
        }
    }
}

fn object(item: &Item) -> Value {
    json!({
        "id": item.digest.to_string(),
        "kind": item.kind,
        "origin": item.origin,
        "reclaimable": item.pins.is_empty(),
        "size": item.size,
        "allocated": item.allocated,
        "created": table::rfc3339(item.created),
        "used": table::rfc3339(item.used),
        "kept_by": item.pins.iter().map(kept_by).collect::<Vec<_>>(),
    })
}

fn sums(usage: &Usage) -> Value {
    json!({
        "total": usage.total,
        "reclaimable": usage.reclaimable,
        "blobs": usage.blobs,
        "indexes": usage.indexes,
        "database": usage.database,
        "disks": usage.disks,
        "logs": usage.logs,
        "scratch": usage.scratch,
        "caches": usage.caches,
    })
}
