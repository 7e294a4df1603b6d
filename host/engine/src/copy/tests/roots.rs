//! Copies from other stages, and the directories of WORKDIR.

use exec::Cancel;
use store::{Entry, EntryKind, Mtime};

use super::{Kit, UNPACK, layer, root, spec};
use crate::copy::{CopyError, SourceTree, plan, plan_workdir};
use crate::download::Downloads;
use crate::rootfs::Rootfs;

#[track_caller]
fn check(source: &[&[&str]], target: &[&str], instruction: &str, want: &[&str]) {
    let kit = Kit::new(&[], target);
    let source = root(&kit.store, source);
    let plan = plan(
        &spec(instruction),
        &SourceTree::Rootfs(&source),
        &Downloads::default(),
        &kit.target,
        UNPACK,
        &Cancel::new(),
    )
    .expect("a plan");
    assert!(
        plan.content_id().is_some(),
        "nothing needs to be read to know the result"
    );
    let layer = kit.ingest(&plan);
    assert_eq!(kit.list(&layer), want, "{instruction}");
}

#[test]
fn owners_and_modes_come_along() {
    check(&[&["f [4755 5:6]"]], &[], "COPY f /f", &["f [4755 5:6]"]);
    check(
        &[&["f [4755 5:6]"]],
        &[],
        "COPY --chown=0 f /f",
        &["f [4755]"],
    );
    check(
        &[&["d/ [700 5:6]", "d/s/ [711 5:6]"]],
        &[],
        "COPY d /d",
        &["d/", "d/s/ [711 5:6]"],
    );
}

#[test]
fn layers_of_the_source_are_merged() {
    let layers: &[&[&str]] = &[
        &["a/", "a/gone", "a/kept = old", "b/", "b/x", "c -> a"],
        &["a/", "-a/gone", "a/kept = new", "b/", "!b", "b/y"],
    ];
    check(layers, &[], "COPY a b /o/", &["o/", "o/kept = new", "o/y"]);
    check(layers, &[], "COPY c/kept /o/", &["o/", "o/kept = new"]);
}

#[test]
fn hard_links_inside_one_source_are_kept() {
    let layers: &[&[&str]] = &[&["d/", "d/a = text", "d/b == d/a"], &["d/c == d/a"]];
    let want = ["o/", "o/a = text", "o/b == o/a", "o/c == o/a"];
    check(layers, &[], "COPY d /o", &want);
    check(
        layers,
        &[],
        "COPY d/a d/b /o/",
        &["o/", "o/a = text", "o/b = text"],
    );
    check(
        layers,
        &[],
        "COPY --exclude=a d /o",
        &["o/", "o/b = text", "o/c == o/b"],
    );
}

#[test]
fn devices_are_made_again() {
    let kit = Kit::new(&[], &[]);
    let entry = |path: &str, kind| Entry {
        path: path.into(),
        kind,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
    };
    let source = layer(
        &kit.store,
        &[
            entry("d", EntryKind::Directory),
            entry("d/c", EntryKind::CharDevice { major: 1, minor: 3 }),
            entry("d/p", EntryKind::Fifo),
        ]
        .map(|entry| (entry, Vec::new())),
    );
    let source = Rootfs::new(&kit.store, &[source.diff_id]).expect("a root");
    let plan = plan(
        &spec("COPY d /o"),
        &SourceTree::Rootfs(&source),
        &Downloads::default(),
        &kit.target,
        UNPACK,
        &Cancel::new(),
    )
    .expect("a plan");
    let layer = kit.ingest(&plan);
    let index = kit.store.index(layer.diff_id).expect("an index");
    let kinds: Vec<_> = index
        .entries()
        .iter()
        .map(|entry| entry.kind.clone())
        .collect();
    let device = EntryKind::CharDevice { major: 1, minor: 3 };
    assert_eq!(kinds, [EntryKind::Directory, device, EntryKind::Fifo]);
    assert!(
        index
            .entries()
            .iter()
            .skip(1)
            .all(|entry| !entry.xattrs.is_empty())
    );
}

#[test]
fn a_missing_source_is_explained() {
    let kit = Kit::new(&[], &[]);
    let source = root(&kit.store, &[&["app/", "app/server"]]);
    let error = plan(
        &spec("COPY /app/sever /s"),
        &SourceTree::Rootfs(&source),
        &Downloads::default(),
        &kit.target,
        UNPACK,
        &Cancel::new(),
    );
    assert_eq!(
        error.expect_err("an error").to_string(),
        "`/app/sever` not found in the stage or image it is copied from: did you mean `/app/server`?"
    );
}

#[track_caller]
fn workdir(target: &[&str], path: &str, user: &str, want: Option<&[&str]>) {
    let kit = Kit::new(&[], target);
    let plan = plan_workdir(path, user, &kit.target).expect("a plan");
    let listing = plan.map(|plan| kit.list(&kit.ingest(&plan)));
    let want: Option<Vec<String>> =
        want.map(|want| want.iter().map(|line| (*line).to_owned()).collect());
    assert_eq!(listing, want, "WORKDIR {path} as {user:?}");
}

#[test]
fn a_working_directory_is_made_where_it_is_missing() {
    workdir(&[], "/", "", None);
    workdir(&["w/"], "/w", "", None);
    workdir(&["l -> /w", "w/"], "/l", "", None);
    workdir(&[], "/a/b", "", Some(&["a/", "a/b/"]));
    workdir(&[], "/w", "55", Some(&["w/ [755 55:55]"]));
    workdir(&[], "/w", "nobody-knows", Some(&["w/"]));
    workdir(
        &["a/ [700 1:2]"],
        "/a/b",
        "5:6",
        Some(&["a/ [700 1:2]", "a/b/ [755 5:6]"]),
    );
    workdir(&["l -> /real"], "/l/x", "", Some(&["real/", "real/x/"]));
    let passwd = "etc/passwd = app:x:7:8::/:/bin/sh\n";
    workdir(&["etc/", passwd], "/w", "app", Some(&["w/ [755 7:8]"]));
}

#[test]
fn a_working_directory_that_is_a_file_is_an_error() {
    let kit = Kit::new(&[], &["f"]);
    for path in ["/f", "/f/x"] {
        let error = plan_workdir(path, "", &kit.target).expect_err("an error");
        assert!(matches!(error, CopyError::Path(_)), "{path}: {error}");
    }
}
