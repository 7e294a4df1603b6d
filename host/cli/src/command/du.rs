//! `cofferdam du`: disk usage of the store, and what keeps each object.

use std::io::{self, Write};
use std::process::ExitCode;

use ::store::{Item, Pin, Usage};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::common::Common;
use super::format::Format;
use crate::exit::Failure;
use crate::output::print;
use crate::sanitize::{self, sanitize};
use crate::size;
use crate::table::{self, Align};

const EXAMPLES: &str = "\
Examples:
  cofferdam du                   list all objects and what keeps them, then the totals
  cofferdam du --format json     one JSON object per item, then one with the totals

The total is the disk usage of the whole store, including the database and logs, and the disks of VMs that run.";

/// Show disk usage of the store
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let store = common.open_to_inspect()?;
    let usage = store.du().map_err(Failure::host);
    common.close(store);
    let usage = usage?;
    print(|out| match args.format {
        Format::Table => table(out, &usage),
        Format::Json => {
            usage
                .items
                .iter()
                .try_for_each(|item| writeln!(out, "{}", sanitize::json(&object(item))))?;
            writeln!(out, "{}", sums(&usage))
        }
    })
}

fn table(out: &mut dyn Write, usage: &Usage) -> io::Result<()> {
    let now = Timestamp::now().as_second();
    let rows: Vec<_> = usage.items.iter().map(|item| row(item, now)).collect();
    let columns = [
        ("ID", Align::Left),
        ("RECLAIMABLE", Align::Left),
        ("SIZE", Align::Right),
        ("LAST ACCESSED", Align::Left),
        ("KIND", Align::Left),
        ("KEPT BY", Align::Left),
    ];
    table::write(out, columns, &rows)?;
    let parts = [
        ("Layers and blobs:", usage.blobs),
        ("Indexes:", usage.indexes),
        ("Database:", usage.database),
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

/// Why an object is kept, in a few words.
pub(super) fn kept_by(pin: &Pin) -> String {
    match pin {
        Pin::Instance { command, .. } => format!("running: {}", sanitize(command.as_bytes())),
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
        "logs": usage.logs,
        "scratch": usage.scratch,
        "caches": usage.caches,
    })
}
