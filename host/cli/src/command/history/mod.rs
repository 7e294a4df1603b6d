//! `cofferdam history`: past builds, how they ended, and the logs of their steps.

mod inspect;

use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use ::store::{Build, BuildId, BuildState, Event, LogReader, StepLog, Store};
use anyhow::Error;
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::common::Common;
use super::format::Format;
use crate::exit::{Class, Failure};
use crate::output::{message, print};
use crate::progress::log_time;
use crate::sanitize::{self, LineBuffer, sanitize};
use crate::table::{self, Align};

const EXAMPLES: &str = "\
Examples:
  cofferdam history                    list builds, newest first
  cofferdam history logs               print the logs of the last build
  cofferdam history logs ^1            print the logs of the build before it
  cofferdam history inspect 17         show details of build 17 as JSON
  cofferdam history inspect --format table
                                       show what the steps of the last build connected to
  cofferdam history rm 17              remove build 17 and its logs
  cofferdam history events             list steps with different results, and damaged objects

A killed build has the status `interrupted`, or `cancelled` if it had been told to stop. Only the
newest builds are kept. The history does not keep layers from being pruned.";

/// Show past builds and their logs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List builds (default)
    Ls {
        /// Output format
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Print the logs of a build's steps
    Logs {
        /// Build number, or ^N for the Nth build before the last
        #[arg(default_value = "^0")]
        build: BuildRef,
    },
    /// Show details of a build, with what its steps connected to
    Inspect {
        /// Build number, or ^N for the Nth build before the last
        #[arg(default_value = "^0")]
        build: BuildRef,
        /// Output format
        #[arg(long, value_enum, default_value_t = Format::Json)]
        format: Format,
    },
    /// Remove builds and their logs
    Rm {
        /// Build numbers, or ^N
        #[arg(required = true, value_name = "BUILD")]
        builds: Vec<BuildRef>,
    },
    /// List store events: steps with different results, and damaged objects
    Events {
        /// Output format
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

/// A build as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BuildRef {
    Number(i64),
    /// That many builds before the last.
    Before(usize),
}

impl FromStr for BuildRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = match text.strip_prefix('^') {
            Some(before) => before.parse().ok().map(Self::Before),
            None => text.parse().ok().map(Self::Number),
        };
        found.ok_or_else(|| "expected a build number or ^N".to_owned())
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
        ) => common.open_to_inspect()?,
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
        Some(Action::Inspect { build, format }) => {
            inspect::run(store, find(&builds()?, build)?, format)
        }
        Some(Action::Rm { builds: which }) => remove(store, &builds()?, &which),
        Some(Action::Events { format }) => events(&store.events().map_err(Failure::host)?, format),
    }
}

fn find(builds: &[Build], which: BuildRef) -> Result<&Build, Failure> {
    let (found, name) = match which {
        BuildRef::Before(n) => (builds.get(n), format!("^{n}")),
        BuildRef::Number(n) => (
            builds.iter().find(|build| build.id == BuildId(n)),
            n.to_string(),
        ),
    };
    found.ok_or_else(|| {
        let text = format!("no such build: {name}; list builds with `cofferdam history`");
        Failure::new(Class::User, Error::msg(text))
    })
}

fn list(builds: &[Build], format: Format) -> Result<ExitCode, Failure> {
    if format == Format::Json {
        return print(|out| {
            builds
                .iter()
                .try_for_each(|build| writeln!(out, "{}", sanitize::json(&object(build))))
        });
    }
    let now = Timestamp::now().as_second();
    let rows: Vec<_> = builds.iter().map(|build| row(build, now)).collect();
    let columns = [
        ("BUILD", Align::Right),
        ("NAME", Align::Left),
        ("STATUS", Align::Left),
        ("CREATED", Align::Left),
        ("DURATION", Align::Right),
    ];
    print(|out| table::write(out, columns, &rows))
}

fn events(events: &[Event], format: Format) -> Result<ExitCode, Failure> {
    let now = Timestamp::now().as_second();
    print(|out| match format {
        Format::Table => {
            let row = |event: &Event| {
                let text = sanitize(event.text.as_bytes());
                [table::ago(event.at, now), event.kind.clone(), text]
            };
            let rows: Vec<_> = events.iter().map(row).collect();
            let columns = ["WHEN", "EVENT", "DETAILS"].map(|name| (name, Align::Left));
            table::write(out, columns, &rows)
        }
        Format::Json => events.iter().try_for_each(|event| {
            let at = table::rfc3339(event.at);
            let object = json!({"at": at, "event": event.kind, "details": event.text});
            writeln!(out, "{}", sanitize::json(&object))
        }),
    })
}

