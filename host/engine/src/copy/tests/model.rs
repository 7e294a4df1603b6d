//! Merged roots against a map of paths, and whole copies against what they were made from.

use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;
use proptest::sample::select;
use store::EntryKind;

use super::{Kit, Line, LineKind, root};
use crate::rootfs::Rootfs;

/// What a path is: a directory, or what it was made of. Hard links share the text.
#[derive(Debug, Clone, PartialEq)]
enum ModelEntry {
    Directory(u32),
    Link(String),
    File(String, u32),
}

type Model = BTreeMap<String, ModelEntry>;

fn remove(model: &mut Model, path: &str, itself: bool) {
    let below = format!("{path}/");
    model.retain(|key, _| !(itself && key == path || key.starts_with(&below)));
}

fn make_parents(model: &mut Model, path: &str) {
    for (at, _) in path.match_indices('/') {
        let dir = &path[..at];
        if !matches!(model.get(dir), Some(ModelEntry::Directory(_))) {
            remove(model, dir, true);
            model.insert(dir.to_owned(), ModelEntry::Directory(0o755));
        }
    }
}

/// Puts a layer on top, first what it hides, then what it has.
fn apply(model: &mut Model, layer: &[String]) {
    let lines: Vec<Line> = layer.iter().map(|line| Line::parse(line)).collect();
    let lower = model.clone();
    for line in &lines {
        match line.kind {
            LineKind::Whiteout => remove(model, &line.path, true),
            LineKind::Opaque => remove(model, &line.path, false),
            LineKind::Directory | LineKind::Link(_) | LineKind::File(_) | LineKind::HardLink(_) => {
            }
        }
    }
    for line in &lines {
        let thing = match &line.kind {
            LineKind::Whiteout => continue,
            LineKind::Opaque | LineKind::Directory => {
                ModelEntry::Directory(line.mode.unwrap_or(0o755))
            }
            LineKind::Link(target) => ModelEntry::Link(target.clone()),
            LineKind::File(text) => ModelEntry::File(line.data(text), line.mode.unwrap_or(0o644)),
            LineKind::HardLink(target) => match linked(&lines, &lower, target) {
                Some(thing) => thing,
                None => continue,
            },
        };
        make_parents(model, &line.path);
        let was_directory = matches!(model.get(&line.path), Some(ModelEntry::Directory(_)));
        match (&line.kind, was_directory) {
            (LineKind::Opaque, true) => {}
            (LineKind::Directory, true) => drop(model.insert(line.path.clone(), thing)),
            _ => {
                remove(model, &line.path, true);
                model.insert(line.path.clone(), thing);
            }
        }
    }
}

/// What a hard link names: in its own layer, else below.
fn linked(lines: &[Line], lower: &Model, target: &str) -> Option<ModelEntry> {
    let mut target = target;
    for _ in 0..8 {
        let here = lines.iter().find(|line| line.path == target);
        match here.map(|line| (&line.kind, line)) {
            Some((LineKind::HardLink(next), _)) => target = next,
            Some((LineKind::File(text), line)) => {
                return Some(ModelEntry::File(
                    line.data(text),
                    line.mode.unwrap_or(0o644),
                ));
            }
            Some((LineKind::Link(to), _)) => return Some(ModelEntry::Link(to.clone())),
            Some((LineKind::Directory | LineKind::Opaque, _)) => return None,
            Some((LineKind::Whiteout, _)) | None => {
                let found = lower.get(target).cloned();
                return found.filter(|entry| !matches!(entry, ModelEntry::Directory(_)));
            }
        }
    }
    None
}

/// A context's lines with those of the directories that they imply.
fn with_parents(lines: &[String]) -> Vec<String> {
    let explicit = |dir: &str| {
        lines
            .iter()
            .any(|line| line.starts_with(&format!("{dir}/ [")))
    };
    let mut all = lines.to_vec();
    for line in lines {
        let path = Line::parse(line).path;
        let implied = path.match_indices('/').map(|(at, _)| &path[..at]);
        all.extend(
            implied
                .filter(|dir| !explicit(dir))
                .map(|dir| format!("{dir}/")),
        );
    }
    all.sort();
    all
}

