//! The commands, one file each: the options, whose doc comments are the help, and `run`.
//!
//! [`main`] parses the command line, runs the command and turns its result into an exit status.

mod build;
mod common;
mod doctor;
mod du;
mod format;
mod history;
mod images;
mod prune;
mod store;
mod version;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Class, Failure};
use crate::logging;
use crate::output::message;
use common::Common;

/// Build container images in a disposable virtual machine, without a daemon and without root
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
    /// Store directory [default: $XDG_DATA_HOME/cofferdam]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "COFFERDAM_STORE",
        hide_env_values = true
    )]
    store: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  cofferdam build -t app .                     build ./Dockerfile and tag the image app:latest
  cofferdam build -o type=oci,dest=app.tar .   build and export an OCI archive
  cofferdam images                             list images
  cofferdam prune                              remove unused build cache
  cofferdam doctor                             check that this machine can run builds

Exit status: 0 success, 1 build or input error, 2 invalid command line, 3 `build --rebuild` found a
different result, 124 limit exceeded, 125 the host or the VM failed, 130 cancelled.";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "b")]
    Build(Box<build::Args>),
    Images(images::Args),
    Du(du::Args),
    Prune(prune::Args),
    History(history::Args),
    Store(store::Args),
    Doctor(doctor::Args),
    Version(version::Args),
}

/// Runs the command that `args` name, or the VM monitor.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if args
        .get(1)
        .is_some_and(|first| first == launcher::monitor::COMMAND)
    {
        return become_monitor(args.into_iter().skip(2));
    }
    logging::start();
    let line = command_line(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let common = Common {
        store: cli.store,
        line,
    };
    let done = match cli.command {
        Command::Build(args) => build::run(&args, &common),
        Command::Images(args) => images::run(args, &common),
        Command::Du(args) => du::run(&args, &common),
        Command::Prune(args) => prune::run(&args, &common),
        Command::History(args) => history::run(args, &common),
        Command::Store(args) => store::run(&args, &common),
        Command::Doctor(args) => doctor::run(&args, &common),
        Command::Version(args) => version::run(&args),
    };
    done.unwrap_or_else(|failure| report(&failure))
}

/// Replaces this process by the VM monitor. The program starts the monitor through itself, so that the
/// monitor ends with it.
fn become_monitor(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = launcher::monitor::become_monitor(args);
    message(&format!("cannot start the VM monitor: {error}"));
    ExitCode::from(Class::Host.status())
}

/// Prints the message of clap: help on standard output, errors on standard error.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed output does not change the exit status.
    error.print().ok();
    if error.use_stderr() {
        ExitCode::from(Class::Usage.status())
    } else {
        ExitCode::SUCCESS
    }
}

fn report(failure: &Failure) -> ExitCode {
    for line in failure.lines() {
        message(&line);
    }
    ExitCode::from(failure.class.status())
}

