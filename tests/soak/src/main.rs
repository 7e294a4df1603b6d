//! Soak: real processes build at random on one store, prune it and are killed, until the time is up.
//! Then the store must be clean, and nothing may still run.
//!
//! Everything is the product's own (engine, store, history) but the executor: steps run as processes
//! of the host, in a directory of the build, so that thousands of builds go through in a minute.
//! The same build must come to the same image each time, whoever was killed meanwhile.
//!
//! The program starts itself again in its other roles, each a process that can be killed.
#![forbid(unsafe_code)]

mod builder;
mod driver;
mod executor;
mod fill;
mod recipe;
mod tally;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Random builds that are killed at random, until something is wrong.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Drives everything else.
    Run(driver::Args),
    /// One build.
    Build(builder::Args),
    /// Makes a store with this many layers, each on top of the one before, in chains.
    Fill {
        /// The store.
        store: PathBuf,
        /// How many.
        objects: u64,
        /// What makes them others than those of another process.
        name: String,
        /// How large each is, in KiB; without, a few bytes.
        #[arg(long, default_value_t = 0)]
        kib: u64,
    },
    /// Takes a file in, as a layer.
    Ingest {
        /// The store.
        store: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// Prunes.
    Prune {
        /// The store.
        store: PathBuf,
        /// Names of images go, too.
        #[arg(long)]
        images: bool,
        /// Stop at this size, in bytes.
        #[arg(long)]
        keep: Option<u64>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().role {
        Role::Run(args) => driver::run(&args),
        Role::Build(args) => builder::run(&args),
        Role::Fill {
            store,
            objects,
            name,
            kib,
        } => fill::fill(&store, objects, &name, kib),
        Role::Ingest { store, file } => fill::ingest(&store, &file),
        Role::Prune {
            store,
            images,
            keep,
        } => builder::prune(&store, images, keep),
    };
    done.unwrap_or_else(|error| {
        tally::complain(format!("error: {error:#}"));
        ExitCode::from(builder::HOST)
    })
}
