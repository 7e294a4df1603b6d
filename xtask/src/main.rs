//! Automation of cofferdam's development: `cargo xtask COMMAND`.
//!
//! One file per command. Commands install what they need where they may (as root on Debian) and
//! otherwise say which packages are missing and how to get them.
#![forbid(unsafe_code)]

mod image;
mod shell;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of cofferdam's development.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Image(image::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Image(args) => image::run(&args),
    };
    done.map_or_else(
        |error| {
            shell::complain(format!("error: {error:#}"));
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
