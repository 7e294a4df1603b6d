//! Laws that hold for any input.

use proptest::prelude::*;

use super::*;

/// Lines that look like a Dockerfile, with all kinds of odd endings.
fn dockerfile() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "FROM",
        "ARG",
        "ENV",
        "RUN",
        "COPY",
        "ADD",
        "CMD",
        "ENTRYPOINT",
        "LABEL",
        "EXPOSE",
        "USER",
        "WORKDIR",
        "VOLUME",
        "SHELL",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ONBUILD",
        "MAINTAINER",
        "#",
        "",
        "# escape=`",
        "ONBUILD RUN",
        "HEALTHCHECK CMD",
        "COPY --from=0",
        "RUN --network=none",
    ]);
    let rest = prop_oneof![
        "[ -~]{0,30}",
        "[a-c$={}:#%/\\\\\"'`<\\-\\[\\], ]{0,30}",
        prop::sample::select(vec![
            "scratch",
            "a AS b",
            "<<E",
            "<<-'E' /f",
            "a=1 b=$a",
            "[\"a\", \"b\"]",
            "80-90/udp"
        ])
        .prop_map(str::to_owned),
    ];
    let line = (name, rest).prop_map(|(name, rest)| format!("{name} {rest}"));
    let line = prop_oneof![8 => line, 1 => Just("E".to_owned()), 1 => Just("\\".to_owned())];
    prop::collection::vec(line, 0..12)
        .prop_map(|lines| format!("FROM scratch\n{}", lines.join("\n")))
}

/// Reads and plans; whatever comes out names lines that exist.
fn run_all(text: &[u8]) {
    let lines = text.split(|byte| *byte == b'\n').count();
    let result = parse("Dockerfile", text).and_then(|file| {
        let requests = needed_images(&file, &options())?;
        let images = requests
            .into_iter()
            .map(|request| (request.key, ImageConfigFile::default()));
        plan(&file, &options(), &images.collect())
    });
    match result {
        Err(err) => {
            assert!(err.line <= err.last_line && err.last_line <= lines, "{err}");
            assert!(!err.to_string().contains('\n'), "{err}");
        }
        Ok(plan) => {
            for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
                assert!(step.line >= 1 && step.line <= step.last_line && step.last_line <= lines);
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
        run_all(&text);
    }

    #[test]
    fn what_looks_like_a_dockerfile_never_panics(text in dockerfile()) {
        run_all(text.as_bytes());
    }

    #[test]
    fn expansion_never_panics(text in "[ab$={}:#%/?+\\-\\\\\"'*`]{0,40}") {
        run_all(format!("FROM scratch\nENV a=ab/ba.ab\nENV R={text}\nUSER {text}").as_bytes());
    }

    #[test]
    fn a_plain_value_comes_through_quoting(value in "[^\0\r\n'\\p{Cc}]{0,40}") {
        let text = format!("FROM scratch\nENV R='{value}'\nRUN x");
        prop_assert_eq!(seen(&text, &options(), "R"), Some(value));
    }

    #[test]
    fn any_value_comes_through_escaping(value in "[ -~äß]{1,40}") {
        let escaped: String = value.chars().flat_map(|c| ['\\', c]).collect();
        let text = format!("FROM scratch\nENV R={escaped}''\nRUN x");
        prop_assert_eq!(seen(&text, &options(), "R"), Some(value));
    }

    #[test]
    fn any_argument_list_comes_through_json(args in prop::collection::vec("[^\0]{0,10}", 1..5)) {
        let text = format!("FROM scratch\nRUN {}", serde_json::to_string(&args).unwrap());
        let stage = target_of(&text);
        prop_assert_eq!(&runs(&stage)[0].args, &args);
    }

    #[test]
    fn splitting_a_line_anywhere_changes_nothing(at in 5usize..40) {
        let line = "RUN echo one two   three 'four five' $SIX";
        let (head, tail) = line.split_at(at.min(line.len()));
        prop_assume!(!tail.trim().is_empty() && !tail.starts_with('#'));
        let text = format!("FROM scratch\n{head}\\\n{tail}");
        let stage = target_of(&text);
        prop_assert_eq!(&runs(&stage)[0].args[2], "echo one two   three 'four five' $SIX");
    }

    #[test]
    fn planning_twice_gives_the_same(text in dockerfile()) {
        let once = try_plan_with(&text, &options());
        prop_assert_eq!(once, try_plan_with(&text, &options()));
    }
}
