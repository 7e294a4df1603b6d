//! A layer that is unpacked over its parents shows what the step saw.

mod limits;

use super::*;
use crate::testing::{Tree, unpack};

/// As large as any layer may be.
fn export<W: Fill>(upper: OwnedFd, lower: &Lower, root: &Attributes, sink: W) -> Result<W> {
    super::export(upper, lower, root, u64::MAX, sink)
}

/// Exports the diff of `upper` over `lower` and unpacks it as a layer.
fn round_trip(upper: &Tree, lower: &[&Tree]) -> Tree {
    let chain = lower.iter().map(|tree| tree.open()).collect();
    let root = Attributes::read(upper.open().as_fd()).unwrap();
    let tar = export(upper.open(), &Lower::new(chain), &root, Vec::new()).unwrap();
    unpack(&tar).unwrap().0
}

#[test]
#[ignore = "needs root"]
fn as_root_everything_in_an_upper_directory_survives() {
    let upper = Tree::new();
    upper
        .dir("d", 0o1777)
        .file("d/f", 0o4755, b"data")
        .chown("d/f", 3_000_000_000, 12);
    upper
        .file("cap", 0o755, b"")
        .xattr("cap", "security.capability", CAPABILITY);
    upper
        .file("x", 0o600, &[7; 1_300_000])
        .xattr("x", "user.a b", b"1\n2=3\0");
    upper
        .symlink("link", "/no/such")
        .fifo("pipe", 0o640)
        .device("dev", 1, 3);
    upper
        .hardlink("d/f", "again")
        .hardlink("d/f", "d/third")
        .whiteout("gone");
    upper
        .file(&"n".repeat(255), 0o644, b"long")
        .dir(&["deep"; 60].join("/"), 0o700);
    for (path, secs, nanos) in [("x", -5, 250_000_000), ("d", 1_000, 1), ("link", 7, 0)] {
        upper.time(path, secs, nanos);
    }
    assert_eq!(round_trip(&upper, &[&Tree::new()]).list(), upper.list());
}

/// `cap_net_raw=ep` in revision 2. Its bytes hold no newline, so `user.a b` above has one.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
#[ignore = "needs root"]
fn as_root_a_directory_is_opaque_only_where_a_lower_layer_has_it() {
    let lower = Tree::new();
    lower.dir("old", 0o755).dir("a/b", 0o755);
    let above = Tree::new();
    above.whiteout("a");
    let upper = Tree::new();
    upper
        .dir("old", 0o755)
        .opaque("old")
        .dir("new", 0o755)
        .opaque("new");
    upper.dir("a/b", 0o755).opaque("a");
    let opaque = |tree: &Tree| -> Vec<String> {
        tree.list()
            .into_iter()
            .filter(|line| line.contains("overlay.opaque"))
            .collect()
    };
    let seen = opaque(&round_trip(&upper, &[&lower, &above]));
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].starts_with("old "));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_whiteout_where_nothing_shows_through_is_left_out() {
    let lower = Tree::new();
    lower.dir("d", 0o755);
    let upper = Tree::new();
    upper.dir("d", 0o755).opaque("d").whiteout("d/x");
    let tree = round_trip(&upper, &[&lower]);
    assert!(!tree.list().iter().any(|line| line.starts_with("d/x")));
}

#[test]
#[ignore = "needs root"]
fn as_root_the_root_is_in_the_tar_only_if_it_changed() {
    let upper = Tree::new();
    upper.time("", 1, 0);
    let before = Attributes::read(upper.open().as_fd()).unwrap();
    let entries = |before: &Attributes| {
        let tar = export(upper.open(), &Lower::new(Vec::new()), before, Vec::new()).unwrap();
        tar.len() / 512
    };
    assert_eq!(entries(&before), 2);
    assert_eq!(
        entries(&Attributes {
            mode: 0o700,
            ..before
        }),
        3
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_files_whose_content_is_elsewhere_are_refused() {
    for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        let upper = Tree::new();
        upper.dir("d", 0o755).xattr("d", name, b"x");
        let root = Attributes::read(upper.open().as_fd()).unwrap();
        assert!(export(upper.open(), &Lower::new(Vec::new()), &root, Vec::new()).is_err());
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_exporting_one_tree_twice_gives_the_same_bytes() {
    let upper = Tree::new();
    for n in 0..50 {
        upper.file(&format!("file{}", n * 7 % 50), 0o644, b"x");
    }
    let bytes = || {
        let root = Attributes::read(upper.open().as_fd()).unwrap();
        export(upper.open(), &Lower::new(Vec::new()), &root, Vec::new()).unwrap()
    };
    assert_eq!(bytes(), bytes());
}