/// The command line for display, shortened, without the values of build arguments.
fn command_line(args: &[OsString]) -> String {
    const MAX_CHARS: usize = 200;
    let name = |arg: &OsString| {
        Path::new(arg)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let mut words: Vec<String> = args.first().and_then(name).into_iter().collect();
    for arg in args.iter().skip(1) {
        let mut word = arg.to_string_lossy().into_owned();
        let (option, argument) = match word.split_once('=') {
            Some((BUILD_ARG, argument)) => (BUILD_ARG.len() + 1, Some(argument)),
            _ if words.last().is_some_and(|word| word == BUILD_ARG) => (0, Some(word.as_str())),
            _ => (0, None),
        };
        // The value may be a secret.
        if let Some((name, value)) = argument.and_then(|argument| argument.split_once('='))
            && !value.is_empty()
        {
            word.truncate(option + name.len() + 1);
            word.push('…');
        }
        words.push(word);
    }
    words.join(" ").chars().take(MAX_CHARS).collect()
}

const BUILD_ARG: &str = "--build-arg";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(words: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("cofferdam").chain(words.split_whitespace()))
    }

    /// The help of all commands.
    fn help() -> String {
        let mut program = Cli::command().term_width(100);
        program.build();
        let mut pages = String::new();
        let mut pending = vec![program];
        while let Some(mut command) = pending.pop() {
            let page = command.render_help().to_string();
            let lines = page
                .lines()
                .map(str::trim_end)
                .collect::<Vec<_>>()
                .join("\n");
            pages.push_str(&format!(
                "==== {}\n{lines}\n\n",
                command.get_bin_name().unwrap_or("")
            ));
            let mut below: Vec<_> = command.get_subcommands().cloned().collect();
            below.reverse();
            pending.extend(below);
        }
        pages
    }

    #[test]
    fn the_option_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_matches_the_snapshot() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/command/help.txt");
        let snapshot = std::fs::read_to_string(path).unwrap_or_default();
        let now = help();
        // Set this variable to accept the new text.
        if std::env::var_os("COFFERDAM_BLESS").is_some() {
            std::fs::write(path, &now).unwrap();
        } else {
            assert_eq!(
                now, snapshot,
                "if the change is intended, run the test with COFFERDAM_BLESS=1"
            );
        }
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let examples = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let fine = examples.contains("cofferdam ") || command.get_name() == "version";
            assert!(fine, "the help of {} has no example", command.get_name());
        }
    }

    #[test]
    fn common_command_lines_are_accepted() {
        for words in [
            "build .",
            "b -t a -t b:2 -f x/Dockerfile --build-arg A=1 --build-arg B --target t .",
            "build --explain --rebuild .",
            "build --rebuild=strict --explain .",
            "build --no-cache --pull --label a=b --label c -q --platform linux/amd64 .",
            "build -o out -o type=oci,dest=a.tar -o - --progress plain -",
            "build --add-host a:10.0.0.1,b:10.0.0.2 --network none --jobs 4 -m 2g --cpus 2 .",
            "build --accel tcg --transport ring --vsock d,uds=u --iidfile i --metadata-file m --vm-image v --store s .",
            "build --build-context base=oci-layout:///a:1 .",
            "images",
            "images ls --format json",
            "images rm a b:1",
            "du --format json",
            "prune --all -f --until 24h --keep-storage 10g --dry-run",
            "history ls --format json",
            "history logs ^1",
            "history rm 3 4",
            "store check --repair",
            "doctor --boot --json",
            "version",
        ] {
            assert!(
                parse(words).is_ok(),
                "{words}: {}",
                parse(words).unwrap_err()
            );
        }
    }

    #[test]
    fn invalid_command_lines_are_rejected_with_the_reason() {
        for (words, reason) in [
            ("build", "<PATH>"),
            ("build --tagg x .", "--tag"),
            ("build -t UPPER .", "UPPER"),
            ("build -o type=ocy,dest=x .", "ocy"),
            ("build --build-arg =x .", "name"),
            ("build --jobs 0 .", "0"),
            ("build --progress fancy .", "fancy"),
            ("build --accel hvf .", "hvf"),
            ("build --memory much .", "much"),
            ("build --memory 40m .", "can have 256.0MiB to"),
            ("build --memory 9999999g .", "can have 256.0MiB to"),
            ("build --cpus 500 .", "500"),
            ("prune --until soon", "soon"),
            ("frobnicate", "frobnicate"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(
                error.use_stderr() && error.to_string().contains(reason),
                "{words}: {error}"
            );
        }
    }

    #[test]
    fn the_displayed_command_line_has_no_directory_no_secret_and_a_maximum_length() {
        let args = ["/usr/bin/cofferdam", "build", "."].map(OsString::from);
        assert_eq!(command_line(&args), "cofferdam build .");
        let secret = "c build --build-arg A=s3cret --build-arg=B=s3=cret --build-arg C . D=e";
        let secret: Vec<OsString> = secret.split(' ').map(Into::into).collect();
        assert_eq!(
            command_line(&secret),
            "c build --build-arg A=… --build-arg=B=… --build-arg C . D=e"
        );
        let long = ["cofferdam".into(), "x".repeat(1000).into()];
        assert!(command_line(&long).len() <= 200);
    }
}
