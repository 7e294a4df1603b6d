//! Who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The crates of the workspace and what each uses of the others.
/// This table is the architecture: change it in a commit of its own.
const EDGES: &[(&str, &[&str])] = &[
    ("agent", &["wire"]),
    ("cli", &["engine", "launcher", "store"]),
    ("engine", &["store"]),
    ("launcher", &["engine", "store", "vsock", "wire"]), // implements the engine's trait for steps
    ("store", &[]),
    ("tests", &["wire"]), // to play a guest, honest or hostile
    ("vmimage", &[]),
    ("vsock", &[]),
    ("wire", &[]),
    ("xtask", &["vmimage"]),
];

/// What only tests of a crate use, beyond the table above.
const TEST_EDGES: &[(&str, &[&str])] = &[];

type Edges = BTreeMap<String, BTreeSet<String>>;

fn table(edges: &[(&str, &[&str])]) -> Edges {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    edges
        .iter()
        .map(|(name, uses)| ((*name).to_owned(), owned(uses)))
        .collect()
}

/// What cargo says: the edges for use and those for tests only.
fn real() -> (Edges, Edges) {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .unwrap();
    let packages = metadata.workspace_packages();
    let members: BTreeSet<String> = packages.iter().map(|p| p.name.to_string()).collect();
    let mut edges = (Edges::new(), Edges::new());
    for package in packages {
        for kind in [DependencyKind::Normal, DependencyKind::Development] {
            let uses = package.dependencies.iter().filter(|dependency| {
                // Build dependencies are held to the same rules as those for use.
                let test = dependency.kind == DependencyKind::Development;
                test == (kind == DependencyKind::Development)
            });
            let uses = uses.map(|dependency| dependency.name.clone());
            let uses = uses.filter(|name| members.contains(name)).collect();
            let of_kind = if kind == DependencyKind::Normal {
                &mut edges.0
            } else {
                &mut edges.1
            };
            of_kind.insert(package.name.to_string(), uses);
        }
    }
    edges
}

#[test]
fn crates_use_no_others_than_the_table_says() {
    let allowed = table(EDGES);
    let (real, _) = real();
    assert_eq!(
        real.keys().collect::<Vec<_>>(),
        allowed.keys().collect::<Vec<_>>()
    );
    for (name, uses) in real {
        let extra: Vec<_> = uses.difference(&allowed[&name]).collect();
        assert!(extra.is_empty(), "{name} must not use {extra:?}");
    }
}

#[test]
fn tests_of_crates_use_no_others_than_the_tables_say() {
    let (allowed, more) = (table(EDGES), table(TEST_EDGES));
    for (name, uses) in real().1 {
        let may = |used: &String| {
            allowed[&name].contains(used) || more.get(&name).is_some_and(|uses| uses.contains(used))
        };
        let extra: Vec<_> = uses.iter().filter(|used| !may(used)).collect();
        assert!(extra.is_empty(), "tests of {name} must not use {extra:?}");
    }
}

#[test]
fn nothing_in_the_guest_names_anything_outside_it() {
    let (real, tests) = real();
    for name in ["agent", "wire"] {
        for uses in [&real[name], &tests[name]] {
            assert!(
                uses.iter().all(|used| used == "wire"),
                "{name} uses {uses:?}"
            );
        }
    }
}
