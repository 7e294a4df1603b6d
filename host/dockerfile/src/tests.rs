//! Whole files.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check_error(text: &str, part: &str) {
    let error = parse("Dockerfile", text.as_bytes()).unwrap_err();
    assert!(error.message.contains(part), "{error}");
}

#[test]
fn invalid_and_oversized_files_are_refused() {
    check_error(
        &format!("FROM a\n{}", "RUN x\n".repeat(10_000)),
        "more than 10000 instructions",
    );
    check_error(&"FROM a\n".repeat(1_001), "more than 1000 stages");
    check_error(
        &format!("FROM a\nRUN {}", "x".repeat(65_536)),
        "greater than max allowed size",
    );
    check_error(&"#".repeat((16 << 20) + 1), "larger than 16 MiB");
    check_error("", "cannot be empty");
    check_error("# x\n\n", "no instructions");
    check_error("ARG X", "no stages to build");
    check_error("RUN x", "no build stage in current context");
    check_error("FROM a\nRUN x\0y", "NUL byte");
}

#[test]
fn instructions_have_stages_and_lines() {
    let text = "ARG V=1\n\nFROM a:$V AS One\n# c\nRUN <<E\nx\nE\nFROM One\nCMD \\\n\n y\n";
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    assert_eq!(file.global.len(), 1);
    let names: Vec<_> = file.stages.iter().map(StageText::name).collect();
    assert_eq!(names, [Some("one".to_owned()), None]);
    let run = &file.stages[0].instructions[0];
    assert_eq!((run.first, run.last, run.text.as_str()), (5, 7, "RUN <<E"));
    assert_eq!(run.comments, ["c"]);
    let Kind::Run(Run { heredocs, .. }) = &run.kind else {
        panic!("not RUN: {run:?}")
    };
    assert_eq!(heredocs[0].content(), b"x\n");
    let cmd = &file.stages[1].instructions[0];
    assert_eq!((cmd.first, cmd.last), (9, 11));
    assert_eq!(file.blank_inside, BTreeSet::from([9]));
}

#[test]
fn a_file_for_another_front_end_says_so_instead_of_a_syntax_error() {
    check_error("# syntax=my/front:1\nnonsense", "my/front:1");
    assert!(parse("Dockerfile", b"# syntax=my/front:1\nFROM a").is_ok());
    check_error(
        "# syntax=docker/dockerfile:1\nnonsense",
        "unknown instruction",
    );
}

#[test]
fn a_trigger_is_exactly_one_instruction() {
    let trigger = parse_trigger("COPY <<E /f\nx\nE").unwrap();
    assert!(matches!(trigger.kind, Kind::Copy(_)));
    for text in ["", "RUN a\nRUN b", "NOPE"] {
        assert!(parse_trigger(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused_with_a_line_that_exists(
        text in prop::collection::vec(any::<u8>(), 0..400)
    ) {
        let lines = text.split(|byte| *byte == b'\n').count();
        if let Err(error) = parse("Dockerfile", &text) {
            prop_assert!(error.line <= error.last_line && error.last_line <= lines);
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn excerpts_never_panic(
        text in prop::collection::vec(any::<u8>(), 0..200), first in any::<usize>(), last in any::<usize>()
    ) {
        prop_assert!(excerpt(&text, first, last).starts_with("---"));
    }
}
