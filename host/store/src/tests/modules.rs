//! The modules of the store use each other in one direction only.
//!
//! What a module uses is read from its `use` declarations and from paths that begin with `crate::`.
//! Methods of [`crate::Store`] are called without naming their module, and are not seen here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The source of each module without its tests, by path: `history::log`; the root is the empty path.
fn sources() -> BTreeMap<String, String> {
    fn read(dir: &Path, module: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let separator = if module.is_empty() { "" } else { "::" };
            let child = format!("{module}{separator}{stem}");
            if path.is_dir() {
                if stem != "tests" {
                    read(&path, &child, found);
                }
            } else {
                let is_dir_module = stem == "mod" || stem == "lib";
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let lines = text.lines().map(str::trim_start);
                let code: Vec<&str> = lines.filter(|line| !line.starts_with("//")).collect();
                let name = if is_dir_module {
                    module.to_owned()
                } else {
                    child
                };
                found.insert(name, code.join(" "));
            }
        }
    }
    let mut found = BTreeMap::new();
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        "",
        &mut found,
    );
    found
}

/// All paths of a `use` tree: `a::{b, c::d}` has `a::b` and `a::c::d`.
fn flatten(tree: &str, prefix: &str, found: &mut Vec<String>) {
    let mut depth = 0;
    let is_separator = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    for part in tree.split(is_separator).map(str::trim) {
        match part.split_once("::{") {
            Some((head, rest)) => {
                let rest = rest.strip_suffix('}').unwrap();
                flatten(rest, &format!("{prefix}{head}::"), found);
            }
            None if part.is_empty() => {}
            None => {
                let path = part.split(" as ").next().unwrap();
                found.push(format!("{prefix}{}", path.trim_end_matches("::self")));
            }
        }
    }
}

/// The declarations that begin with one of these words.
fn declarations(code: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for word in words {
        for (at, _) in code.match_indices(word) {
            if code[..at].ends_with([' ', '}', ';']) || at == 0 {
                let tree = code[at + word.len()..].split(';').next().unwrap();
                flatten(tree, "", &mut found);
            }
        }
    }
    found
}

/// Paths as seen from the root of the crate.
fn absolute(path: &str, module: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    if let Some(path) = path.strip_prefix("super::") {
        let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
        return Some(format!("{parent}::{path}").trim_start_matches("::").into());
    }
    let path = path.strip_prefix("self::")?;
    Some(format!("{module}::{path}").trim_start_matches("::").into())
}

/// The module that has what a path names: re-exports are followed.
fn resolve(
    path: &str,
    modules: &BTreeMap<String, String>,
    exports: &BTreeMap<String, String>,
) -> Option<String> {
    let mut path = path.to_owned();
    while let Some(target) = exports.get(&path).filter(|target| **target != path) {
        path = target.clone();
    }
    loop {
        if modules.contains_key(&path) {
            return Some(path).filter(|path| !path.is_empty());
        }
        if let Some(target) = exports.get(&path) {
            path = target.clone();
            continue;
        }
        path = path.rsplit_once("::")?.0.to_owned();
    }
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let modules = sources();
    assert!(modules.len() > 35, "{:?}", modules.keys());
    let mut exports = BTreeMap::new();
    for (module, code) in &modules {
        for path in declarations(code, &["pub use ", "pub(crate) use "]) {
            let name = path.rsplit("::").next().unwrap().to_owned();
            let here = format!("{module}::{name}");
            let target = absolute(&path, module).unwrap_or_else(|| format!("{module}::{path}"));
            exports.insert(
                here.trim_start_matches("::").to_owned(),
                target.trim_start_matches("::").to_owned(),
            );
        }
    }
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (module, code) in modules.iter().filter(|(module, _)| !module.is_empty()) {
        let mut paths = declarations(code, &["use "]);
        for (at, _) in code.match_indices("crate::") {
            let path: String = code[at..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || ":_".contains(*c))
                .collect();
            paths.push(path.trim_end_matches("::").to_owned());
        }
        let paths = paths.iter().filter_map(|path| absolute(path, module));
        let used = paths.filter_map(|path| resolve(&path, &modules, &exports));
        let used: BTreeSet<String> = used.filter(|used| used != module).collect();
        uses.insert(module, used);
    }
    // That the sources are read as they should be.
    assert!(uses["housekeeping::prune::options"].contains("housekeeping::filter"));
    assert!(uses["image"].contains("store") && uses["db"].contains("failpoint"));
    let mut left = uses.clone();
    loop {
        let free: Vec<&str> = left
            .iter()
            .filter(|(_, used)| used.iter().all(|used| !left.contains_key(used.as_str())))
            .map(|(module, _)| *module)
            .collect();
        if free.is_empty() {
            break;
        }
        left.retain(|module, _| !free.contains(module));
    }
    for used in left.values_mut() {
        used.retain(|used| uses.contains_key(used.as_str()));
    }
    assert!(left.is_empty(), "these use each other: {left:#?}");
}
