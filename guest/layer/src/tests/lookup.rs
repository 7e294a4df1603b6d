//! What an index tells about paths.

use crate::{Attributes, Digest, Entry, EntryKind, Index, Style, Writer};

use super::raw::index_of;

/// A layer with names that sort differently by byte and by path.
fn index() -> Index {
    let mut tar = Writer::new(Vec::new(), Style::Copy);
    let mut write = |path: &str, kind: &EntryKind| {
        tar.header(path.as_bytes(), &Attributes::implicit(), kind)
            .unwrap();
    };
    write("a", &EntryKind::Opaque);
    for path in ["a/b", "a/b.c", "a/d/e", "a.b", "ab/c", "b"] {
        let digest = Digest::UNKNOWN;
        write(
            path,
            &EntryKind::File {
                size: 0,
                digest,
                offset: 0,
            },
        );
    }
    index_of([tar.finish().unwrap().as_slice()]).unwrap()
}

fn paths<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    let files = entries.filter(|entry| entry.kind != EntryKind::Opaque);
    let paths = files.map(|entry| String::from_utf8(entry.path.clone()).unwrap());
    paths.collect()
}

#[test]
fn below_finds_everything_in_a_directory_and_nothing_else() {
    let index = index();
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
fn get_finds_the_entry_of_a_path() {
    let index = index();
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
