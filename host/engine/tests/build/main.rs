//! Whole builds with a real store and a stand-in for the VM: each RUN writes its command into a
//! file of its layer. What runs, what is found, and what fails can be counted.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod bench;
mod dockerfile;
mod explain;
mod follow;
mod graph;
mod limits;
mod rebuild;
mod trust;

use std::io;
use std::time::Duration;

use engine::build::{BuildError, BuildRequest, BuildResult, Class, build_and_report};
use engine::event::Outcome;
use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec};
use store::BuildState;

use bench::Bench;

#[test]
fn a_second_build_finds_everything_and_gives_the_same_image() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nWORKDIR /w\nCOPY a .\nRUN first\nENV X=1\nRUN second\n";
    let first = bench.build(dockerfile);
    let second = bench.build(dockerfile);
    assert_eq!(first.commands(), ["first", "second"]);
    assert_eq!(second.commands(), Vec::<&str>::new());
    for step in ["WORKDIR", "COPY", "RUN first", "RUN second"] {
        assert_eq!(*first.outcome(step), Outcome::Done, "{step}");
        assert_eq!(*second.outcome(step), Outcome::Cached, "{step}");
    }
    assert_eq!(first.result.unwrap().image, second.result.unwrap().image);
}

#[test]
fn a_changed_file_runs_what_follows_and_nothing_else() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nRUN before\nCOPY a /a\nRUN after\n";
    let first = bench.build(dockerfile);
    first.result.unwrap();
    bench.write("a", "two");
    let second = bench.build(dockerfile);
    second.result.as_ref().unwrap();
    assert_eq!(second.commands(), ["after"]);
}

#[test]
fn equal_content_of_a_step_that_ran_again_keeps_its_children() {
    let bench = Bench::new();
    bench
        .build("FROM scratch\nRUN same 1\nRUN child\n")
        .result
        .unwrap();
    let second = bench.build("FROM scratch\nRUN same 2\nRUN child\n");
    second.result.as_ref().unwrap();
    assert_eq!(second.commands(), ["same 2"]);
}

#[test]
fn no_cache_runs_everything_again() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nCOPY a /a\nRUN step\n";
    bench.build(dockerfile).result.unwrap();
    let request = BuildRequest {
        no_cache: true,
        ..bench.request(dockerfile)
    };
    let again = bench.build_as(&request, &Cancel::new());
    again.result.as_ref().unwrap();
    assert_eq!(again.commands(), ["step"]);
    assert_eq!(*again.outcome("COPY"), Outcome::Done);
}

#[test]
fn a_failing_step_is_the_users_and_stops_the_others() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch AS a\nRUN wait\nFROM scratch AS b\nRUN other\nRUN fail\nRUN never\n\
                      FROM scratch\nCOPY --from=a /x /x\nCOPY --from=b /y /y\n";
    let built = bench.build(dockerfile);
    let err = built.result.as_ref().unwrap_err();
    assert_eq!(err.class(), Class::User);
    assert!(err.to_string().contains("Dockerfile:5"), "{err}");
    assert!(err.to_string().contains("exit code: 3"), "{err}");
    assert!(err.excerpt().unwrap().contains(">>> RUN fail"));
    assert_eq!(*built.outcome("RUN wait"), Outcome::Cancelled);
    assert!(!built.commands().contains(&"never"));
    assert!(
        built
            .ended
            .iter()
            .any(|(_, outcome)| *outcome == Outcome::NotRun)
    );
    // Nothing is remembered of the failure.
    assert_eq!(
        bench.build("FROM scratch\nRUN other\n").commands(),
        Vec::<&str>::new()
    );
}

#[test]
fn the_history_says_why_a_build_failed_and_not_only_where() {
    let bench = Bench::new();
    let err = bench
        .build("FROM scratch\nRUN lose the vm\n")
        .result
        .unwrap_err();
    assert_eq!(err.class(), Class::Host);
    let store = bench.open();
    let builds = store.builds(1).unwrap();
    let BuildState::Ended(_, outcome) = &builds[0].state else {
        panic!("{builds:?}")
    };
    assert_eq!(
        outcome.message,
        "Dockerfile:2: cannot run \"/bin/sh -c lose the vm\": the builder VM failed: 60 s without an answer"
    );
    store.close().unwrap();
}

/// Whoever was to be told of a result and could not be: the exit status says so, and so does the
/// history.
#[test]
fn a_build_of_which_nobody_could_be_told_has_failed_in_the_history_too() {
    let bench = Bench::new();
    let store = bench.open();
    bench.write("a", "one");
    let request = BuildRequest {
        tags: vec!["app:1".to_owned()],
        ..bench.request("FROM scratch\nCOPY a /a\n")
    };
    let builds = || store.builds(9).unwrap();
    let tell = |built: &BuildResult| {
        assert!(matches!(builds()[0].state, BuildState::Running));
        assert_eq!(built.names, ["app:1"]);
        let source = io::Error::other("no space left");
        let to = "id".to_owned();
        Err(BuildError::Report { to, source })
    };
    let (watch, cancel) = (bench::Watch::default(), Cancel::new());
    let built = build_and_report(&request, &store, &VmForbidden, &watch, &cancel, tell);
    assert_eq!(built.unwrap_err().class(), Class::Host);
    let BuildState::Ended(_, outcome) = &builds()[0].state else {
        panic!("{:?}", builds())
    };
    assert_eq!((outcome.class, outcome.status), (store::Class::Host, 125));
    assert_eq!(outcome.message, "cannot write id: no space left");
    assert_eq!(outcome.image, None);
    store.close().unwrap();
}

