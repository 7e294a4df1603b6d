//! Stages, targets, images, numbering.

use super::*;

fn names(text: &str, o: &PlanOptions) -> Vec<String> {
    plan_with(text, o)
        .stages
        .into_iter()
        .map(|stage| stage.name)
        .collect()
}

fn with_target(target: &str) -> PlanOptions {
    PlanOptions {
        target: Some(target.to_owned()),
        ..options()
    }
}

fn requested(text: &str, o: &PlanOptions) -> Vec<(String, String, usize)> {
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    let requests = needed_images(&file, o).unwrap();
    requests
        .into_iter()
        .map(|request| {
            (
                request.key.name,
                request.key.platform.to_string(),
                request.line,
            )
        })
        .collect()
}

const MULTI: &str = "\
FROM golang AS build
RUN make
FROM unused/image AS extra
RUN --mount=type=cache,target=/c x
FROM alpine
COPY --from=build /a /a
COPY --from=0 /b /b
COPY --from=busybox:1 /c /c
";

#[test]
fn only_what_the_target_needs_is_planned() {
    assert_eq!(names(MULTI, &options()), ["build", "stage-2"]);
    assert_eq!(names(MULTI, &with_target("BUILD")), ["build"]);
    let amd64 = || "linux/amd64".to_owned();
    assert_eq!(
        requested(MULTI, &options()),
        [
            ("golang".to_owned(), amd64(), 1),
            ("alpine".to_owned(), amd64(), 5),
            ("busybox:1".to_owned(), amd64(), 8)
        ]
    );
}

#[test]
fn stages_name_each_other_by_their_place_in_the_plan() {
    let plan = plan_of(MULTI);
    assert_eq!(plan.target, 1);
    let froms: Vec<_> = plan.stages[1]
        .steps
        .iter()
        .filter_map(|step| match &step.op {
            Op::Copy(spec) => Some(spec.from.clone()),
            Op::Run(_) | Op::Workdir { .. } | Op::Meta => None,
        })
        .collect();
    use crate::copy::CopyFrom::{Image, Stage};
    assert_eq!(froms, [Stage(0), Stage(0), Image("busybox:1".to_owned())]);
    let text = "FROM a AS x\nFROM b AS y\nFROM y\nRUN z";
    assert_eq!(plan_of(text).stages[1].base, Base::Stage(0));
}

#[test]
fn steps_are_numbered_within_their_stage() {
    let displays: Vec<String> = plan_of(MULTI)
        .stages
        .into_iter()
        .flat_map(|stage| {
            std::iter::once(stage.base_display).chain(stage.steps.into_iter().map(|s| s.display))
        })
        .collect();
    assert_eq!(
        displays,
        [
            "[build 1/2] FROM golang",
            "[build 2/2] RUN make",
            "[stage-2 1/4] FROM alpine",
            "[stage-2 2/4] COPY --from=build /a /a",
            "[stage-2 3/4] COPY --from=0 /b /b",
            "[stage-2 4/4] COPY --from=busybox:1 /c /c",
        ]
    );
}

#[test]
fn one_stage_is_not_named_and_meta_steps_are_not_counted() {
    let stage = target_of("FROM scratch\nenv A=1\nrun echo $A $B\nWORKDIR /x");
    let displays: Vec<_> = stage
        .steps
        .iter()
        .map(|step| step.display.as_str())
        .collect();
    assert_eq!(
        displays,
        ["ENV A=1", "[1/2] RUN echo 1 $B", "[2/2] WORKDIR /x"]
    );
    let stage = target_of(&format!("FROM a\n{}", "RUN x\n".repeat(9)));
    assert_eq!(stage.steps[0].display, "[ 2/10] RUN x");
    assert_eq!(stage.base_display, "[ 1/10] FROM a");
}

#[test]
fn a_stage_name_matches_without_case_except_in_from() {
    let text = "FROM alpine AS Base\nFROM alpine\nCOPY --from=BASE /x /y";
    assert_eq!(names(text, &options()), ["base", "stage-1"]);
    refused(
        "FROM alpine AS Base\nFROM Base",
        2,
        "must be in lower case did you mean base?",
    );
}

#[test]
fn indexes_work_in_copy_from_only() {
    let text = "FROM a AS x\nRUN y";
    refused_with(text, &with_target("0"), 0, "could not be found");
    refused(
        "FROM a\nCOPY --from=1 /x /y",
        2,
        "no stage with the index 1",
    );
    refused(
        "FROM a\nCOPY --from=99999999999999999999999 /x /y",
        2,
        "no stage with the index",
    );
}

#[test]
fn an_unknown_target_is_an_error_with_a_suggestion() {
    refused_with(MULTI, &with_target("biuld"), 0, "did you mean build?");
}

