//! `cofferdam history`: which builds there were, how they ended, and what their steps printed.

use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use ::store::{Build, BuildId, BuildState, Event, LogReader, StepLog, Store};
use anyhow::Error;
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Common;
use super::images::Format;
use crate::exit::{Class, Failure};
use crate::progress::{Lines, clean, log_time};
use crate::table::{self, Side};

const EXAMPLES: &str = "\
Examples:
  cofferdam history                    the builds of this store, newest first
  cofferdam history logs               what the steps of the newest build printed
  cofferdam history logs ^1            of the one before it; also while it runs
  cofferdam history inspect 17         all that is known of build 17
  cofferdam history rm 17              forget it, and its logs
  cofferdam history events             results that turned out differently, and what was lost

A build that was killed is `interrupted`. History keeps the newest builds only, and no layer alive.";

/// Show builds of the past and what they printed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List builds (what `cofferdam history` alone does)
    Ls {
        /// Form of the list
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print what the steps of a build printed
    Logs {
        /// The build: its number, or ^N for the N-th before the newest
        #[arg(default_value = "^0")]
        build: Which,
    },
    /// Print all that is known of a build
    Inspect {
        /// The build: its number, or ^N for the N-th before the newest
        #[arg(default_value = "^0")]
        build: Which,
    },
    /// Forget builds and their logs
    Rm {
        /// Their numbers, or ^N
        #[arg(required = true, value_name = "BUILD")]
        builds: Vec<Which>,
    },
    /// List what happened to the store: results that differ from the ones before, damage
    Events {
        /// Form of the list
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

/// How a build is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Number(i64),
    /// That many before the newest.
    Before(usize),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = match text.strip_prefix('^') {
            Some(before) => before.parse().ok().map(Self::Before),
            None => text.parse().ok().map(Self::Number),
        };
        found.ok_or_else(|| "a build is a number, or ^ and a number".to_owned())
    }
}

/// Runs the command.
pub(super) fn run(args: Args, common: &Common) -> Result<ExitCode, Failure> {
    let store = match args.action {
        Some(Action::Rm { .. }) => common.open_to_prune()?,
        None
        | Some(
            Action::Ls { .. }
            | Action::Logs { .. }
            | Action::Inspect { .. }
            | Action::Events { .. },
        ) => common.open_to_look()?,
    };
    let done = act(args.action, &store);
    common.close(store);
    done
}

fn act(action: Option<Action>, store: &Store) -> Result<ExitCode, Failure> {
    let builds = || store.builds(usize::MAX).map_err(Failure::host);
    match action {
        None => list(&builds()?, Format::Table),
        Some(Action::Ls { format }) => list(&builds()?, format),
        Some(Action::Logs { build }) => logs(store, find(&builds()?, build)?),
        Some(Action::Inspect { build }) => {
            let object = object(find(&builds()?, build)?);
            super::print(|out| writeln!(out, "{object:#}"))
        }
        Some(Action::Rm { builds: which }) => remove(store, &builds()?, &which),
        Some(Action::Events { format }) => events(&store.events().map_err(Failure::host)?, format),
    }
}

fn find(builds: &[Build], which: Which) -> Result<&Build, Failure> {
    let (found, name) = match which {
        Which::Before(n) => (builds.get(n), format!("^{n}")),
        Which::Number(n) => (
            builds.iter().find(|build| build.id == BuildId(n)),
            n.to_string(),
        ),
    };
    found.ok_or_else(|| {
        let text = format!("there is no build {name}; `cofferdam history` lists them");
        Failure::new(Class::User, Error::msg(text))
    })
}

fn list(builds: &[Build], format: Format) -> Result<ExitCode, Failure> {
    if format == Format::Json {
        return super::print(|out| {
            builds
                .iter()
                .try_for_each(|build| writeln!(out, "{}", object(build)))
        });
    }
    let now = Timestamp::now().as_second();
    let rows: Vec<_> = builds.iter().map(|build| row(build, now)).collect();
    let columns = [
        ("BUILD", Side::Right),
        ("NAME", Side::Left),
        ("STATUS", Side::Left),
        ("CREATED", Side::Left),
        ("DURATION", Side::Right),
    ];
    super::print(|out| table::write(out, columns, &rows))
}

fn events(events: &[Event], format: Format) -> Result<ExitCode, Failure> {
    let now = Timestamp::now().as_second();
    super::print(|out| match format {
        Format::Table => {
            let row = |event: &Event| {
                let text = clean(event.text.as_bytes());
                [table::ago(event.at, now), event.kind.clone(), text]
            };
            let rows: Vec<_> = events.iter().map(row).collect();
            let columns = ["WHEN", "EVENT", "DETAILS"].map(|name| (name, Side::Left));
            table::write(out, columns, &rows)
        }
        Format::Json => events.iter().try_for_each(|event| {
            let at = table::rfc3339(event.at);
            let object = json!({"at": at, "event": event.kind, "details": event.text});
            writeln!(out, "{object}")
        }),
    })
}

