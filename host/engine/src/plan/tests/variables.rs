//! ARG, ENV and the variables of a stage.

use super::*;

#[test]
fn values_that_double_are_stopped() {
    let doubling = "ENV V=$V$V\n".repeat(60);
    let text = format!("FROM scratch\nENV V=0123456789\n{doubling}");
    let err = try_plan_with(&text, &options()).unwrap_err();
    assert!(err.message.contains("the value is longer than"), "{err}");
    let many = "ENV A$B=$V\n".to_owned() + &"RUN x\n".repeat(5_000);
    let text = format!("FROM scratch\nENV V={}\n{many}", "x".repeat(60_000));
    assert!(
        try_plan_with(&text, &options())
            .unwrap_err()
            .message
            .contains("plan would be larger")
    );
}

#[test]
fn one_env_instruction_sees_the_values_before_it() {
    assert_eq!(
        seen("FROM scratch\nENV a=1 b=$a\nRUN x", &options(), "b"),
        Some(String::new())
    );
    let text = "FROM scratch\nENV a=0\nENV a=1 b=$a\nRUN x";
    assert_eq!(seen(text, &options(), "b").as_deref(), Some("0"));
}

#[test]
fn one_arg_instruction_goes_name_by_name() {
    let text = "FROM scratch\nARG a=1 b=$a\nENV c=$b\nRUN x";
    assert_eq!(seen(text, &options(), "c").as_deref(), Some("1"));
}

#[test]
fn env_keys_are_expanded_and_arg_names_are_not() {
    let text = "FROM scratch\nENV n=K\nENV $n=v\nRUN x";
    assert_eq!(seen(text, &options(), "K").as_deref(), Some("v"));
}

#[test]
fn global_arguments_are_not_in_stages_until_they_are_declared() {
    let text = "ARG V=1\nFROM scratch\nRUN x";
    assert_eq!(seen(text, &options(), "V"), None);
    let text = "ARG V=1\nFROM scratch\nARG V\nRUN x";
    assert_eq!(seen(text, &options(), "V").as_deref(), Some("1"));
    let text = "ARG V=1\nFROM scratch\nARG V=2\nRUN x";
    assert_eq!(seen(text, &options(), "V").as_deref(), Some("2"));
    assert_eq!(
        seen(text, &options_with_args(&[("V", "3")]), "V").as_deref(),
        Some("3")
    );
}

#[test]
fn the_last_writer_wins_while_building_and_the_image_keeps_env() {
    let text = "FROM scratch\nENV X=1\nARG X=2\nRUN x";
    assert_eq!(seen(text, &options(), "X").as_deref(), Some("2"));
    assert!(target_of(text).config.env.contains(&"X=1".to_owned()));
    let text = "FROM scratch\nARG X\nENV X=1\nRUN x";
    assert_eq!(
        seen(text, &options_with_args(&[("X", "3")]), "X").as_deref(),
        Some("1")
    );
}

#[test]
fn an_empty_build_argument_counts() {
    let text = "FROM scratch\nARG X=1\nENV Y=${X-d} Z=${X:-d}\nRUN x";
    let o = options_with_args(&[("X", "")]);
    assert_eq!(seen(text, &o, "Y").as_deref(), Some(""));
    assert_eq!(seen(text, &o, "Z").as_deref(), Some("d"));
}

#[test]
fn an_unset_argument_is_absent_and_an_empty_one_present() {
    let text = "FROM scratch\nARG A\nARG B=\nRUN x";
    assert_eq!(seen(text, &options(), "A"), None);
    assert_eq!(seen(text, &options(), "B").as_deref(), Some(""));
}

#[test]
fn arguments_are_environment_but_not_configuration() {
    let stage = target_of("FROM scratch\nARG STAMP=7\nRUN make");
    assert!(runs(&stage)[0].env.contains(&"STAMP=7".to_owned()));
    assert!(
        stage
            .config
            .env
            .iter()
            .all(|entry| !entry.starts_with("STAMP"))
    );
}

#[test]
fn of_one_name_the_last_build_argument_counts() {
    let o = options_with_args(&[("X", "1"), ("X", "2")]);
    assert_eq!(
        seen("FROM scratch\nARG X\nRUN x", &o, "X").as_deref(),
        Some("2")
    );
}

#[test]
fn automatic_arguments_follow_the_platform_and_can_be_overridden() {
    let text =
        "FROM scratch AS last\nARG TARGETPLATFORM\nARG TARGETARCH BUILDARCH TARGETSTAGE\nRUN x";
    let o = PlanOptions {
        platform: Platform::linux("arm64"),
        ..options()
    };
    assert_eq!(
        seen(text, &o, "TARGETPLATFORM").as_deref(),
        Some("linux/arm64")
    );
    assert_eq!(seen(text, &o, "BUILDARCH").as_deref(), Some("amd64"));
    assert_eq!(seen(text, &o, "TARGETSTAGE").as_deref(), Some("last"));
    let o = options_with_args(&[("TARGETARCH", "mips")]);
    assert_eq!(seen(text, &o, "TARGETARCH").as_deref(), Some("mips"));
    assert_eq!(seen("FROM scratch\nRUN x", &o, "TARGETARCH"), None);
}

#[test]
fn proxies_reach_run_in_both_cases_without_entering_keys() {
    let o = options_with_args(&[("http_proxy", "p"), ("NO_PROXY", "n")]);
    let plan = plan_with("FROM scratch\nRUN x", &o);
    let run = runs(&plan.stages[0])[0];
    assert_eq!(
        run.unkeyed_env,
        ["HTTP_PROXY=p", "NO_PROXY=n", "http_proxy=p", "no_proxy=n"]
    );
    assert!(
        run.env
            .iter()
            .all(|entry| !entry.to_lowercase().contains("proxy"))
    );
    assert!(!plan.stages[0].steps[0].created_by.contains("proxy"));
    let plan = plan_with("FROM scratch\nARG http_proxy\nRUN x", &o);
    let run = runs(&plan.stages[0])[0];
    assert!(run.env.contains(&"http_proxy=p".to_owned()));
    assert_eq!(
        run.unkeyed_env,
        ["HTTP_PROXY=p", "NO_PROXY=n", "no_proxy=n"]
    );
}

#[test]
fn an_escape_directive_changes_the_escape_of_values() {
    let text = "# escape=`\nFROM scratch\nENV A=c:\\x`$y\nRUN x";
    assert_eq!(seen(text, &options(), "A").as_deref(), Some("c:\\x$y"));
}

#[test]
fn indentation_stays_in_a_continued_value() {
    let text = "FROM scratch\nENV X=\"a\\\n  b\"\nRUN x";
    assert_eq!(seen(text, &options(), "X").as_deref(), Some("a  b"));
}

#[test]
fn legacy_env_takes_the_whole_line() {
    let text = "FROM scratch\nENV A 1 B=2\nRUN x";
    assert_eq!(seen(text, &options(), "A").as_deref(), Some("1 B=2"));
    assert_eq!(seen(text, &options(), "B"), None);
}
