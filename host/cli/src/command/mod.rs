//! The commands, one file each.

mod build;
mod doctor;
mod images;
mod version;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ::store::{OpenOptions, Store};

use crate::exit::{Class, Failure};
use crate::{logging, places};

/// Builds container images in a disposable virtual machine: no daemon, no root, any Dockerfile.
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam",
    version,
    disable_help_subcommand = true,
    after_help = EXAMPLES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Directory of the store [default: cofferdam in $XDG_DATA_HOME]
    #[arg(long, global = true, value_name = "DIR", env = "COFFERDAM_STORE", hide_env_values = true)]
    store: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  cofferdam build -t app .                     build the Dockerfile here, keep the image as app:latest
  cofferdam build -o type=oci,dest=app.tar .   write the image as an OCI archive
  cofferdam images                             what was built
  cofferdam prune                              make room
  cofferdam doctor                             what this machine lacks

Exit status: 0 success, 1 the build failed, 2 wrong usage, 124 a limit was reached, 125 the host or
the VM failed, 130 cancelled.";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "b")]
    Build(Box<build::Args>),
    Images(images::Args),
    Doctor(doctor::Args),
    Version(version::Args),
}

/// What a command has of the common options.
#[derive(Debug)]
struct Common {
    store: Option<PathBuf>,
    /// For messages of other processes about this one.
    line: String,
}

impl Common {
    fn store_dir(&self) -> Result<PathBuf, Failure> {
        places::store(self.store.as_deref())
    }

    /// Opens the store for writing.
    fn open(&self) -> Result<Store, Failure> {
        self.open_as(false)
    }

    fn open_as(&self, read_only: bool) -> Result<Store, Failure> {
        let options = OpenOptions { command: self.line.clone(), read_only };
        Store::open(&self.store_dir()?, &options).map_err(Failure::host)
    }

    /// Leaves the store. If that fails, the next command settles it.
    fn close(&self, store: Store) {
        if let Err(error) = store.close() {
            log::warn!("{}: cannot leave the store in order: {error}", self.line);
        }
    }
}

/// Runs the program.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if args.get(1).is_some_and(|first| first == launcher::monitor::COMMAND) {
        return become_monitor(args.into_iter().skip(2));
    }
    logging::start();
    let line = command_line(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let common = Common { store: cli.store, line };
    let done = match cli.command {
        Command::Build(args) => build::run(&args, &common),
        Command::Images(args) => images::run(args, &common),
        Command::Doctor(args) => doctor::run(&args, &common),
        Command::Version(args) => version::run(&args),
    };
    done.unwrap_or_else(|failure| report(&failure))
}

/// The VM's monitor is started through this program, so that it ends with it.
fn become_monitor(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = launcher::monitor::become_monitor(args);
    complain(&format!("cannot start the VM's monitor: {error}"));
    ExitCode::from(Class::Host.status())
}

/// Prints what clap has to say: help to standard output, mistakes to standard error.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed output changes nothing.
    error.print().ok();
    if error.use_stderr() { ExitCode::from(Class::Usage.status()) } else { ExitCode::SUCCESS }
}

fn report(failure: &Failure) -> ExitCode {
    for line in failure.lines() {
        complain(&line);
    }
    ExitCode::from(failure.class.status())
}

/// Writes a line to standard error.
fn complain(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Writes data to standard output. A reader that has gone has read enough: that is success.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<ExitCode, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::host(anyhow::Error::new(error).context("cannot write to standard output")))
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// The command line, for people; at most a line or two of it.
fn command_line(args: &[OsString]) -> String {
    const MOST: usize = 200;
    let name = |arg: &OsString| Path::new(arg).file_name().map(|name| name.to_string_lossy().into_owned());
    let mut words: Vec<String> = args.first().and_then(name).into_iter().collect();
    words.extend(args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ").chars().take(MOST).collect()
}
