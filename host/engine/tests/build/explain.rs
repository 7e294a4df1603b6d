//! `--explain`: which input of a step changed since the last time.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use engine::build::{BuildRequest, DockerfileSource};
use engine::pull::ImageSource;
use exec::Cancel;
use store::PruneOptions;

use crate::bench::{Bench, Built};

impl Bench {
    /// Builds the Dockerfile at its usual place.
    fn explain(&self, dockerfile: &str) -> Built {
        self.explain_with(dockerfile, &[])
    }

    fn explain_with(&self, dockerfile: &str, args: &[(&str, &str)]) -> Built {
        self.write("Dockerfile", dockerfile);
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let request = BuildRequest {
            dockerfile: DockerfileSource::Default,
            build_args: args.iter().map(own).collect(),
            explain: true,
            ..self.request("")
        };
        self.build_as(&request, &Cancel::new())
    }

    /// The file in which the steps are remembered: its content, and which file it is.
    fn records(&self) -> (Vec<u8>, u64) {
        let files = fs::read_dir(self.store().join("cache")).unwrap();
        let mut found = files.map(|file| file.unwrap().path()).filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("steps-")
        });
        let path = found.next().unwrap();
        assert_eq!(found.next(), None);
        (fs::read(&path).unwrap(), path.metadata().unwrap().ino())
    }
}

#[test]
fn a_new_step_was_never_built_and_one_that_is_found_has_the_same_inputs() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nWORKDIR /w\nCOPY a /a\nRUN step\n";
    let first = bench.explain(dockerfile);
    for step in ["WORKDIR", "COPY", "RUN"] {
        assert_eq!(first.why(step), "miss: never built before", "{step}");
    }
    let records = bench.records();
    let second = bench.explain(dockerfile);
    for step in ["WORKDIR", "COPY", "RUN"] {
        assert_eq!(second.why(step), "hit: same inputs", "{step}");
    }
    assert_eq!(records, bench.records(), "written though nothing changed");
}

#[test]
fn changed_files_are_named_with_what_changed_and_what_follows_names_the_step_below() {
    let bench = Bench::new();
    for (name, text) in [("a", "one"), ("gone", ""), ("kept", "")] {
        bench.write(name, text);
    }
    let dockerfile = "FROM scratch\nCOPY [agkn]* /src/\nRUN step\n";
    bench.explain(dockerfile).result.unwrap();
    bench.write("a", "two");
    bench.write("new", "");
    fs::remove_file(bench.context().join("gone")).unwrap();
    let built = bench.explain(dockerfile);
    assert_eq!(
        built.why("COPY"),
        "miss: /src/a changed (content), /src/gone removed, /src/new added"
    );
    assert_eq!(
        built.why("RUN"),
        "miss: a previous step changed: [1/2] COPY [agkn]* /src/"
    );
}

#[test]
fn of_many_changed_files_the_first_are_named() {
    let bench = Bench::new();
    bench.write("a", "");
    bench
        .explain("FROM scratch\nCOPY a* /src/\n")
        .result
        .unwrap();
    for n in 0..20 {
        bench.write(&format!("a{n:02}"), "");
    }
    let built = bench.explain("FROM scratch\nCOPY a* /src/\n");
    let why = built.why("COPY");
    assert!(why.ends_with("/src/a07 added, and 12 more"), "{why}");
}

#[test]
fn a_changed_command_is_told_with_what_it_was() {
    let bench = Bench::new();
    bench
        .explain("FROM scratch\nRUN first\nRUN make all\nRUN last\n")
        .result
        .unwrap();
    let built = bench.explain("FROM scratch\nRUN first\nRUN make most\nUSER 1\nRUN last\n");
    assert_eq!(built.why("RUN first"), "hit: same inputs");
    assert_eq!(
        built.why("RUN make"),
        "miss: the command changed: was `make all`"
    );
    assert_eq!(
        built.why("RUN last"),
        "miss: USER is new: 1",
        "the layer below holds the same as before"
    );
}

