//! COPY and ADD as far as the front end goes.

use super::*;
use crate::copy::{CopyFrom, CopySource};

#[track_caller]
fn spec(instruction: &str) -> CopySpec {
    let text = format!("FROM a AS base\nFROM a\nENV A=x B=\"1 2\"\nWORKDIR /w\n{instruction}");
    let stage = target_of(&text);
    match &stage.steps.last().expect("a step").op {
        Op::Copy(spec) => spec.clone(),
        other @ (Op::Run(_) | Op::Workdir { .. } | Op::Meta) => panic!("{other:?}"),
    }
}

fn paths(spec: &CopySpec) -> Vec<&str> {
    let paths = spec.sources.iter().map(|source| match source {
        CopySource::Path(path) => path.as_str(),
        CopySource::Heredoc { name, .. } => name.as_str(),
        CopySource::Web(_) => "a URL",
    });
    paths.collect()
}

fn contents(instruction: &str) -> Vec<(String, String)> {
    let sources = spec(instruction)
        .sources
        .into_iter()
        .filter_map(|source| match source {
            CopySource::Heredoc { name, data } => Some((name, String::from_utf8(data).unwrap())),
            CopySource::Path(_) | CopySource::Web(_) => None,
        });
    sources.collect()
}

#[test]
fn all_flags_reach_the_plan() {
    let got = spec(
        "COPY --from=base --chown=$A:g --chmod=u=rwX --exclude=*.o --exclude=!b --parents \
         --link a b /d/",
    );
    let expected = CopySpec {
        from: CopyFrom::Stage(0),
        sources: ["a", "b"]
            .map(|path| CopySource::Path(path.to_owned()))
            .to_vec(),
        dest: "/d/".into(),
        cwd: "/w".into(),
        chown: Some("x:g".into()),
        chmod: Some("u=rwX".into()),
        exclude: vec!["*.o".into(), "!b".into()],
        parents: true,
        link: true,
        unpack: false,
    };
    assert_eq!(got, expected);
}

#[test]
fn add_unpacks_unless_told_otherwise() {
    assert!(spec("ADD a.tar /d/").unpack);
    assert!(!spec("ADD --unpack=false a.tar /d/").unpack);
    assert!(!spec("COPY a.tar /d/").unpack);
    refused("FROM a\nADD --from=b a /d", 2, "unknown flag: --from");
}

#[track_caller]
fn web(instruction: &str) -> crate::download::WebSource {
    match spec(instruction).sources.remove(0) {
        CopySource::Web(source) => source,
        other @ (CopySource::Path(_) | CopySource::Heredoc { .. }) => panic!("{other:?}"),
    }
}

#[test]
fn add_takes_files_from_servers() {
    let source = web("ADD https://h/$A.tar?v=${A}#part /d/");
    assert_eq!(source.address.to_string(), "https://h/x.tar?v=x");
    assert_eq!((source.checksum, source.unpack), (None, false));
    assert!(web("ADD --unpack=true http://h/x /d/").unpack);
    assert!(!web("ADD --unpack=false http://h/x /d/").unpack);
    assert_eq!(paths(&spec("ADD a http://h/x b /d/")), ["a", "a URL", "b"]);
    refused("FROM a\nADD http://:80/x /d", 2, "invalid URL");
}

#[test]
fn a_checksum_is_for_one_file_of_a_server() {
    let digest = store::sha256(b"");
    let text = format!("FROM a\nARG SUM={digest}\nADD --checksum=$SUM http://h/x /d");
    let stage = target_of(&text);
    assert!(format!("{stage:?}").contains(&format!("checksum: Some({digest})")));
    let upper = digest.hex().to_uppercase();
    let source = web(&format!("ADD --checksum=sha256:{upper} http://h/x /d"));
    assert_eq!(source.checksum, Some(digest));
    for (instruction, part) in [
        (
            "ADD --checksum=SUM a /d",
            "checksum can't be specified for non-HTTP(S) sources",
        ),
        (
            "ADD --checksum=SUM <<E /d\nE",
            "checksum can't be specified for non-HTTP(S) sources",
        ),
        (
            "ADD --checksum=SUM http://h/x http://h/y /d/",
            "checksum can't be specified for multiple sources",
        ),
        (
            "ADD --checksum=SUM http://h/x <<E /d/\nE",
            "checksum can't be specified for multiple sources",
        ),
        (
            "ADD --checksum=sha256:0 http://h/x /d",
            "invalid --checksum: `sha256:0`",
        ),
        (
            "ADD --checksum=sha512:00 http://h/x /d",
            "invalid --checksum: `sha512:00`",
        ),
        ("ADD --checksum= http://h/x /d", "invalid --checksum"),
        ("COPY --checksum=SUM a /d", "unknown flag: --checksum"),
    ] {
        let instruction = instruction.replace("SUM", &digest.to_string());
        refused(&format!("FROM a\n{instruction}"), 2, part);
    }
}

