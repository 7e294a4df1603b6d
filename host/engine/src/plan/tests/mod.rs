//! Tests of the whole front end: a Dockerfile goes in, a plan comes out.

mod checks;
mod config;
mod copy;
mod limits;
mod properties;
mod stages;
mod variables;

use super::*;
use dockerfile::parse;

/// The options of an ordinary build.
fn options() -> PlanOptions {
    let platform = Platform::linux("amd64");
    PlanOptions {
        build_platform: platform.clone(),
        ..PlanOptions::new(platform)
    }
}

fn options_with_args(args: &[(&str, &str)]) -> PlanOptions {
    let build_args = args
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    PlanOptions {
        build_args,
        ..options()
    }
}

/// Plans with base images that have an empty configuration.
fn try_plan_with(text: &str, o: &PlanOptions) -> Result<Plan, DockerfileError> {
    let file = parse("Dockerfile", text.as_bytes())?;
    let requests = needed_images(&file, o)?;
    let images = requests
        .into_iter()
        .map(|request| (request.key, ImageConfigFile::default()));
    plan(&file, o, &images.collect())
}

#[track_caller]
fn plan_with(text: &str, o: &PlanOptions) -> Plan {
    try_plan_with(text, o).unwrap_or_else(|err| panic!("{err}\n{text}"))
}

#[track_caller]
fn plan_of(text: &str) -> Plan {
    plan_with(text, &options())
}

/// The target of a plan.
#[track_caller]
fn target_of(text: &str) -> Stage {
    let plan = plan_of(text);
    plan.stages[plan.target].clone()
}

/// Plans a stage on an image whose configuration is given.
#[track_caller]
fn on_image(config: ImageConfig, text: &str) -> Stage {
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    let base = ImageConfigFile {
        config,
        ..ImageConfigFile::default()
    };
    let mut images = Images::new();
    // The base is the first to be asked for; all others are empty.
    for request in missing_images(&file, &options(), &images).unwrap() {
        images.insert(request.key, base.clone());
    }
    for request in missing_images(&file, &options(), &images).unwrap() {
        images.insert(request.key, ImageConfigFile::default());
    }
    let plan = plan(&file, &options(), &images).unwrap();
    plan.stages[plan.target].clone()
}

/// Expects an error on a line with a text in its message or hint.
#[track_caller]
fn refused_with(text: &str, o: &PlanOptions, line: usize, part: &str) {
    match try_plan_with(text, o) {
        Ok(_) => panic!("accepted: {text}"),
        Err(err) => {
            let all = format!("{} {}", err.message, err.hint.clone().unwrap_or_default());
            assert!(
                err.line == line && all.contains(part),
                "{err} {:?}\n{text}",
                err.hint
            );
        }
    }
}

#[track_caller]
fn refused(text: &str, line: usize, part: &str) {
    refused_with(text, &options(), line, part);
}

/// The RUN steps of a stage.
fn runs(stage: &Stage) -> Vec<&RunOp> {
    let runs = stage.steps.iter().filter_map(|step| match &step.op {
        Op::Run(run) => Some(run),
        Op::Copy(_) | Op::Workdir { .. } | Op::Meta => None,
    });
    runs.collect()
}

/// What the last RUN of the target sees of a variable.
#[track_caller]
fn seen(text: &str, o: &PlanOptions, name: &str) -> Option<String> {
    let plan = plan_with(text, o);
    let runs = runs(&plan.stages[plan.target]);
    let prefix = format!("{name}=");
    let env = &runs.last().expect("a RUN").env;
    env.iter()
        .find_map(|entry| entry.strip_prefix(&prefix).map(str::to_owned))
}

fn created_by(stage: &Stage) -> Vec<&str> {
    stage
        .steps
        .iter()
        .map(|step| step.created_by.as_str())
        .collect()
}
