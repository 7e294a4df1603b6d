//! What an index tells of paths.

use std::sync::Arc;

use super::*;
use crate::{Entry, EntryKind, Index};

/// A layer with names that sort apart by byte and together by path.
fn index(root: &Root) -> Arc<Index> {
    let store = root.open();
    let files = [
        "a/.wh..wh..opq",
        "a/b",
        "a/b.c",
        "a/d/e",
        "a.b",
        "ab/c",
        "b",
    ];
    let files = files.map(|path| (path, &b""[..]));
    let layer = ingest(&store, &tar(&files)).unwrap();
    let index = store.index(layer.diff_id).unwrap();
    store.close().unwrap();
    index
}

fn paths<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    let files = entries.filter(|entry| entry.kind != EntryKind::Opaque);
    let paths = files.map(|entry| String::from_utf8(entry.path.clone()).unwrap());
    paths.collect()
}

#[test]
fn what_is_below_a_directory_is_found_and_nothing_beside_it() {
    let index = index(&Root::new());
    let below = |dir: &str| paths(index.below(dir.as_bytes()));
    let children = |dir: &str| paths(index.children(dir.as_bytes()));
    assert_eq!(below("a"), ["a/b", "a/b.c", "a/d/e"]);
    assert_eq!(children("a"), ["a/b", "a/b.c"]);
    assert_eq!(children("a/d"), ["a/d/e"]);
    assert_eq!(below("ab"), ["ab/c"]);
    for nothing in ["a/b", "b", "c", "a/"] {
        assert_eq!(below(nothing), [""; 0], "{nothing}");
    }
    assert_eq!(below(""), ["a/b", "a/b.c", "a/d/e", "a.b", "ab/c", "b"]);
    assert_eq!(children(""), ["a.b", "b"]);
}

#[test]
fn what_a_layer_says_of_a_path_is_found() {
    let index = index(&Root::new());
    for path in ["a/b", "a/b.c", "a.b", "ab/c", "b"] {
        let found = index.get(path.as_bytes());
        assert_eq!(found.map(|entry| &entry.path[..]), Some(path.as_bytes()));
    }
    for path in ["", "a/c", "ab", "c", "a/b/c"] {
        assert!(index.get(path.as_bytes()).is_none(), "{path}");
    }
    for (dir, is_opaque) in [("a", true), ("ab", false), ("a/b", false), ("", false)] {
        assert_eq!(index.is_opaque(dir.as_bytes()), is_opaque, "{dir}");
    }
}
