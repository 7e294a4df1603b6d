//! `cofferdam images`: lists and removes the images in the store.

use std::collections::HashSet;
use std::process::ExitCode;

use ::store::{Image, Store};
use anyhow::Error;
use clap::Subcommand;
use jiff::Timestamp;
use oci::ImageRef;
use serde_json::json;

use super::common::Common;
use super::format::Format;
use crate::exit::{Class, Failure};
use crate::output::{message, print};
use crate::sanitize;
use crate::size;
use crate::table::{self, Align};

const EXAMPLES: &str = "\
Examples:
  cofferdam images                          list images, newest first
  cofferdam images ls --format json         one JSON object per image
  cofferdam images rm app:latest            remove an image; `cofferdam prune` then frees the space";

/// List or remove images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List images (default)
    Ls(List),
    /// Remove images
    Rm {
        /// Image names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<ImageRef>,
    },
}

/// Options of the list
#[derive(Debug, clap::Args)]
struct List {
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only print image IDs
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub(super) fn run(args: Args, common: &Common) -> Result<ExitCode, Failure> {
    let store = match args.action {
        Some(Action::Rm { .. }) => common.open_to_prune()?,
        None | Some(Action::Ls(_)) => common.open_to_inspect()?,
    };
    let done = match args.action {
        None => list(&store, &args.list),
        Some(Action::Ls(how)) => list(&store, &how),
        Some(Action::Rm { names }) => remove(&store, &names),
    };
    common.close(store);
    done
}

fn list(store: &Store, how: &List) -> Result<ExitCode, Failure> {
    let mut images = store.images().map_err(Failure::host)?;
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
    let mut sized = Vec::new();
    for image in images {
        sized.push((size_of(store, &image)?, image));
    }
    if how.quiet {
        return print(|out| {
            sized
                .iter()
                .try_for_each(|(_, image)| writeln!(out, "{}", image.config))
        });
    }
    match how.format {
        Format::Json => print(|out| {
            sized.iter().try_for_each(|(size, image)| {
                writeln!(out, "{}", sanitize::json(&object(image, *size)))
            })
        }),
        Format::Table => {
            let now = Timestamp::now().as_second();
            let rows: Vec<_> = sized
                .iter()
                .map(|(size, image)| row(image, *size, now))
                .collect();
            let columns = [
                ("NAME", Align::Left),
                ("IMAGE ID", Align::Left),
                ("CREATED", Align::Left),
                ("SIZE", Align::Right),
            ];
            print(|out| table::write(out, columns, &rows))
        }
    }
}

/// Size of an image's layers in bytes. A layer that occurs twice counts once.
fn size_of(store: &Store, image: &Image) -> Result<u64, Failure> {
    let mut seen = HashSet::new();
    let mut size = 0;
    for id in image.layers.iter().filter(|id| seen.insert(**id)) {
        size += store
            .layer(*id)
            .map_err(Failure::host)?
            .map_or(0, |layer| layer.size);
    }
    Ok(size)
}

fn row(image: &Image, bytes: u64, now: i64) -> [String; 4] {
    const ID_DIGITS: usize = 12;
    let id: String = image.config.hex().chars().take(ID_DIGITS).collect();
    [
        image.name.clone(),
        id,
        table::ago(image.created, now),
        size::show(bytes),
    ]
}

fn object(image: &Image, bytes: u64) -> serde_json::Value {
    json!({
        "name": image.name,
        "id": image.config.to_string(),
        "digest": image.manifest.to_string(),
        "created": table::rfc3339(image.created).unwrap_or_default(),
        "size": bytes,
    })
}

fn remove(store: &Store, names: &[ImageRef]) -> Result<ExitCode, Failure> {
    let mut missing = Vec::new();
    for name in names.iter().map(ToString::to_string) {
        if store.remove_image(&name).map_err(Failure::host)? {
            message(&format!("removed {name}"));
        } else {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let text = format!(
        "no such image: {}; list images with `cofferdam images`",
        missing.join(", ")
    );
    Err(Failure::new(Class::User, Error::msg(text)))
}