#[test]
fn a_copy_to_another_place_is_told_as_an_instruction_that_changed() {
    let bench = Bench::new();
    bench.write("a", "one");
    bench.explain("FROM scratch\nCOPY a /a\n").result.unwrap();
    let built = bench.explain("FROM scratch\nCOPY --chmod=600 a /b\n");
    assert_eq!(
        built.why("COPY"),
        "miss: the instruction changed: was `COPY a /a`; /a removed, /b added"
    );
}

#[test]
fn an_inserted_line_is_new_and_the_next_one_says_that_it_lies_on_it() {
    let bench = Bench::new();
    bench
        .explain("FROM scratch\nRUN a\nRUN b\n")
        .result
        .unwrap();
    let built = bench.explain("FROM scratch\nRUN a\nRUN new\nRUN b\n");
    assert_eq!(built.why("RUN a"), "hit: same inputs");
    assert_eq!(built.why("RUN new"), "miss: never built before");
    assert_eq!(
        built.why("RUN b"),
        "miss: a previous step changed: [2/3] RUN new"
    );
}

#[test]
fn what_was_removed_is_named() {
    let bench = Bench::new();
    let why = |middle: &str| {
        let built = bench.explain(&format!("FROM scratch\nRUN first\n{middle}RUN last\n"));
        built.why("RUN last").to_owned()
    };
    assert_eq!(why("USER 1\nRUN other\n"), "miss: never built before");
    assert_eq!(why("USER 2\nRUN other\n"), "miss: USER changed from 1 to 2");
    assert_eq!(why("RUN other\n"), "miss: USER was removed");
    assert_eq!(
        why(""),
        "miss: a previous step was removed or no longer creates a layer"
    );
}

#[test]
fn a_changed_base_image_is_named() {
    let bench = Bench::new();
    let out = tempfile::tempdir().unwrap();
    bench.write("Dockerfile", "FROM base\nRUN step\n");
    let build = |content: &str| {
        bench.write("a", content);
        let layout = out.path().join(content);
        let output = format!("type=oci,tar=false,dest={}", layout.display());
        let request = BuildRequest {
            outputs: vec![output.parse().unwrap()],
            ..bench.request("FROM scratch\nCOPY a /a\n")
        };
        let base = bench.build_as(&request, &Cancel::new());
        base.result.unwrap();
        let source = ImageSource::OciLayout {
            dir: layout,
            tag: None,
            digest: None,
        };
        let request = BuildRequest {
            dockerfile: DockerfileSource::Default,
            named_contexts: vec![("base".to_owned(), source)],
            explain: true,
            ..bench.request("")
        };
        bench.build_as(&request, &Cancel::new())
    };
    build("one").result.unwrap();
    assert_eq!(
        build("two").why("RUN"),
        "miss: the base image changed: base"
    );
}

#[test]
fn variables_are_told_by_name_and_value_but_for_those_that_look_secret() {
    let bench = Bench::new();
    let dockerfile =
        "FROM scratch\nARG VERSION\nARG API_TOKEN\nARG LATER\nENV E=$VERSION\nRUN step\n";
    let args = [("VERSION", "1"), ("API_TOKEN", "hunter2-secret")];
    bench.explain_with(dockerfile, &args).result.unwrap();
    let (records, _) = bench.records();
    let secret = records.windows(7).any(|bytes| bytes == b"hunter2");
    assert!(!secret, "a secret is remembered");
    let args = [("VERSION", "2"), ("API_TOKEN", "other"), ("LATER", "a b")];
    let built = bench.explain_with(dockerfile, &args);
    assert_eq!(
        built.why("RUN"),
        "miss: the value of ARG API_TOKEN changed; ENV E changed from 1 to 2; \
         ARG LATER is new: \"a b\"; ARG VERSION changed from 1 to 2"
    );
    let built = bench.explain_with(dockerfile, &args[..2]);
    assert_eq!(built.why("RUN"), "miss: variable LATER was removed");
}

#[test]
fn an_address_with_a_password_in_it_is_not_remembered() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nARG MIRROR\nRUN step\n";
    let build = |mirror| bench.explain_with(dockerfile, &[("MIRROR", mirror)]);
    build("http://me:hunter2@mirror/").result.unwrap();
    let (records, _) = bench.records();
    assert!(!records.windows(7).any(|bytes| bytes == b"hunter2"));
    let built = build("http://mirror/");
    assert_eq!(built.why("RUN"), "miss: the value of ARG MIRROR changed");
}