#[test]
fn passwords_in_addresses_are_not_shown() {
    let text = "FROM a\nARG P=hunter2\nADD https://me:$P@h/x?sig=$P /d\nADD [\"https://me:hunter2@h/x\", \"/d\"]";
    let stage = target_of(text);
    for step in &stage.steps[stage.steps.len() - 2..] {
        let shown = format!("{} {}", step.display, step.created_by);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("https://xxxxx@h/x"), "{shown}");
    }
}

#[test]
fn words_are_cut_at_blanks_before_quotes_are_looked_at() {
    refused("FROM a\nCOPY \"a b\" /d/", 2, "matching double-quote");
    assert_eq!(paths(&spec(r"COPY a\ b /d/")), ["a", "b"]);
    assert_eq!(paths(&spec(r#"COPY ["a b", "/d/"]"#)), ["a b"]);
    assert_eq!(paths(&spec(r#"COPY ["a\\b", "/d/"]"#)), ["ab"]);
    assert_eq!(paths(&spec("COPY $B /d")), ["1 2"]);
}

#[test]
fn too_few_words_are_an_error() {
    refused("FROM a\nCOPY a", 2, "at least two arguments");
    refused("FROM a\nCOPY [\"a\"]", 2, "at least two arguments");
    refused("FROM a\nADD", 2, "at least two arguments");
    refused("FROM a\nCOPY --link=1 a b", 2, "expecting boolean");
    refused("FROM a\nCOPY --chwon=1 a b", 2, "did you mean --chown?");
}

#[test]
fn urls_and_git_repositories_are_not_copied() {
    refused(
        "FROM a\nCOPY https://x/y /d",
        2,
        "source can't be a URL for COPY",
    );
    refused(
        "FROM a\nENV U=http://x\nCOPY $U/y /d",
        3,
        "source can't be a URL for COPY",
    );
    for source in [
        "git@x:y.git",
        "ssh://x/y",
        "git://x/y",
        "https://x/y.git#main:sub",
    ] {
        refused(
            &format!("FROM a\nCOPY {source} /d"),
            2,
            "source can't be a git ref for COPY",
        );
    }
    assert_eq!(paths(&spec("COPY github.com/o/r /d")), ["github.com/o/r"]);
}

#[test]
fn unquoted_heredocs_are_expanded() {
    let body = |text: &str| contents(text).remove(0).1;
    assert_eq!(
        body("COPY <<E /f\n$A \"$A\" '$A' \\$A\nE"),
        "x \"x\" 'x' $A\n"
    );
    assert_eq!(body("COPY <<'E' /f\n$A\\t\nE"), "$A\\t\n");
    assert_eq!(body("COPY <<E /f\na\\tb\nE"), "atb\n");
    assert_eq!(body("COPY <<-E /f\n\t\ta\n\tE"), "a\n");
    assert_eq!(body("COPY <<E /f\r\nx\r\nE\r\n"), "x\r\n");
    refused("FROM a\nCOPY <<E /f\n${\nE", 2, "bad substitution");
}

#[test]
fn heredocs_are_files_with_names() {
    assert_eq!(
        contents("COPY <<a <<b /d/\n1\na\n2\nb"),
        [
            ("a".to_owned(), "1\n".to_owned()),
            ("b".to_owned(), "2\n".to_owned())
        ]
    );
    assert_eq!(
        contents("COPY <<a <<a /d/\n1\na\n2\na"),
        [("a".to_owned(), "2\n".to_owned())]
    );
    refused("FROM a\nCOPY a <<E\nE", 2, "heredoc as a destination");
    assert_eq!(paths(&spec("ADD x <<E /d/\nE")), ["x", "E"]);
}

#[test]
fn history_holds_the_flags_that_change_the_result() {
    let text = "FROM a AS b\nFROM a\nENV A=x\n\
                COPY --from=b --link --parents --chown=1:2 --chmod=644 --exclude=z $A y /d/\n\
                ADD <<E /f\nE";
    let stage = target_of(text);
    assert_eq!(
        created_by(&stage)[1..],
        [
            "COPY --parents --chown=1:2 --chmod=644 x y /d/ # buildkit",
            "ADD <<E /f # buildkit"
        ]
    );
}

#[test]
fn names_beyond_ascii_survive_in_flags() {
    assert_eq!(spec("COPY --chown=ünï a b").chown.as_deref(), Some("ünï"));
}