#[test]
fn a_stage_must_be_defined_before_it_is_used() {
    refused("FROM a AS x\nCOPY --from=x /x /y", 2, "circular dependency");
    refused("FROM a\nCOPY --from=0 /x /y", 2, "circular dependency");
    let text = "FROM s AS a\nFROM s AS b\nCOPY --from=a /x /y\nFROM s AS a\nCOPY --from=b /x /y";
    refused(text, 3, "needs to be defined before");
    refused(
        "FROM s AS x\nCOPY --from=y /a /b\nFROM s AS y\nCOPY --from=x /a /b",
        2,
        "defined before",
    );
}

#[test]
fn of_equal_names_from_takes_the_one_above_and_the_target_the_last() {
    let text = "FROM one AS a\nRUN 1\nFROM a AS b\nRUN 2\nFROM two AS a\nRUN 3";
    let plan = plan_with(text, &with_target("b"));
    assert_eq!(plan.stages[0].base_display, "[a 1/2] FROM one");
    let plan = plan_with(text, &with_target("a"));
    assert_eq!((plan.stages.len(), plan.stages[0].line), (1, 5));
}

#[test]
fn a_misspelt_stage_becomes_an_image_and_the_stage_is_remembered() {
    let file = parse(
        "Dockerfile",
        b"FROM golang AS build\nFROM alpine\nCOPY --from=biuld /x /y",
    );
    let requests = needed_images(&file.unwrap(), &options()).unwrap();
    let request = requests
        .iter()
        .find(|request| request.key.name == "biuld")
        .unwrap();
    assert_eq!(
        (request.line, request.similar_stage.as_deref()),
        (3, Some("build"))
    );
}

#[test]
fn from_expands_global_arguments_and_platforms() {
    let text = "ARG V=3.20\nARG P=linux/arm64\nFROM --platform=$P alpine:${V}\nRUN x";
    assert_eq!(
        requested(text, &options()),
        [("alpine:3.20".into(), "linux/arm64".into(), 3)]
    );
    let o = options_with_args(&[("V", "edge")]);
    assert_eq!(requested(text, &o)[0].0, "alpine:edge");
    refused("ARG X\nFROM $X", 2, "base name ($X) should not be blank");
    refused("FROM --platform=what alpine", 1, "not a platform");
    refused("FROM \"a", 1, "matching double-quote");
}

#[test]
fn one_name_on_two_platforms_is_two_images() {
    let text = "FROM --platform=linux/arm64 a AS x\nFROM a\nCOPY --from=x /x /x";
    assert_eq!(requested(text, &options()).len(), 2);
    let text = "FROM a AS x\nFROM a\nCOPY --from=x /x /x\nCOPY --from=a /y /y";
    assert_eq!(requested(text, &options()).len(), 1);
}

#[test]
fn a_platform_on_a_stage_has_no_effect() {
    let text = "FROM a AS x\nFROM --platform=linux/arm64 x\nRUN y";
    assert_eq!(
        requested(text, &options()),
        [("a".into(), "linux/amd64".into(), 1)]
    );
}

#[test]
fn from_cannot_be_followed_by_a_comment() {
    refused(
        "FROM alpine # base\nRUN true",
        1,
        "either one or three arguments",
    );
    refused("FROM alpine AS 1st", 1, "invalid name for build stage");
    refused("FROM alpine as-is b", 1, "either one or three");
}

#[test]
fn variables_in_copy_from_are_refused() {
    refused(
        "FROM a AS x\nFROM a\nCOPY --from=$X /a /b",
        3,
        "not supported for --from",
    );
}

#[test]
fn named_contexts_stand_in_for_images_and_stages() {
    let o = PlanOptions {
        named_contexts: ["alpine", "build", "ctx::linux/amd64", "ctx", "scratch"]
            .map(String::from)
            .into(),
        ..options()
    };
    let text = "FROM golang AS build\nRUN make\nFROM docker.io/library/alpine:latest\n\
                COPY --from=build /a /a\nCOPY --from=ctx /a /a";
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    let contexts: Vec<_> = needed_images(&file, &o)
        .unwrap()
        .into_iter()
        .map(|request| request.context)
        .collect();
    let expected = ["build", "alpine", "ctx::linux/amd64"].map(|name| Some(name.to_owned()));
    assert_eq!(contexts, expected);
    let plan = plan_with(text, &o);
    assert!(plan.stages[0].steps.is_empty());
    assert!(plan_with("FROM scratch\nLABEL a=b", &o).stages[0].base == Base::Scratch);
}

