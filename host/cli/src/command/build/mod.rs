//! `cofferdam build`.
//!
//! [`args`] defines the options, [`request`] turns them into a request for the engine, [`reach`] says
//! which servers that may reach, [`trust`] names the trust domain, [`vm`] starts the VM when the engine
//! needs it, [`free_space`] reports how disk space is kept free, [`running`] ends steps that fill the
//! disk, and [`results`] writes the result files.

mod args;
mod free_space;
mod reach;
mod request;
mod results;
mod running;
mod trust;
mod vm;

use std::collections::HashSet;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;

use ::store::{FreeSpaceGuard, Store};
use engine::build::{BuildError, BuildRequest, BuildResult, build_and_report, differing_text};
use exec::Cancel;
use serde_json::Value;

pub(super) use args::Args;
use vm::LazyVm;

use super::common::Common;
use crate::exit::{Class, Failure};
use crate::progress::{End, Mode, Progress};
use crate::sanitize::sanitize;
use crate::{logging, signals};

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let request = request::from(args)?;
    refuse_terminal(&request)?;
    refuse_equal_destinations(&request)?;
    results::remove_old(args)?;
    let mode = if args.quiet {
        Mode::Quiet
    } else {
        args.progress
    };
    let progress = Arc::new(Progress::start(mode).map_err(|e| Failure::usage(e.to_string()))?);
    let cancel = Cancel::new();
    let display = Arc::clone(&progress);
    let watch = signals::watch(&cancel, move || {
        display.note("cancelling the build; press Ctrl-C again to exit immediately");
    })?;
    let display = Arc::clone(&progress);
    logging::send_to(Some(Arc::new(move |line| display.note(line))));
    let done = build(args, &request, common, &progress, &cancel, &watch);
    logging::send_to(None);
    finish(&progress, done)
}

/// Opens the store, builds, and releases everything again, whether or not the build succeeds. With a
/// failure come the lines about writing the result files, if that fails too.
fn build(
    args: &Args,
    request: &BuildRequest,
    common: &Common,
    progress: &Arc<Progress>,
    cancel: &Cancel,
    watch: &signals::Watch,
) -> Result<BuildResult, (Failure, Vec<String>)> {
    let failed = |failure: Failure, store: Option<&Store>, report: Option<&Value>| {
        let second = results::write_failure(args, store, &failure, report);
        (
            failure,
            second.map_or_else(|second| second.lines(), |()| Vec::new()),
        )
    };
    let store = common
        .open()
        .map_err(|failure| failed(failure, None, None))?
        .with_budget(args.build_disk);
    let history = store.clone();
    watch.on_cancel(move || {
        // Closed if the build has ended.
        if let Err(error) = history.cancel_builds() {
            log::debug!("cannot record that the build was cancelled: {error}");
        }
    });
    let vm = LazyVm::new(args, &store, Arc::clone(progress), cancel);
    let mut report = None;
    let guard = FreeSpaceGuard::new(&store, args.min_free_space);
    let hooks = free_space::Hooks::new(progress, cancel, &store, vm.running());
    let built = guard.run(&hooks, || {
        // The history records success only after all other results are written.
        build_and_report(request, &store, &vm, &**progress, cancel, |built| {
            report = vm.shut_down();
            results::write(args, &store, built, report.as_ref())
        })
    });
    let report = report.or_else(|| vm.shut_down());
    drop(vm);
    let built = built.map_err(|error| {
        // A result file may be on another file system, where pruning does not help.
        let elsewhere = matches!(error, BuildError::Report { .. });
        let mut failure = failure(error);
        if failure.hint.is_none() && !elsewhere {
            failure.hint = free_space::hint(&store, &failure);
        }
        failed(failure, Some(&store), report.as_ref())
    });
    common.close(store);
    built
}

/// Refuses to write an archive to a terminal, and two archives to standard output.
fn refuse_terminal(request: &BuildRequest) -> Result<(), Failure> {
    let stdout = request
        .outputs
        .iter()
        .filter(|output| output.uses_stdout())
        .count();
    if stdout > 1 {
        let text = "only one output can use standard output; add dest=FILE to the others";
        return Err(Failure::usage(text));
    }
    if stdout == 1 && io::stdout().is_terminal() {
        let text = "refusing to write an archive to the terminal; add dest=FILE to --output";
        return Err(Failure::usage(text));
    }
    Ok(())
}

/// Refuses two outputs with the same destination: one would overwrite the other.
fn refuse_equal_destinations(request: &BuildRequest) -> Result<(), Failure> {
    let mut destinations = HashSet::new();
    let mut paths = request.outputs.iter().filter_map(|output| output.path());
    match paths.find(|path| !destinations.insert(*path)) {
        None => Ok(()),
        Some(path) => Err(Failure::usage(format!(
            "two outputs write to {}; give each its own destination",
            path.display()
        ))),
    }
}

/// Shows how the build ended and returns the exit status.
fn finish(
    progress: &Progress,
    done: Result<BuildResult, (Failure, Vec<String>)>,
) -> Result<ExitCode, Failure> {
    match done {
        Ok(built) => {
            let class = (built.differing() > 0).then_some(Class::Differs);
            let closing = differences(&built);
            progress.finish(End { class, closing });
            Ok(ExitCode::from(class.map_or(0, Class::status)))
        }
        Err((failure, second)) => {
            let mut closing = failure.lines();
            closing.extend(second);
            progress.finish(End {
                class: Some(failure.class),
                closing,
            });
            Ok(ExitCode::from(failure.class.status()))
        }
    }
}

/// How many paths are listed for each step with a different result.
const MAX_PATHS: usize = 20;

/// The paths that differ in steps that `--rebuild` ran again.
fn differences(built: &BuildResult) -> Vec<String> {
    let mut lines = Vec::new();
    for step in &built.steps {
        let Some(compared) = step.compared.as_ref().filter(|c| c.differs()) else {
            continue;
        };
        lines.push("------".to_owned());
        lines.push(sanitize(format!(" > {}:", step.name).as_bytes()));
        let paths = compared.lines(MAX_PATHS).into_iter();
        lines.extend(paths.map(|line| sanitize(line.as_bytes())));
    }
    if !lines.is_empty() {
        lines.push("------".to_owned());
        lines.push(format!("DIFFERS: {}", differing_text(built.differing())));
    }
    lines
}

/// Turns an error of the engine into a message for the user.
fn failure(error: BuildError) -> Failure {
    let class = match error.class() {
        engine::build::Class::User => Class::User,
        engine::build::Class::Limit => Class::Limit,
        engine::build::Class::Host => Class::Host,
        engine::build::Class::Cancelled => Class::Cancelled,
    };
    let excerpt = error.excerpt().map(str::to_owned);
    let log = if let BuildError::Step { log, .. } = &error {
        Some(log.clone())
    } else {
        None
    };
    let hint = if let BuildError::Dockerfile(wrong) = &error {
        wrong.hint.clone()
    } else if let BuildError::NoDockerfile { source, .. } = &error
        && source.kind() == io::ErrorKind::NotFound
    {
        Some("use --file to name the Dockerfile".to_owned())
    } else if let BuildError::NoDockerfile { source, .. } = &error
        && source.kind() == io::ErrorKind::CrossesDevices
    {
        Some("use --file to name the file that the link leads to".to_owned())
    } else {
        None
    };
    Failure {
        class,
        excerpt,
        log,
        hint,
        error: error.into(),
    }
}