#[test]
fn what_was_pruned_is_said_to_be_pruned() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nCOPY a /a\nRUN step\n";
    bench.explain(dockerfile).result.unwrap();
    let store = bench.open();
    let mut go_on = |_: &store::Pruned| std::ops::ControlFlow::Continue(());
    store.prune(&PruneOptions::default(), &mut go_on).unwrap();
    store.close().unwrap();
    let built = bench.explain(dockerfile);
    let pruned = "miss: inputs unchanged, but the cached result was pruned or lost";
    assert_eq!(built.why("COPY"), pruned);
    assert_eq!(built.why("RUN"), pruned);
    // Now with another file, too: which ones changed cannot be told.
    let store = bench.open();
    store.prune(&PruneOptions::default(), &mut go_on).unwrap();
    store.close().unwrap();
    bench.write("a", "two");
    let why = bench.explain(dockerfile).why("COPY").to_owned();
    assert!(why.contains("the previous layer was pruned"), "{why}");
}

#[test]
fn a_build_that_failed_remembers_what_it_did_and_what_was_known() {
    let bench = Bench::new();
    let text =
        |middle: &str, last: &str| format!("FROM scratch\nRUN first\nRUN {middle}\nRUN {last}\n");
    bench.explain(&text("second", "third")).result.unwrap();
    bench.explain(&text("fail", "third")).result.unwrap_err();
    let built = bench.explain(&text("other", "last"));
    assert_eq!(built.why("RUN first"), "hit: same inputs");
    assert_eq!(
        built.why("RUN other"),
        "miss: the command changed: was `second`"
    );
    assert_eq!(
        built.why("RUN last"),
        "miss: the command changed: was `third`; a previous step changed: [2/3] RUN other"
    );
}

#[test]
fn stages_of_other_targets_are_remembered() {
    let bench = Bench::new();
    let text = |a: &str| format!("FROM scratch AS a\nRUN {a}\nFROM scratch AS b\nRUN b\n");
    let build = |text: &str, target: &str| {
        bench.write("Dockerfile", text);
        let request = BuildRequest {
            dockerfile: DockerfileSource::Default,
            target: Some(target.to_owned()),
            explain: true,
            ..bench.request("")
        };
        bench.build_as(&request, &Cancel::new())
    };
    build(&text("one"), "a").result.unwrap();
    build(&text("one"), "b").result.unwrap();
    let built = build(&text("two"), "a");
    assert_eq!(built.why("RUN two"), "miss: the command changed: was `one`");
}

#[test]
fn explanations_need_no_build_with_them_before_and_no_cache_says_so() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nRUN step\n";
    bench.write("Dockerfile", dockerfile);
    let request = BuildRequest {
        dockerfile: DockerfileSource::Default,
        ..bench.request("")
    };
    let silent = bench.build_as(&request, &Cancel::new());
    silent.result.unwrap();
    let built = bench.explain("FROM scratch\nRUN other\n");
    assert_eq!(built.why("RUN"), "miss: the command changed: was `step`");
    let request = BuildRequest {
        no_cache: true,
        explain: true,
        ..request
    };
    let built = bench.build_as(&request, &Cancel::new());
    assert_eq!(built.why("RUN"), "miss: --no-cache was given");
    assert!(
        built
            .result
            .unwrap()
            .steps
            .iter()
            .any(|step| step.why.is_some())
    );
}

#[test]
fn a_damaged_memory_is_an_empty_one() {
    let bench = Bench::new();
    bench.explain("FROM scratch\nRUN step\n").result.unwrap();
    let dir = bench.store().join("cache");
    for file in fs::read_dir(&dir).unwrap() {
        fs::write(file.unwrap().path(), "nonsense").unwrap();
    }
    let built = bench.explain("FROM scratch\nRUN other\n");
    assert_eq!(built.why("RUN"), "miss: never built before");
}
