//! What must be true of every file.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, with its tests.
const MOST_LINES: usize = 700;
/// Longest architecture document.
const MOST_ARCHITECTURE_LINES: usize = 200;
/// Directories that hold no source.
const SKIPPED: &[&str] = &["target", ".git"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// All files below the root whose names end in `suffix`, with their text.
fn files(suffix: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
                pending.push(path);
            } else if path.is_file() && name.ends_with(suffix) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no file ends in {suffix}");
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn no_source_file_is_too_long() {
    for (path, text) in files(".rs") {
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines", shown(&path));
    }
}

#[test]
fn nothing_is_left_to_do() {
    // Put together, so that this file does not find itself.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X"],
        ["todo", "!("],
        ["unimplemented", "!("],
    ];
    for (path, text) in files(".rs") {
        for mark in marks.map(|parts| parts.concat()) {
            assert!(!text.contains(&mark), "{} contains {mark}", shown(&path));
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_two_crates() {
    for (path, text) in files(".rs") {
        let name = shown(&path);
        let is_root = name.ends_with("src/main.rs") || name.ends_with("src/lib.rs");
        let may = name.starts_with("guest/agent/") || name.starts_with("host/vsock/");
        if is_root && !may {
            assert!(
                text.contains("#![forbid(unsafe_code)]"),
                "{name} does not forbid unsafe code"
            );
        }
    }
}

#[test]
fn versions_of_dependencies_are_in_the_root_manifest_only() {
    for (path, text) in files("Cargo.toml") {
        if shown(&path) == "Cargo.toml" {
            continue;
        }
        let dependencies = text.split("dependencies]").skip(1).flat_map(str::lines);
        for line in dependencies.take_while(|line| !line.starts_with("[[")) {
            let assigns = line.contains('=') && !line.trim_start().starts_with('#');
            let fine = line.contains("workspace = true") || line.starts_with('[');
            let of_section = [
                "name",
                "path",
                "harness",
                "required-features",
                "test",
                "doc",
            ];
            let key = line.split('=').next().unwrap_or_default().trim();
            assert!(
                !assigns || fine || of_section.contains(&key),
                "{}: `{line}` does not take its version from the workspace",
                shown(&path)
            );
        }
    }
}

/// Text between single backticks that names a file or directory of the repository.
fn named_paths(text: &str) -> Vec<String> {
    let tops = [
        "guest/",
        "host/",
        "vmimage/",
        "xtask/",
        "tests/",
        "docs/",
        "examples/",
        ".ci/",
        ".cargo/",
    ];
    let mut paths = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2);
        let plain = quoted.filter(|q| !q.contains([' ', '*', '{', '<', '…', '$', ':']));
        let path =
            plain.filter(|q| tops.iter().any(|top| q.starts_with(top)) || q.ends_with(".md"));
        paths.extend(path.map(str::to_owned));
    }
    paths
}

#[test]
fn paths_that_documents_name_exist() {
    for (path, text) in files(".md") {
        for named in named_paths(&text) {
            let beside = path.parent().unwrap().join(&named);
            assert!(
                root().join(&named).exists() || beside.exists(),
                "{} names {named}, which does not exist",
                shown(&path)
            );
        }
    }
}

#[test]
fn paths_are_found_in_text_and_not_in_code_blocks() {
    let text = "see `guest/wire` and `README.md`, not `a b` or `host/*`\n```\n`host/no`\n```\n";
    assert_eq!(named_paths(text), ["guest/wire", "README.md"]);
}

#[test]
fn the_architecture_document_stays_short() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let lines = text.lines().count();
    assert!(
        lines <= MOST_ARCHITECTURE_LINES,
        "ARCHITECTURE.md has {lines} lines"
    );
}

#[test]
fn every_member_takes_lints_and_package_facts_from_the_workspace() {
    for (path, text) in files("Cargo.toml") {
        if shown(&path) == "Cargo.toml" {
            continue;
        }
        for line in [
            "version.workspace = true",
            "edition.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            assert!(text.contains(line), "{} lacks `{line}`", shown(&path));
        }
    }
}
