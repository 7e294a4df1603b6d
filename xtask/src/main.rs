//! Automation of cofferdam's development: `cargo xtask COMMAND`.
//!
//! One file per command. Commands install what they need where they may (as root on Debian) and
//! otherwise say which packages are missing and how to get them.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod demo;
#[cfg(test)]
mod folders;
mod fuzz;
mod image;
mod lint;
mod peers;
mod requirements;
mod runner;
mod setup;
mod shell;
mod soak;
mod test;
#[cfg(test)]
mod tidy;
mod tools;
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
    Demo(demo::Args),
    Test(test::Args),
    VmTest(test::VmArgs),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Soak(soak::Args),
    Lint(lint::Args),
    /// What CI runs: lint, then test.
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Image(args) => image::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => test::run_vm(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Ci => lint::run(&lint::Args {}).and_then(|()| test::run(&test::Args::default())),
    };
    done.map_or_else(
        |error| {
            shell::complain(format!("error: {error:#}"));
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