fn row(build: &Build, now: i64) -> [String; 5] {
    let duration = match &build.state {
        BuildState::Ended(at, _) => format!("{}s", at.saturating_sub(build.started)),
        BuildState::Running => format!("{}s+", now.saturating_sub(build.started)),
        BuildState::Interrupted | BuildState::Cancelled => String::new(),
    };
    [
        build.id.to_string(),
        name(build),
        status(build),
        table::ago(build.started, now),
        duration,
    ]
}

/// The build context, and the target stage if one was given.
fn name(build: &Build) -> String {
    let mut name = sanitize(build.info.context.as_bytes());
    if !build.info.target.is_empty() {
        name.push_str(&format!(" ({})", sanitize(build.info.target.as_bytes())));
    }
    name
}

fn status(build: &Build) -> String {
    match &build.state {
        BuildState::Running => "running".to_owned(),
        BuildState::Interrupted => "interrupted".to_owned(),
        BuildState::Cancelled => ::store::Class::Cancelled.to_string(),
        BuildState::Ended(_, outcome) => outcome.class.to_string(),
    }
}

fn object(build: &Build) -> Value {
    let ended = match &build.state {
        BuildState::Ended(at, outcome) => Some((at, outcome)),
        BuildState::Running | BuildState::Interrupted | BuildState::Cancelled => None,
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
        message(&format!("build {id} has no logs"));
    } else if matches!(build.state, BuildState::Interrupted | BuildState::Cancelled) {
        let status = status(build);
        message(&format!(
            "build {id} was {status}; its logs may be incomplete"
        ));
    }
    print(|out| {
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

/// Prints a log in the format of `--progress plain`.
fn show(out: &mut dyn Write, step: u32, mut log: LogReader, is_running: bool) -> io::Result<()> {
    let mut lines = LineBuffer::default();
    let mut began = None;
    let mut time = String::new();
    let mut rest = None;
    while let Some(frame) = log.next_frame()? {
        let began = *began.get_or_insert(frame.at);
        time = log_time(Duration::from_millis(frame.at.saturating_sub(began)));
        match frame.stream {
            StepLog::NAME => writeln!(out, "#{step} {}", sanitize(&frame.data))?,
            StepLog::LEFT_OUT => {
                lines.finish(|line| rest = Some(line));
                if let Some(line) = rest.take() {
                    writeln!(out, "#{step} {time} {line}")?;
                }
                let missing = sanitize(&frame.data);
                writeln!(
                    out,
                    "#{step} {time} [{missing} bytes left out: the log is longer than --log-limit]"
                )?;
            }
            StepLog::DROPPED => {
                let lost = sanitize(&frame.data);
                writeln!(out, "#{step} {time} [{lost} bytes lost: the disk was full]")?;
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
    lines.finish(|line| rest = Some(line));
    if let Some(line) = rest {
        writeln!(out, "#{step} {time} {line}")?;
    }
    if log.is_torn() || (log.is_cut() && !is_running) {
        writeln!(out, "#{step} [the rest of the log is missing or damaged]")?;
    }
    Ok(())
}

fn remove(store: &Store, builds: &[Build], which: &[BuildRef]) -> Result<ExitCode, Failure> {
    // Look up all builds first: `^0` changes when one is removed.
    let ids: Vec<BuildId> = which
        .iter()
        .map(|which| find(builds, *which).map(|build| build.id))
        .collect::<Result<_, _>>()?;
    for id in ids {
        store.remove_build(id).map_err(Failure::host)?;
        message(&format!("removed build {id}"));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_shows_where_its_middle_was_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &::store::OpenOptions::default()).unwrap();
        let build = store.start_build(&::store::BuildInfo::default()).unwrap();
        let log = store.step_log(build, 1, "RUN yes").unwrap();
        let mut log = log.with_limit(StepLog::LEAST_LIMIT);
        log.append(1, &b"a line of text\n".repeat(100_000));
        log.finish();
        let mut shown = Vec::new();
        show(&mut shown, 1, LogReader::open(log.path()).unwrap(), false).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let marks = shown.lines().filter(|line| line.ends_with("--log-limit]"));
        assert_eq!(marks.count(), 1);
        assert!(shown.starts_with("#1 RUN yes\n") && shown.ends_with("a line of text\n"));
        assert!(shown.len() < 200_000, "{}", shown.len());
        store.close().unwrap();
    }

    #[test]
    fn builds_are_named_by_number_or_relative_to_the_last() {
        assert_eq!("17".parse(), Ok(BuildRef::Number(17)));
        assert_eq!("^2".parse(), Ok(BuildRef::Before(2)));
        for wrong in ["", "^", "x", "^-1"] {
            assert!(wrong.parse::<BuildRef>().is_err(), "{wrong}");
        }
    }
}
