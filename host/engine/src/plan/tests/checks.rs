//! Warnings.

use super::*;

/// Rules with their lines; texts without a rule come as they are.
fn found(text: &str, o: &PlanOptions) -> Vec<(String, usize)> {
    let warnings = plan_with(text, o).warnings;
    warnings
        .into_iter()
        .map(|warning| {
            let name = warning
                .rule
                .map_or_else(|| warning.text.clone(), str::to_owned);
            (name, warning.line.unwrap_or_default())
        })
        .collect()
}

#[track_caller]
fn check(text: &str, expected: &[(&str, usize)]) {
    let found = found(text, &options());
    let found: Vec<_> = found
        .iter()
        .map(|(rule, line)| (rule.as_str(), *line))
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn a_tidy_file_has_no_warnings() {
    check(
        "ARG V=1\nFROM a:$V AS b\nARG V\nRUN x\nFROM a:$V\nCOPY --from=b /x /y\nCMD [\"z\"]",
        &[],
    );
}

#[test]
fn each_check_reports_its_rule_and_line() {
    check("FROM a AS Base\nRUN x", &[("StageNameCasing", 1)]);
    check("FROM a as b\nRUN x", &[("FromAsCasing", 1)]);
    check("FROM a AS scratch\nRUN x", &[("ReservedStageName", 1)]);
    check(
        "FROM a AS b\nFROM a AS b\nRUN x",
        &[("DuplicateStageName", 2)],
    );
    check("FROM a\nMAINTAINER x", &[("MaintainerDeprecated", 2)]);
    check(
        "FROM a\nENV A 1\nLABEL b 2",
        &[("LegacyKeyValueFormat", 2), ("LegacyKeyValueFormat", 3)],
    );
    check("FROM a\nRUN a \\\n\n b", &[("NoEmptyContinuation", 2)]);
    check("FROM a\nCMD x", &[("JSONArgsRecommended", 2)]);
    check(
        "FROM a\nCMD [\"a\"]\nCMD [\"b\"]",
        &[("MultipleInstructionsDisallowed", 2)],
    );
    check(
        "FROM a\nWORKDIR x\nWORKDIR y",
        &[("WorkdirRelativePath", 2)],
    );
    check("FROM a\nWORKDIR /x\nWORKDIR y", &[]);
    check("FROM a\nARG D\nENV A=$D$X", &[("UndefinedVar", 3)]);
    check("FROM a$X\nRUN x", &[("UndefinedArgInFrom", 1)]);
    check("ARG X\nFROM a$X\nRUN x", &[]);
    check(
        "FROM --platform=$TARGETPLATFORM a\nRUN x",
        &[("RedundantTargetPlatform", 1)],
    );
    check("FROM a\nrun x", &[("ConsistentInstructionCasing", 2)]);
    check(
        "from a\nrun x\nRUN y",
        &[("ConsistentInstructionCasing", 3)],
    );
    check(
        "FROM a\nEXPOSE 80/TCP 1:2",
        &[("ExposeInvalidFormat", 2), ("ExposeProtoCasing", 2)],
    );
}

#[test]
fn secrets_are_recognised_by_whole_words() {
    check(
        "FROM a\nARG MONKEY\nARG API_KEY\nENV PUBLIC_KEY=x",
        &[("SecretsUsedInArgOrEnv", 3)],
    );
}

#[test]
fn checks_can_be_switched_off() {
    check("# check=skip=JSONArgsRecommended\nFROM a\nCMD x", &[]);
    check(
        "FROM a\n# check=skip=JSONArgsRecommended\nCMD x\nENTRYPOINT y",
        &[("JSONArgsRecommended", 4)],
    );
    let o = options_with_args(&[("BUILDKIT_DOCKERFILE_CHECK", "skip=all")]);
    assert_eq!(found("FROM a\nCMD x", &o), []);
}

#[test]
fn checks_can_fail_the_build() {
    refused(
        "# check=error=true\nFROM a\nCMD x",
        3,
        "lint violation found for rules: JSONArgsRecommended",
    );
    plan_of("# check=error=true;skip=JSONArgsRecommended\nFROM a\nCMD x");
}

#[test]
fn a_build_argument_that_nobody_uses_is_reported() {
    let text = "FROM a\nARG VERSION\nONBUILD ARG T\nFROM a\nRUN x";
    let o = options_with_args(&[
        ("VERSOIN", "1"),
        ("VERSION", "1"),
        ("http_proxy", "x"),
        ("TARGETARCH", "y"),
    ]);
    assert_eq!(
        found(text, &o),
        [(
            "no ARG uses --build-arg VERSOIN (did you mean VERSION?)".to_owned(),
            0
        )]
    );
    let text = "FROM a AS x\nONBUILD ARG T\nFROM x\nRUN y";
    assert_eq!(found(text, &options_with_args(&[("T", "1")])), []);
}

#[test]
fn a_base_image_for_another_platform_is_reported() {
    let file = parse("Dockerfile", b"FROM a\nRUN x").unwrap();
    let key = ImageKey {
        name: "a".into(),
        platform: options().platform,
    };
    let base = ImageConfigFile {
        os: "linux".into(),
        architecture: "arm64".into(),
        ..ImageConfigFile::default()
    };
    let plan = plan(&file, &options(), &[(key, base)].into()).unwrap();
    assert_eq!(plan.warnings[0].rule, Some("InvalidBaseImagePlatform"));
}
