//! Makers and takers of layers agree about what a layer can hold.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::raw::index_of;
use crate::limits::{
    MAX_ATTRIBUTES, MAX_ELEMENT, MAX_FILE, MAX_PATH, MAX_XATTR_NAME, MAX_XATTR_VALUE, MAX_XATTRS,
};
use crate::{
    Attributes, Digest, Entry, EntryKind, Event, Mtime, Parser, Style, Tally, Unfit, Writer,
};

/// Lengths around a limit.
fn around(limit: usize) -> impl Strategy<Value = usize> {
    select(vec![1, limit - 1, limit, limit + 1])
}

/// An element of a path: ordinary, odd, or near the longest.
fn element() -> impl Strategy<Value = Vec<u8>> {
    let odd: [&[u8]; 10] = [
        b"a",
        b"new\nline",
        b"\xff\xfe",
        b".wh.a",
        b".wh..wh..opq",
        b".wh.",
        b".whole",
        b"a=b",
        b" 9 path=x\n",
        b"..a",
    ];
    prop_oneof![
        3 => select(odd.to_vec()).prop_map(<[u8]>::to_vec),
        1 => around(MAX_ELEMENT).prop_map(|length| vec![b'n'; length]),
    ]
}

/// A path that is ordinary, or near the longest.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let short = vec(element(), 1..4).prop_map(|elements| elements.join(&b'/'));
    let long = (element(), around(MAX_PATH)).prop_map(|(last, length)| {
        let dirs = length.saturating_sub(last.len());
        let mut path = b"d/".repeat(dirs / 2);
        path.extend_from_slice(&last);
        path
    });
    prop_oneof![3 => short, 1 => long, 1 => Just(Vec::new())]
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let size = select(vec![
        0,
        1,
        1 << 33,
        MAX_FILE - (1 << 21),
        MAX_FILE,
        MAX_FILE + 1,
        8 << 40,
    ]);
    let target = || {
        prop_oneof![
            path(),
            around(MAX_PATH).prop_map(|length| vec![b't'; length]),
            Just(b"/a//../\0".to_vec()),
        ]
    };
    let majors = || select(vec![0_u32, 1, 4095, 4096, u32::MAX]);
    let minors = || select(vec![0_u32, 1, 0xf_ffff, 0x10_0000, u32::MAX]);
    prop_oneof![
        2 => size.prop_map(|size| EntryKind::File { size, digest: Digest::UNKNOWN, offset: 0 }),
        2 => Just(EntryKind::Directory),
        1 => target().prop_map(|target| EntryKind::Symlink { target }),
        1 => path().prop_map(|target| EntryKind::Hardlink { target }),
        1 => (majors(), minors()).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => (majors(), minors()).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        1 => Just(EntryKind::Fifo),
        2 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let one = |name: &[u8], value: usize| vec![(name.to_vec(), vec![b'v'; value])];
    let names: [&[u8]; 5] = [
        b"user.a",
        b"user.a=b",
        b"trusted.overlay.opaque",
        b"",
        b"user.\0",
    ];
    let named = select(names.to_vec()).prop_map(move |name| one(name, 3));
    let long = around(MAX_XATTR_NAME).prop_map(move |length| one(&vec![b'u'; length], 3));
    let valued = around(MAX_XATTR_VALUE).prop_map(move |length| one(b"user.a", length));
    let many = |count: usize, value: usize| -> Vec<_> {
        let numbered = (0..count).map(|n| (format!("user.{n:04}").into_bytes(), vec![0; value]));
        numbered.collect()
    };
    let count = around(MAX_XATTRS).prop_map(move |count| many(count, 1));
    // Together as large as they may be, or a little larger.
    let most = usize::try_from(MAX_ATTRIBUTES).unwrap() / MAX_XATTRS;
    let large = select(vec![most - 10, most - 9, most - 8, most]);
    let large = large.prop_map(move |value| many(MAX_XATTRS, value));
    prop_oneof![4 => Just(Vec::new()), 1 => named, 1 => long, 1 => valued, 1 => count, 1 => large]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let ids = || select(vec![0, 1 << 21, u32::MAX - 1, u32::MAX]);
    let secs = select(vec![i64::MIN, -1, 0, 1 << 33, i64::MAX]);
    let nanos = select(vec![0, 1, 999_999_999]);
    (ids(), ids(), secs, nanos, xattrs()).prop_map(|(uid, gid, secs, nanos, xattrs)| Attributes {
        mode: 0o7777,
        uid,
        gid,
        mtime: Mtime { secs, nanos },
        xattrs,
    })
}

/// Whether a maker may write an entry, and what a reader makes of it, as far as its header says.
fn both(
    path: &[u8],
    attributes: &Attributes,
    kind: &EntryKind,
    style: Style,
) -> (Result<(), Unfit>, Option<Entry>) {
    let mut tar = Writer::new(Vec::new(), style);
    let mut tally = Tally::default();
    let asked = tally.add(path, attributes, kind);
    if tar.header(path, attributes, kind).is_err() {
        return (asked, None);
    }
    let asked = asked.and_then(|()| tally.reaches(tar.length()));
    let read = match Parser::new().next(&mut tar.out().as_slice()) {
        Ok(Some(Event::Entry(mut entry))) => {
            if let EntryKind::File { offset, .. } = &mut entry.kind {
                *offset = 0;
            }
            Some(entry)
        }
        Ok(_) | Err(_) => None,
    };
    (asked, read)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_fits_is_read_back_and_what_does_not_is_not(
        path in path(),
        attributes in attributes(),
        kind in kind(),
    ) {
        let is_mark = matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
        // Marks have no attributes; a writer gives them none.
        let attributes = if is_mark { Attributes::default() } else { attributes };
        let entry = Entry::new(path.clone(), kind.clone(), attributes.clone());
        for style in [Style::Copy, Style::Diff] {
            let (asked, read) = both(&path, &attributes, &kind, style);
            prop_assert_eq!(read.as_ref() == Some(&entry), asked.is_ok(), "{:?}: {:?}", asked, read);
        }
    }
}

/// They share a long beginning, which must not be compared byte by byte again and again.
#[test]
fn a_file_with_very_many_names_is_taken() {
    let mut tar = Writer::new(Vec::new(), Style::Diff);
    let dir = format!("{}/", "d".repeat(250)).repeat(15);
    let first = format!("{dir}first").into_bytes();
    let mut tally = Tally::default();
    let mut put = |path: &[u8], kind: &EntryKind| {
        tally.add(path, &Attributes::default(), kind).unwrap();
        tar.header(path, &Attributes::default(), kind).unwrap();
    };
    put(&first, &EntryKind::Fifo);
    for number in 0..20_000 {
        let target = first.clone();
        put(
            format!("{dir}{number}").as_bytes(),
            &EntryKind::Hardlink { target },
        );
    }
    let bytes = tar.finish().unwrap();
    let index = index_of(bytes.chunks(1 << 20)).unwrap();
    assert_eq!(index.entries().len(), 20_001);
}
