//! `cofferdam build`.

mod args;
mod request;
mod results;
mod room;
mod vm;

use std::collections::HashSet;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;

use engine::build::{BuildError, BuildRequest, BuildResult, build_and_tell, differing_text};
use exec::Cancel;
use serde_json::Value;

pub(super) use args::Args;
use vm::Vm;

use super::Common;
use crate::exit::{Class, Failure};
use crate::progress::{End, Mode, Progress, clean};
use crate::{logging, signals};

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let request = request::from(args)?;
    refuse_terminal(&request)?;
    refuse_equal_places(&request)?;
    results::forget(args)?;
    let mode = if args.quiet {
        Mode::Quiet
    } else {
        args.progress
    };
    let progress = Arc::new(Progress::start(mode).map_err(|e| Failure::usage(e.to_string()))?);
    let cancel = Cancel::new();
    let display = Arc::clone(&progress);
    signals::watch(&cancel, move || {
        display.note("cancelling the build; once more to leave at once");
    })?;
    let display = Arc::clone(&progress);
    logging::send_to(Some(Arc::new(move |line| display.note(line))));
    let done = build(args, &request, common, &progress, &cancel);
    logging::send_to(None);
    finish(args, &progress, done)
}

/// Builds with everything that a build needs, and settles it all whatever comes of the build.
fn build(
    args: &Args,
    request: &BuildRequest,
    common: &Common,
    progress: &Arc<Progress>,
    cancel: &Cancel,
) -> Result<BuildResult, (Failure, Option<Value>)> {
    let store = common.open().map_err(|failure| (failure, None))?;
    let vm = Vm::new(args, &store, Arc::clone(progress));
    let mut report = None;
    let built = room::kept(&store, args.min_free_space, progress, cancel, || {
        // Before the history says that it worked, everything else has said so.
        build_and_tell(request, &store, &vm, &**progress, cancel, |built| {
            report = vm.end();
            results::write(args, built, report.as_ref())
        })
    });
    let report = report.or_else(|| vm.end());
    drop(vm);
    let built = built.map_err(|error| {
        // A file beside which nothing of the store lies gets no room from pruning.
        let elsewhere = matches!(error, BuildError::Tell { .. });
        let mut failure = failure(error);
        if failure.hint.is_none() && !elsewhere {
            failure.hint = room::hint(&store, &failure);
        }
        failure
    });
    common.close(store);
    built.map_err(|failure| (failure, report))
}

/// An archive on a terminal helps nobody.
fn refuse_terminal(request: &BuildRequest) -> Result<(), Failure> {
    let stdout = request
        .outputs
        .iter()
        .filter(|output| output.uses_stdout())
        .count();
    if stdout > 1 {
        return Err(Failure::usage("only one output can go to standard output"));
    }
    if stdout == 1 && io::stdout().is_terminal() {
        let text = "will not write an archive to a terminal; add dest=FILE to --output";
        return Err(Failure::usage(text));
    }
    Ok(())
}

/// Of two results in one place only one could be there in the end.
fn refuse_equal_places(request: &BuildRequest) -> Result<(), Failure> {
    let mut places = HashSet::new();
    let mut paths = request.outputs.iter().filter_map(|output| output.path());
    match paths.find(|path| !places.insert(*path)) {
        None => Ok(()),
        Some(path) => Err(Failure::usage(format!(
            "two outputs go to {}; give each a place of its own",
            path.display()
        ))),
    }
}

/// Shows how it ended and decides the exit status.
fn finish(
    args: &Args,
    progress: &Progress,
    done: Result<BuildResult, (Failure, Option<Value>)>,
) -> Result<ExitCode, Failure> {
    match done {
        Ok(built) => {
            let class = (built.differing() > 0).then_some(Class::Differs);
            let closing = differences(&built);
            progress.finish(End { class, closing });
            Ok(ExitCode::from(class.map_or(0, Class::status)))
        }
        Err((failure, report)) => {
            let mut closing = failure.lines();
            if let Err(second) = results::write_failure(args, &failure, report.as_ref()) {
                closing.extend(second.lines());
            }
            progress.finish(End {
                class: Some(failure.class),
                closing,
            });
            Ok(ExitCode::from(failure.class.status()))
        }
    }
}

/// Most paths that are named of each step that made something else.
const MAX_PATHS: usize = 20;

/// What differs in steps that were done again.
fn differences(built: &BuildResult) -> Vec<String> {
    let mut lines = Vec::new();
    for step in &built.steps {
        let Some(compared) = step.compared.as_ref().filter(|c| c.differs()) else {
            continue;
        };
        lines.push("------".to_owned());
        lines.push(clean(format!(" > {}:", step.name).as_bytes()));
        let paths = compared.lines(MAX_PATHS).into_iter();
        lines.extend(paths.map(|line| clean(line.as_bytes())));
    }
    if !lines.is_empty() {
        lines.push("------".to_owned());
        lines.push(format!("DIFFERS: {}", differing_text(built.differing())));
    }
    lines
}

/// The engine's error as the user sees it.
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