/// For builds without RUN.
struct VmForbidden;

impl Executor for VmForbidden {
    fn prepare(&self) {}

    fn run(&self, _: &StepSpec, _: &mut dyn Output, _: &Cancel) -> Result<StepDone, StepError> {
        panic!("nothing to run")
    }
}

#[test]
fn a_cancelled_build_says_so() {
    let bench = Bench::new();
    let cancel = Cancel::new();
    let later = cancel.clone();
    let thread = std::thread::spawn(move || {
        let _slept = later.sleep(Duration::from_millis(300));
        later.cancel();
    });
    let built = bench.build_as(&bench.request("FROM scratch\nRUN wait\n"), &cancel);
    thread.join().unwrap();
    assert_eq!(built.result.unwrap_err().class(), Class::Cancelled);
}

#[test]
fn only_what_the_target_needs_is_run() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch AS base\nRUN base\nFROM base AS tests\nRUN tests\nFROM base AS app\nRUN app\n";
    let request = BuildRequest {
        target: Some("app".to_owned()),
        ..bench.request(dockerfile)
    };
    let built = bench.build_as(&request, &Cancel::new());
    built.result.as_ref().unwrap();
    assert_eq!(built.commands(), ["base", "app"]);
}

#[test]
fn a_step_is_given_user_directory_and_environment() {
    let bench = Bench::new();
    bench.write("passwd", "ann:x:7:8::/home/ann:/bin/sh\n");
    let dockerfile =
        "FROM scratch\nCOPY passwd /etc/passwd\nENV A=b\nUSER ann\nWORKDIR /w\nRUN step\n";
    let built = bench.build(dockerfile);
    built.result.as_ref().unwrap();
    let step = built.ran.first().unwrap();
    assert_eq!((step.uid, step.gid, step.cwd.as_str()), (7, 8, "/w"));
    assert!(step.env.contains(&"A=b".to_owned()));
    assert!(step.env.contains(&"HOME=/home/ann".to_owned()));
    assert_eq!(step.args, ["/bin/sh", "-c", "step"]);
}

#[test]
fn a_file_of_another_stage_is_copied_without_a_vm() {
    let bench = Bench::new();
    bench.write("a", "content");
    let dockerfile = "FROM scratch AS one\nCOPY a /deep/a\nFROM scratch\nCOPY --from=one /deep /\n";
    let built = bench.build(dockerfile);
    let image = built.result.unwrap().image;
    assert_eq!(image.layers.len(), 1);
    assert!(built.ran.is_empty());
}

#[test]
fn equal_steps_of_two_stages_run_once() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch AS a\nRUN same\nFROM scratch AS b\nRUN same\n\
                      FROM scratch\nCOPY --from=a /made-by-same /a\nCOPY --from=b /made-by-same /b\n";
    let built = bench.build(dockerfile);
    built.result.as_ref().unwrap();
    assert_eq!(built.commands(), ["same"]);
}

#[test]
fn the_summary_names_every_step_in_order() {
    let bench = Bench::new();
    let built = bench
        .build("FROM scratch AS s\nRUN a\nRUN b\n")
        .result
        .unwrap();
    let names: Vec<&str> = built.steps.iter().map(|step| step.name.as_str()).collect();
    assert!(
        names.iter().any(|name| name.ends_with("RUN a")),
        "{names:?}"
    );
}

/// Far less than `wait` takes, far more than anything else.
const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_step_that_takes_too_long_or_prints_nothing_too_long_ends_as_a_limit() {
    let bench = Bench::new();
    let request = |step_timeout, idle_timeout| BuildRequest {
        step_timeout,
        idle_timeout,
        ..bench.request("FROM scratch\nRUN wait\n")
    };
    for (request, option) in [
        (request(Some(LIMIT), None), "--step-timeout"),
        (request(None, Some(LIMIT)), "--idle-timeout"),
    ] {
        let err = bench.build_as(&request, &Cancel::new()).result.unwrap_err();
        assert_eq!(err.class(), Class::Limit);
        assert!(err.to_string().contains(option), "{err}");
        assert!(err.to_string().contains("2 s"), "{err}");
    }
    // Other steps are not affected, and nothing is remembered.
    let request = BuildRequest {
        step_timeout: Some(Duration::from_secs(60)),
        ..bench.request("FROM scratch\nRUN quick\n")
    };
    assert!(bench.build_as(&request, &Cancel::new()).result.is_ok());
}

#[test]
fn a_build_that_takes_too_long_ends_as_a_limit_and_the_history_says_so() {
    let bench = Bench::new();
    let request = BuildRequest {
        timeout: Some(LIMIT),
        ..bench.request("FROM scratch\nRUN wait\n")
    };
    let built = bench.build_as(&request, &Cancel::new());
    let err = built.result.as_ref().unwrap_err();
    assert_eq!(err.class(), Class::Limit);
    assert!(err.to_string().contains("--timeout"), "{err}");
    let store = bench.open();
    let BuildState::Ended(_, outcome) = &store.builds(1).unwrap()[0].state else {
        panic!("running")
    };
    assert_eq!((outcome.class, outcome.status), (store::Class::Limit, 124));
    store.close().unwrap();
}