/// What a merged root shows, in the same form.
fn shown(root: &Rootfs) -> Model {
    let mut model = Model::new();
    for (path, found) in root.walk().skip(1) {
        let thing = match &found.entry.kind {
            EntryKind::Directory => ModelEntry::Directory(found.entry.mode),
            EntryKind::Symlink { target } => {
                ModelEntry::Link(String::from_utf8_lossy(target).into())
            }
            EntryKind::File { .. } => {
                let mut text = String::new();
                root.open_data(found)
                    .expect("data")
                    .read_to_string(&mut text)
                    .expect("text");
                ModelEntry::File(text, found.entry.mode)
            }
            other => panic!("{other:?}"),
        };
        model.insert(String::from_utf8(path).expect("text"), thing);
    }
    model
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn a_line() -> impl Strategy<Value = (String, String)> {
    (a_path(), a_path(), 0..1000_u32, 0..9_u8).prop_map(|(path, other, number, kind)| {
        let line = match kind {
            0 | 1 => format!("{path}/ [{:o}]", 0o700 | number & 0o77),
            2 => format!("{path} -> {other}"),
            3 => format!("-{path}"),
            4 => format!("{path} == {other}"),
            _ => format!("{path} = text {number}"),
        };
        (path, line)
    })
}

/// Lines of which none lies below one that is not a directory, each path once, in order.
fn lines(all: Vec<(String, String)>, directories: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut kept: BTreeMap<Vec<String>, (String, String)> = BTreeMap::new();
    for (path, line) in all {
        kept.insert(path.split('/').map(str::to_owned).collect(), (path, line));
    }
    let mut leaf: Option<String> = None;
    let mut result = Vec::new();
    for (path, line) in kept.into_values() {
        if leaf
            .as_ref()
            .is_some_and(|leaf| path.starts_with(&format!("{leaf}/")))
        {
            continue;
        }
        if !directories(&line) {
            leaf = Some(path);
        }
        result.push(line);
    }
    result
}

/// Leaves out hard links that the store refuses in a layer: to a directory, to what the layer
/// removes, to another hard link.
fn without_refused(lines: &[String]) -> Vec<String> {
    let parsed: Vec<Line> = lines.iter().map(|line| Line::parse(line)).collect();
    let refused = |target: &str| {
        let below = format!("{target}/");
        parsed.iter().any(|other| {
            let file = matches!(other.kind, LineKind::File(_) | LineKind::Link(_));
            (other.path == target && !file) || other.path.starts_with(&below)
        })
    };
    let kept = lines
        .iter()
        .zip(&parsed)
        .filter(|(_, line)| match &line.kind {
            LineKind::HardLink(target) => !refused(target),
            _ => true,
        });
    kept.map(|(line, _)| line.clone()).collect()
}

fn a_layer() -> impl Strategy<Value = Vec<String>> {
    (prop::collection::vec(a_line(), 0..10), any::<u8>()).prop_map(|(all, opaque)| {
        let mut lines = lines(all, &|line| line.contains("/ ["));
        lines = without_refused(&lines);
        // A file that another line links to must come first, as in any archive.
        lines.sort_by_key(|line| line.contains(" == "));
        let directory = lines
            .iter()
            .find_map(|line| line.split_once("/ ["))
            .map(|(path, _)| path);
        if let (Some(path), 0..60) = (directory, opaque) {
            lines.push(format!("!{path}"));
        }
        lines
    })
}

fn a_context() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(a_line(), 0..12).prop_map(|all| {
        let plain = all
            .into_iter()
            .filter(|(_, line)| !line.starts_with('-') && !line.contains("=="));
        lines(plain.collect(), &|line| line.contains("/ ["))
    })
}

fn refs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}

const INSTRUCTIONS: [&str; 14] = [
    "COPY . /",
    "COPY . /b",
    "COPY a /b/",
    "COPY a/b a/c /c/",
    "COPY a* b* /",
    "COPY */* /x/y",
    "COPY --exclude=**/b . /",
    "COPY --exclude=a --exclude=!a/b . /",
    "COPY --parents **/c /",
    "COPY --parents a/b ./a/./b /b/",
    "COPY --link . /b/",
    "COPY --chmod=750 --chown=4:5 . /c/",
    "COPY --chmod=go= a b /n/m",
    "COPY <<a=one <<b=two /a/b/",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_merged_root_is_what_its_layers_make(layers in prop::collection::vec(a_layer(), 1..5)) {
        let kit = Kit::new(&[], &[]);
        let refs: Vec<Vec<&str>> = layers.iter().map(|layer| refs(layer)).collect();
        let slices: Vec<&[&str]> = refs.iter().map(Vec::as_slice).collect();
        let mut model = Model::new();
        for (at, layer) in layers.iter().enumerate() {
            apply(&mut model, layer);
            let root = root(&kit.store, &slices[..=at]);
            prop_assert_eq!(shown(&root), model.clone(), "after layer {}", at);
        }
    }

    #[test]
    fn a_copy_is_what_was_planned(
        context in a_context(),
        target in prop::collection::vec(a_layer(), 0..3),
        instruction in select(INSTRUCTIONS.to_vec()),
    ) {
        let mut kit = Kit::new(&refs(&context), &[]);
        let layers: Vec<Vec<&str>> = target.iter().map(|layer| refs(layer)).collect();
        let slices: Vec<&[&str]> = layers.iter().map(Vec::as_slice).collect();
        kit.target = root(&kit.store, &slices);
        let Ok(plan) = kit.plan(instruction) else { return Ok(()) };
        // The kit checks that the layer is the planned one.
        let layer = kit.ingest(&plan);
        let before = shown(&kit.target);
        let merged = kit.target.with_layer(layer.diff_id).expect("a root");
        let after = shown(&merged);
        // Nothing of the target goes but by something new in its place. An independent layer may
        // put a file over a whole directory.
        let independent = instruction.contains("--link");
        for (path, thing) in before.iter().filter(|_| !independent) {
            let now = after.get(path);
            let touched = kit.store.index(layer.diff_id).expect("an index").get(path.as_bytes()).is_some();
            prop_assert!(now == Some(thing) || touched, "{} became {:?}", path, now);
        }
        if instruction == "COPY . /" {
            let mut want = before;
            apply(&mut want, &with_parents(&context));
            prop_assert_eq!(after, want);
        }
        // The same copy again changes nothing.
        kit.target = merged;
        if !independent && let Ok(plan) = kit.plan(instruction) {
            let again = kit.ingest(&plan);
            let twice = kit.target.with_layer(again.diff_id).expect("a root");
            prop_assert_eq!(shown(&twice), shown(&kit.target));
        }
    }
}
