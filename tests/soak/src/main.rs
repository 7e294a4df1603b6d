//! Soak test: processes build at random on one store, prune it and are killed, until the time is up.
//! Then the store must be clean, and no build may still count as running.
//!
//! Everything is the product's own (engine, store, history) except the executor: steps run as
//! processes of the host, in a directory of the build, so that a minute is enough for thousands of
//! builds. The same build must give the same image each time, whatever was killed meanwhile.
//!
//! The program starts itself again in its other roles, each a process that can be killed.
//!
//! | module | what it is |
//! |---|---|
//! | `driver` | starts, kills and checks the other processes |
//! | `builder` | one build or one prune |
//! | `executor` | runs steps as processes of the host |
//! | `recipe` | the builds to choose from |
//! | `fill` | stores of any size, for benchmarks |
//! | `counters` | what happened, in numbers |
#![forbid(unsafe_code)]

mod builder;
mod counters;
mod driver;
mod executor;
mod fill;
mod recipe;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Random builds that are killed at random, until the time is up or a check fails.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Starts, kills and checks the other processes.
    Run(driver::Args),
    /// One build.
    Build(builder::Args),
    /// Creates a store with this many layers, in chains.
    Fill {
        /// The store.
        store: PathBuf,
        /// The number of layers.
        objects: u64,
        /// A text that makes them different from those of another process.
        name: String,
        /// The size of each in KiB [default: a few bytes].
        #[arg(long, default_value_t = 0)]
        kib: u64,
    },
    /// Ingests a file as a layer.
    Ingest {
        /// The store.
        store: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// Prunes the store.
    Prune {
        /// The store.
        store: PathBuf,
        /// Remove the names of images too.
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
        counters::complain(format!("error: {error:#}"));
        ExitCode::from(builder::HOST)
    })
}