#[test]
fn a_stage_inherits_configuration_and_variables() {
    let text = "FROM a AS x\nARG V=1\nENV E=2\nUSER u\nWORKDIR /w\nSHELL [\"/b\", \"-c\"]\n\
                LABEL l=1\nFROM x\nRUN y";
    let stage = target_of(text);
    let run = runs(&stage)[0];
    assert!(run.env.contains(&"V=1".to_owned()) && run.env.contains(&"E=2".to_owned()));
    assert_eq!((run.user.as_str(), run.cwd.as_str()), ("u", "/w"));
    assert_eq!(run.args, ["/b", "-c", "y"]);
    assert_eq!(stage.steps[0].created_by, "RUN |1 V=1 /b -c y # buildkit");
    assert_eq!(stage.config.labels["l"], "1");
}

#[test]
fn triggers_run_in_the_child_and_not_in_grandchildren() {
    let text =
        "FROM a AS x\nONBUILD RUN trigger $V\nONBUILD ENV T=1\nFROM x AS y\nRUN own\nFROM y\nRUN z";
    let plan = plan_of(text);
    assert!(runs(&plan.stages[0]).is_empty());
    assert_eq!(
        plan.stages[0].config.on_build,
        ["RUN trigger $V", "ENV T=1"]
    );
    let child: Vec<_> = plan.stages[1]
        .steps
        .iter()
        .map(|step| step.display.as_str())
        .collect();
    assert_eq!(
        child,
        ["[y 1/2] RUN trigger $V", "ENV T=1", "[y 2/2] RUN own"]
    );
    assert_eq!(plan.stages[1].steps[0].line, 4);
    assert!(plan.stages[1].config.on_build.is_empty());
    assert_eq!(runs(&plan.stages[2]).len(), 1);
}

#[test]
fn triggers_of_images_run_too_and_may_need_stages() {
    let config = ImageConfig {
        on_build: vec!["COPY --from=tools /t /t".into(), "RUN <<E\nbody\nE".into()],
        ..ImageConfig::default()
    };
    let stage = on_image(config, "FROM s AS tools\nFROM base\nRUN x");
    assert!(
        matches!(&stage.steps[0].op, Op::Copy(spec) if spec.from == crate::copy::CopyFrom::Stage(0))
    );
    assert_eq!(runs(&stage)[0].args[2], "body\n");
    assert!(stage.config.on_build.is_empty());
}

#[test]
fn a_wrong_trigger_is_an_error_where_it_is_used() {
    let file = parse("Dockerfile", b"ARG X\nFROM base").unwrap();
    for (trigger, part) in [
        ("NOPE x", "unknown instruction"),
        ("RUN a\nRUN b", "not a single instruction"),
        ("", "not a single instruction"),
        ("COPY --from=other/image /a /b", "was not resolved"),
    ] {
        let config = ImageConfig {
            on_build: vec![trigger.into()],
            ..ImageConfig::default()
        };
        let base = ImageConfigFile {
            config,
            ..ImageConfigFile::default()
        };
        let key = ImageKey {
            name: "base".into(),
            platform: options().platform,
        };
        let got = plan(&file, &options(), &[(key, base)].into());
        match got {
            Err(err) => assert!(err.line == 2 && err.message.contains(part), "{err}"),
            Ok(_) => panic!("accepted: {trigger}"),
        }
    }
}

#[test]
fn external_front_ends_are_refused_unless_overridden() {
    let text = "# syntax=my/frontend:1\nFROM scratch\nRUN x";
    refused(
        text,
        1,
        "the external front end \"my/frontend:1\" is not supported yet",
    );
    refused(
        "# syntax=my/frontend:1\nthis is not a Dockerfile",
        1,
        "external front end",
    );
    plan_with(
        text,
        &options_with_args(&[("BUILDKIT_SYNTAX", "docker/dockerfile:1")]),
    );
    plan_with(
        text,
        &options_with_args(&[("BUILDKIT_SYNTAX", "dockerfile.v0")]),
    );
    for own in [
        "docker/dockerfile",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile:1@sha256:ab",
    ] {
        plan_of(&format!("# syntax={own}\nFROM scratch\nLABEL a=b"));
    }
}

#[test]
fn what_cannot_be_built_yet_is_refused_only_where_it_is_needed() {
    for (instruction, part) in [
        (
            "RUN --mount=type=cache,target=/c x",
            "RUN --mount is not supported yet",
        ),
        ("RUN --security=insecure x", "not supported yet"),
        ("RUN --device=d x", "not supported yet"),
        ("RUN --network=host x", "not supported yet"),
        (
            "ADD git@github.com:a/b.git /",
            "ADD of a git repository is not supported yet",
        ),
    ] {
        refused(&format!("FROM a\n{instruction}"), 2, part);
        plan_of(&format!("FROM a\n{instruction}\nFROM a\nRUN x"));
    }
    assert_eq!(
        runs(&target_of("FROM a\nRUN --network=none x"))[0].network,
        StepNetwork::None
    );
    refused("FROM a\nRUN --network=x y", 2, "default, none or host");
    refused("FROM a\nRUN --security=x y", 2, "sandbox or insecure");
}