fn row(build: &Build, now: i64) -> [String; 5] {
    let duration = match &build.state {
        BuildState::Ended(at, _) => format!("{}s", at.saturating_sub(build.started)),
        BuildState::Running => format!("{}s+", now.saturating_sub(build.started)),
        BuildState::Interrupted => String::new(),
    };
    [
        build.id.to_string(),
        name(build),
        status(build),
        table::ago(build.started, now),
        duration,
    ]
}

/// The context, and the target if it is not the last stage.
fn name(build: &Build) -> String {
    let mut name = clean(build.info.context.as_bytes());
    if !build.info.target.is_empty() {
        name.push_str(&format!(" ({})", clean(build.info.target.as_bytes())));
    }
    name
}

fn status(build: &Build) -> String {
    match &build.state {
        BuildState::Running => "running".to_owned(),
        BuildState::Interrupted => "interrupted".to_owned(),
        BuildState::Ended(_, outcome) => outcome.class.to_string(),
    }
}

fn object(build: &Build) -> Value {
    let ended = match &build.state {
        BuildState::Ended(at, outcome) => Some((at, outcome)),
        BuildState::Running | BuildState::Interrupted => None,
    };
    let image = ended.and_then(|(_, outcome)| outcome.image);
    json!({
        "build": build.id.0,
        "context": build.info.context,
        "dockerfile": build.info.dockerfile,
        "target": build.info.target,
        "status": status(build),
        "started": table::rfc3339(build.started),
        "ended": ended.and_then(|(at, _)| table::rfc3339(*at)),
        "exit_status": ended.map(|(_, outcome)| outcome.status),
        "message": ended.map(|(_, outcome)| outcome.message.as_str()),
        "image": image.map(|image| image.to_string()),
    })
}

fn logs(store: &Store, build: &Build) -> Result<ExitCode, Failure> {
    let (id, is_running) = (build.id, build.state == BuildState::Running);
    let logs = store.step_logs(id).map_err(Failure::host)?;
    if logs.is_empty() {
        super::complain(&format!("build {id} ran no step, or its logs are gone"));
    } else if build.state == BuildState::Interrupted {
        super::complain(&format!("build {id} was interrupted: its logs end there"));
    }
    super::print(|out| {
        for (number, (step, path)) in logs.iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            let log = LogReader::open(path).map_err(io::Error::other)?;
            show(out, *step, log, is_running)?;
        }
        Ok(())
    })
}

/// Prints a log in the form of the plain progress.
fn show(out: &mut dyn Write, step: u32, mut log: LogReader, is_running: bool) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut began = None;
    let mut time = String::new();
    while let Some(frame) = log.next_frame()? {
        let began = *began.get_or_insert(frame.at);
        time = log_time(Duration::from_millis(frame.at.saturating_sub(began)));
        match frame.stream {
            StepLog::NAME => writeln!(out, "#{step} {}", clean(&frame.data))?,
            StepLog::DROPPED => {
                let lost = clean(&frame.data);
                writeln!(
                    out,
                    "#{step} {time} [{lost} bytes were lost: the disk was full]"
                )?;
            }
            _ => {
                let mut whole = Vec::new();
                lines.push(&frame.data, |line| whole.push(line));
                for line in whole {
                    writeln!(out, "#{step} {time} {line}")?;
                }
            }
        }
    }
    let mut rest = None;
    lines.finish(|line| rest = Some(line));
    if let Some(line) = rest {
        writeln!(out, "#{step} {time} {line}")?;
    }
    if log.is_torn() || (log.is_cut() && !is_running) {
        writeln!(out, "#{step} [the rest of this log is missing or damaged]")?;
    }
    Ok(())
}

fn remove(store: &Store, builds: &[Build], which: &[Which]) -> Result<ExitCode, Failure> {
    // All of them first: `^0` is another build once one is gone.
    let ids: Vec<BuildId> = which
        .iter()
        .map(|which| find(builds, *which).map(|build| build.id))
        .collect::<Result<_, _>>()?;
    for id in ids {
        store.remove_build(id).map_err(Failure::host)?;
        super::complain(&format!("removed build {id}"));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_named_by_number_or_from_the_newest() {
        assert_eq!("17".parse(), Ok(Which::Number(17)));
        assert_eq!("^2".parse(), Ok(Which::Before(2)));
        for wrong in ["", "^", "x", "^-1"] {
            assert!(wrong.parse::<Which>().is_err(), "{wrong}");
        }
    }
}
