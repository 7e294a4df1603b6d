//! Tests about the tree itself: who may depend on whom, and that documents name what exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;

/// Who may depend on whom. This table is the architecture: change it in a commit of its own.
///
/// Nothing of the guest names anything of the host; of the guest, the host names only the
/// contracts `wire`, `layer` and `virtio-vsock`.
const EDGES: &[(&str, &[&str])] = &[
    ("agent", &["layer", "vsock-driver", "wire"]),
    (
        "cli",
        &[
            "egress",
            "engine",
            "exec",
            "launcher",
            "net-policy",
            "oci",
            "store",
        ],
    ),
    ("dockerfile", &[]),
    ("egress", &["net-policy", "wire"]),
    (
        "engine",
        &["dockerfile", "exec", "layer", "net-policy", "oci", "store"],
    ),
    ("exec", &["store"]),
    (
        "fuzz",
        &[
            "dockerfile",
            "engine",
            "layer",
            "vsock-device",
            "vsock-driver",
            "wire",
        ],
    ),
    ("hostile-guest", &["vsock-guest", "wire"]),
    (
        "launcher",
        &[
            "egress",
            "exec",
            "store",
            "vmimage-manifest",
            "vsock-device",
            "wire",
        ],
    ),
    ("layer", &[]),
    ("net-policy", &[]),
    ("oci", &["exec", "net-policy", "store"]),
    ("soak", &["engine", "exec", "oci", "store"]),
    ("store", &["layer"]),
    ("tests", &[]),
    ("vmimage", &[]),
    ("vmimage-manifest", &[]),
    ("virtio-vsock", &[]),
    ("vsock-device", &["virtio-vsock"]),
    ("vsock-driver", &["virtio-vsock"]),
    ("vsock-guest", &["vsock-driver"]),
    (
        "vsock-testbed",
        &[
            "virtio-vsock",
            "vsock-device",
            "vsock-driver",
            "vsock-guest",
        ],
    ),
    ("wire", &[]),
    ("xtask", &["vmimage", "vmimage-manifest"]),
];

/// Longest source file, tests included.
const MAX_LINES: usize = 700;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

#[test]
fn crates_depend_only_on_what_the_table_allows() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    let members: BTreeSet<String> = metadata
        .packages
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let found: BTreeMap<String, BTreeSet<String>> = metadata
        .packages
        .iter()
        .map(|package| {
            let edges = package.dependencies.iter().filter(|on| on.path.is_some());
            (
                package.name.to_string(),
                edges.map(|on| on.name.clone()).collect(),
            )
        })
        .collect();
    let allowed: BTreeMap<String, BTreeSet<String>> = EDGES
        .iter()
        .map(|(from, to)| {
            (
                (*from).to_owned(),
                to.iter().map(|to| (*to).to_owned()).collect(),
            )
        })
        .collect();
    assert_eq!(members, allowed.keys().cloned().collect());
    assert_eq!(found, allowed);
}

#[test]
fn no_source_file_is_too_long_to_read() {
    let mut long = Vec::new();
    for file in files(&root(), &["rs"]) {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        if lines > MAX_LINES {
            long.push(format!("{}: {lines}", file.display()));
        }
    }
    assert!(long.is_empty(), "split by noun: {long:#?}");
}

/// Clippy reads one `clippy.toml` and does not merge.
#[test]
fn every_clippy_configuration_repeats_that_of_the_workspace() {
    let root = root();
    let settings = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.replace(", allow-invalid = true", "");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let common = settings(&root.join("clippy.toml"));
    let mut configurations = files(&root, &["toml"]);
    configurations.retain(|file| file.ends_with("clippy.toml"));
    assert_eq!(configurations.len(), 3);
    for file in configurations {
        let own = settings(&file);
        for line in &common {
            assert!(own.contains(line), "{} lacks {line}", file.display());
        }
    }
}

#[test]
fn documents_name_only_paths_that_exist() {
    let root = root();
    let mut missing = Vec::new();
    for document in files(&root, &["md"]) {
        let text = std::fs::read_to_string(&document).unwrap();
        // Every second piece between backticks is code; a path has a slash and no blank.
        for name in text.split('`').skip(1).step_by(2) {
            let first = name.split('/').next().unwrap_or_default();
            let in_tree = [
                "guest", "host", "vmimage", "xtask", "tests", "docs", "examples", ".ci",
            ];
            if in_tree.contains(&first)
                && name.contains('/')
                && !name.contains([' ', '*', '<', '…'])
                && !root.join(name).exists()
            {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The levels of the table of faults, and the directories of their tests.
const FAULT_LEVELS: &[(&str, &str)] = &[
    ("testbed", "tests/vsock-testbed/tests/driver"),
    ("device", "host/vsock-device/tests/device"),
    ("pairs", "host/launcher/src/session"),
    ("boot", "host/launcher/src/vm"),
    ("VM", "host/launcher/src/executor"),
    ("build", "tests/tests"),
];

#[test]
fn the_table_of_faults_names_only_tests_that_exist() {
    let document = root().join("docs/faults.md");
    let text = std::fs::read_to_string(document).unwrap();
    let mut named = 0;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[_, _, level, test] = &cells[..] else {
            continue;
        };
        let Some(test) = test
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'))
        else {
            continue;
        };
        let level = level.trim_end_matches(" ×2");
        let dir = FAULT_LEVELS.iter().find(|(name, _)| *name == level);
        let (_, dir) = dir.unwrap_or_else(|| panic!("unknown level in {line}"));
        assert!(has_test(&root().join(dir), test), "no test {test} in {dir}");
        named += 1;
    }
    assert!(named > 50, "the table was not read: {named} tests");
}

/// The threat model names tests as `` `FILE`: `TEST`, `TEST` ``, and other things behind a semicolon.
#[test]
fn the_threat_model_names_only_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let mut named = 0;
    for part in text.lines().flat_map(|line| line.split(['|', ';'])) {
        let Some((file, tests)) = part.trim().split_once(".rs`: ") else {
            continue;
        };
        let file = format!("{}.rs", file.trim_start_matches('`'));
        let source = std::fs::read_to_string(root().join(&file)).unwrap();
        for test in tests.split('`').skip(1).step_by(2) {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if test.chars().all(is_name) {
                assert!(
                    source.contains(&format!("fn {test}(")),
                    "no {test} in {file}"
                );
                named += 1;
            }
        }
    }
    assert!(named > 15, "the tables were not read: {named} tests");
}

/// Whether a module with one of the names before the last `::` has a test with the last name, or one
/// for each driver of the guest. A name without `::` is that of a module.
fn has_test(dir: &Path, path: &str) -> bool {
    let (modules, name) = path.rsplit_once("::").unwrap_or((path, ""));
    let mut of_modules = files(dir, &["rs"]).into_iter().filter(|file| {
        let stem = file.with_extension("");
        let stem = stem.strip_prefix(dir).unwrap_or(&stem);
        let stem = stem.to_string_lossy();
        let stem = stem.trim_end_matches("/mod");
        modules.split("::").any(|module| stem.ends_with(module))
    });
    of_modules.any(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        let has = |suffix: &str| text.contains(&format!("fn {name}{suffix}("));
        name.is_empty() || has("") || has("_on_the_ring") && has("_on_the_kernels_driver")
    })
}

/// Files of the tree with one of these extensions.
pub(crate) fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != ".git" {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|e| extensions.iter().any(|x| e == *x))
            {
                found.push(path);
            }
        }
    }
    found
}
