//! A layer with one of everything that is written in a way of its own.

use crate::{Attributes, Digest, Entry, EntryKind, Mtime};

/// A name of 101 bytes.
const LONGER: [u8; 101] = [b'm'; 101];

/// Entries and their data, in the order of a tar.
pub(crate) fn entries() -> Vec<(Entry, Vec<u8>)> {
    let removed = |path: &[u8]| leaf(path, EntryKind::Whiteout, Attributes::default());
    let mut entries = names();
    entries.extend(attributes());
    entries.extend(types());
    entries.extend([removed(b"gone"), removed(b"d/gone")]);
    entries
}

fn usual() -> Attributes {
    Attributes {
        mode: 0o644,
        mtime: Mtime {
            secs: 1_700_000_000,
            nanos: 0,
        },
        ..Attributes::default()
    }
}

/// Directories, and files with data and names of each length that matters.
fn names() -> Vec<(Entry, Vec<u8>)> {
    let dir = || Attributes {
        mode: 0o755,
        ..usual()
    };
    let long_dir = [&b"d/"[..], &[b'e'; 97]].concat();
    vec![
        leaf(b"", EntryKind::Directory, dir()),
        leaf(b"d", EntryKind::Directory, dir()),
        leaf(b"d", EntryKind::Opaque, Attributes::default()),
        leaf(&long_dir, EntryKind::Directory, dir()),
        leaf(&[&long_dir[..], b"e"].concat(), EntryKind::Directory, dir()),
        file(b"d/empty", b"", usual()),
        file(b"d/file", b"contents", usual()),
        file(b"d/block", &[b'x'; 512], usual()),
        file(b"d/more", &[b'y'; 513], usual()),
        file(&[b'n'; 100], b"name of 100 bytes", usual()),
        file(&LONGER, b"name of 101 bytes", usual()),
    ]
}

/// Files with each owner, time and extended attribute that is written in a way of its own.
fn attributes() -> Vec<(Entry, Vec<u8>)> {
    let at = |secs, nanos| Attributes {
        mtime: Mtime { secs, nanos },
        ..usual()
    };
    let owned = |uid, gid| Attributes {
        uid,
        gid,
        ..usual()
    };
    let xattrs = Attributes {
        mode: 0o4755,
        xattrs: vec![
            (
                b"security.capability".to_vec(),
                b"\x01\0\0\x02\0 \0\0".to_vec(),
            ),
            (b"user.lines".to_vec(), b"1\n2=3\0".to_vec()),
        ],
        ..usual()
    };
    vec![
        file(b"xattrs", b"setuid", xattrs),
        file(b"owner-fits", b"", owned(0o7_777_777, 0o7_777_777)),
        file(b"owner-large", b"", owned(0o10_000_000, u32::MAX - 1)),
        file(b"time-zero", b"", at(0, 0)),
        file(b"time-tenth", b"", at(1, 100_000_000)),
        file(b"time-nano", b"", at(1, 1)),
        file(b"time-before", b"", at(-1, 500_000_000)),
        file(b"time-long-before", b"", at(-5_000_000_000, 0)),
        file(b"time-fits", b"", at((1 << 33) - 1, 0)),
        file(b"time-late", b"", at(1 << 33, 0)),
    ]
}

/// Entries that are neither files nor directories.
fn types() -> Vec<(Entry, Vec<u8>)> {
    vec![
        leaf(b"l", symlink(b"../d/file"), usual()),
        leaf(b"l-long", symlink(&[b't'; 101]), usual()),
        leaf(b"h", hardlink(b"d/file"), usual()),
        leaf(b"h-long", hardlink(&LONGER), usual()),
        leaf(
            b"null",
            EntryKind::CharDevice { major: 1, minor: 3 },
            usual(),
        ),
        leaf(
            b"disk",
            EntryKind::BlockDevice {
                major: 0xfff,
                minor: 0xf_ffff,
            },
            usual(),
        ),
        leaf(b"pipe", EntryKind::Fifo, usual()),
    ]
}

fn leaf(path: &[u8], kind: EntryKind, attributes: Attributes) -> (Entry, Vec<u8>) {
    (Entry::new(path.to_vec(), kind, attributes), Vec::new())
}

fn file(path: &[u8], data: &[u8], attributes: Attributes) -> (Entry, Vec<u8>) {
    let kind = EntryKind::File {
        size: data.len() as u64,
        digest: Digest::UNKNOWN,
        offset: 0,
    };
    (Entry::new(path.to_vec(), kind, attributes), data.to_vec())
}

fn symlink(target: &[u8]) -> EntryKind {
    EntryKind::Symlink {
        target: target.to_vec(),
    }
}

fn hardlink(target: &[u8]) -> EntryKind {
    EntryKind::Hardlink {
        target: target.to_vec(),
    }
}
