//! Tests about the folders of large crates: which may use which.
//!
//! Cargo checks edges between crates, but nothing checks those between the folders of one crate. So
//! these tests read `crate::…` paths from the sources and compare them with a table. Tests and their
//! support are not part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::tidy::{files, root};

/// Which folder of `host/engine/src` may use which. A file directly in `src` counts as a folder. Each
/// uses only folders above it in the table, so there are no circles.
const ENGINE: &[(&str, &[&str])] = &[
    ("similar", &[]),
    ("rootfs", &["similar"]),
    ("changes", &["rootfs"]),
    ("event", &["changes"]),
    ("context", &["rootfs", "similar"]),
    ("fuzzing", &["context", "rootfs"]),
    ("download", &["event"]),
    ("copy", &["context", "download", "rootfs", "similar"]),
    ("plan", &["copy", "download"]),
    ("keys", &["plan"]),
    ("pull", &["event"]),
    ("assemble", &["pull"]),
    ("export", &["assemble", "event", "rootfs"]),
    ("solver", &[]),
    (
        "build",
        &[
            "assemble", "changes", "context", "copy", "download", "event", "export", "keys",
            "plan", "pull", "rootfs", "solver",
        ],
    ),
];

type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn folders_of_the_engine_use_only_what_the_table_allows() {
    let found = edges(&root().join("host/engine/src"));
    let allowed: Edges = ENGINE
        .iter()
        .map(|(from, to)| {
            let to = to.iter().map(|to| (*to).to_owned());
            ((*from).to_owned(), to.collect())
        })
        .collect();
    assert_eq!(found, allowed);
}

#[test]
fn folders_of_the_engine_have_no_circles() {
    let mut above = BTreeSet::new();
    for (folder, uses) in ENGINE {
        for used in *uses {
            assert!(
                above.contains(used),
                "{folder} uses {used}, which is not above it"
            );
        }
        above.insert(*folder);
    }
}

/// The edges between the folders of a crate, by its sources.
fn edges(src: &Path) -> Edges {
    let library = std::fs::read_to_string(src.join("lib.rs")).unwrap();
    let mut edges = Edges::new();
    for file in files(src, &["rs"]) {
        let inside = file.strip_prefix(src).unwrap();
        let parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        let is_test = |part: &&str| ["tests", "testing", "tests.rs", "testing.rs"].contains(part);
        if parts.iter().any(is_test) || parts == ["lib.rs"] {
            continue;
        }
        let folder = parts[0].trim_end_matches(".rs").to_owned();
        // How many `super::` lead from the module of this file to the root of the crate.
        let depth = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
        let text = std::fs::read_to_string(&file).unwrap();
        let used = names_used(&text, depth);
        let uses = edges.entry(folder.clone()).or_default();
        uses.extend(used.iter().map(|name| module(name, &library)));
        uses.remove(&folder);
    }
    edges
}

/// The names at the root of the crate that a source file uses.
fn names_used(text: &str, depth: usize) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let root = "super::".repeat(depth);
    let mut names = BTreeSet::new();
    for start in ["crate::", root.as_str()] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(group_names(group)),
                None => names.extend(name(rest)),
            }
        }
    }
    names.remove("super");
    names
}

/// The first names of the paths in a group, of which the opening brace is gone.
fn group_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = Vec::from_iter(name(group.trim_start()));
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name(group[at + 1..].trim_start())),
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let name = &text[..end.unwrap_or(text.len())];
    (!name.is_empty()).then(|| name.to_owned())
}

/// The module of a name at the root of a crate, which may be a re-export.
fn module(name: &str, library: &str) -> String {
    let is_module = |line: &str| line.ends_with(&format!("mod {name};"));
    if library.lines().any(is_module) {
        return name.to_owned();
    }
    let exports = library.lines().filter_map(|line| line.split_once("use "));
    let export = exports.map(|(_, path)| path).find(|path| {
        path.split(|c: char| !c.is_alphanumeric())
            .any(|part| part == name)
    });
    let export = export.unwrap_or_else(|| panic!("`{name}` is not in lib.rs"));
    export.split("::").next().unwrap().to_owned()
}

#[test]
fn paths_are_read_from_sources() {
    let text = "use crate::{a, b::{x, y}};\nuse crate::c::Z;\n// crate::no\nfn f(z: crate::d::Z) \
                {}\nuse super::super::e;\nuse super::f;\n#[cfg(test)]\nmod tests {\nuse crate::g;";
    let names: Vec<String> = names_used(text, 2).into_iter().collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(module("Z", "pub mod c;\npub use c::{Y, Z};\n"), "c");
}
