//! What sources name.

use super::{Kit, check, fails};

#[test]
fn links_in_a_source_are_followed_inside_the_root() {
    let context = [
        "real/f = text",
        "l -> real",
        "d/abs -> /real/f",
        "d/up -> ../../../real/f",
    ];
    check(&context, &[], "COPY l /o", &["o/", "o/f = text"]);
    check(&context, &[], "COPY l/f /o/", &["o/", "o/f = text"]);
    check(&context, &[], "COPY d/abs /o/", &["o/", "o/abs = text"]);
    check(&context, &[], "COPY d/up /o/", &["o/", "o/up = text"]);
}

#[test]
fn links_met_on_the_way_stay_links() {
    let context = [
        "d/dangling -> nowhere",
        "d/abs -> /etc/passwd",
        "d/loop -> loop",
    ];
    let want = [
        "o/",
        "o/abs -> /etc/passwd",
        "o/dangling -> nowhere",
        "o/loop -> loop",
    ];
    check(&context, &[], "COPY d /o/", &want);
}

#[test]
fn patterns_match_what_is_there() {
    let context = [
        ".hidden", "a.c", "b.c", "d/x.c", "e/x.c", "[id].tsx", "i.tsx", "a!",
    ];
    check(&context, &[], "COPY *.c /o/", &["o/", "o/a.c", "o/b.c"]);
    check(&context, &[], "COPY */x.c /o/", &["o/", "o/x.c"]);
    check(&context, &[], "COPY .* /o/", &["o/", "o/.hidden"]);
    check(&context, &[], "COPY [id].tsx /o/", &["o/", "o/i.tsx"]);
    check(&context, &[], "COPY [[]id].tsx /o/", &["o/", "o/[id].tsx"]);
    check(&context, &[], "COPY [!x]! /o/", &[]);
    check(&context, &[], "COPY ?.c /o/", &["o/", "o/a.c", "o/b.c"]);
    fails(
        &context,
        &[],
        "COPY [a /o/",
        "`[a` is not a valid pattern: the character class after `[` is empty or not closed",
    );
}

#[test]
fn a_pattern_without_a_match_is_a_warning() {
    let kit = Kit::new(&["foo"], &[]);
    let plan = kit.plan("COPY foo nomatch* /").expect("a plan");
    assert_eq!(
        plan.warnings,
        ["no file matches `nomatch*`; nothing was copied"]
    );
    assert_eq!(kit.list(&kit.ingest(&plan)), ["foo"]);
    let plan = kit.plan("COPY nowhere/* /").expect("a plan");
    assert_eq!(kit.list(&kit.ingest(&plan)), [""; 0]);
}

#[test]
fn a_matching_link_is_followed_and_must_lead_somewhere() {
    check(&["l1 -> d", "d/f"], &[], "COPY l* /o/", &["o/", "o/f"]);
    fails(
        &["l1 -> nowhere"],
        &[],
        "COPY l* /o/",
        "`l*` not found in the build context (it resolves to `nowhere`)",
    );
}

#[test]
fn a_missing_source_is_explained() {
    let context = [
        "src/app/main.c",
        "README.md",
        ".dockerignore = *.log\n\n# c\nsecret\n",
        "a.log",
        "secret/k",
    ];
    let kit = Kit::new(&context, &[]);
    for (source, want) in [
        (
            "a.log",
            "`a.log` not found in the build context: it is excluded by .dockerignore line 1: `*.log`",
        ),
        (
            "secret/k",
            "`secret/k` not found in the build context: it is excluded by .dockerignore line 4: `secret`",
        ),
        ("b.log", "`b.log` not found in the build context"),
        (
            "app",
            "`app` not found in the build context: did you mean `src/app`?",
        ),
        (
            "src/ap",
            "`src/ap` not found in the build context: did you mean `src/app`?",
        ),
        (
            "readme.md",
            "`readme.md` not found in the build context: did you mean `README.md`?",
        ),
        (
            "nothing/like/it",
            "`nothing/like/it` not found in the build context",
        ),
        (
            "../other/file",
            "`../other/file` not found in the build context: it is outside the build \
             context; move it inside or use a parent directory as the context",
        ),
        ("README.md/x", "/README.md: not a directory"),
    ] {
        assert_eq!(kit.error(&format!("COPY {source} /d/")), want);
    }
}

#[test]
fn a_context_of_which_nothing_is_left_is_an_error() {
    let kit = Kit::new(&["a", "b", ".dockerignore = # all\n*\n"], &[]);
    assert_eq!(
        kit.error("COPY . /"),
        "nothing to copy: all files in the build context are excluded, the first one by .dockerignore line 2: `*`"
    );
    let empty = Kit::new(&[], &[]);
    assert_eq!(
        empty.list(&empty.ingest(&empty.plan("COPY . /").expect("a plan"))),
        [""; 0]
    );
}

#[test]
fn unignored_files_are_all_copied() {
    let context = ["Dockerfile", ".git/config", ".dockerignore = nothing\n"];
    let want = [
        ".dockerignore = nothing\n",
        ".git/",
        ".git/config",
        "Dockerfile",
    ];
    check(&context, &[], "COPY . .", &want);
}
