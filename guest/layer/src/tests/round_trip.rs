//! What is written is read.

use std::io::Write as _;

use crate::{Attributes, Digest, Entry, EntryKind, Event, Mtime, Parser, ReadError, Reader};
use crate::{Style, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Vec<u8>> {
    let bytes = vec(1_u8.., 1..200).prop_map(|mut name| {
        name.retain(|byte| *byte != b'/');
        name.insert(0, b'n');
        name
    });
    prop_oneof![2 => Just(b"name".to_vec()), 1 => bytes]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

/// Types, files with a length.
fn kind() -> impl Strategy<Value = EntryKind> {
    let numbers = || (1_u32..1 << 12, 0_u32..1 << 20);
    prop_oneof![
        4 => (0_u64..2000).prop_map(|size| EntryKind::File {
            size,
            digest: Digest::UNKNOWN,
            offset: 0,
        }),
        2 => Just(EntryKind::Directory),
        1 => path().prop_map(|target| EntryKind::Symlink { target }),
        1 => path().prop_map(|target| EntryKind::Hardlink { target }),
        1 => numbers().prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => numbers().prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        1 => Just(EntryKind::Fifo),
        1 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let name = vec(1_u8.., 1..30).prop_map(|mut name| {
        name.retain(|byte| *byte != b'=');
        name.insert(0, b'u');
        name
    });
    let xattrs = btree_map(name, vec(any::<u8>(), 0..100), 0..3);
    let secs = prop_oneof![0..1_i64 << 33, -1_i64 << 40..1 << 40];
    let nanos = prop_oneof![Just(0), 0_u32..1_000_000_000];
    (
        0..=0o7777_u32,
        0..u32::MAX,
        0..u32::MAX,
        secs,
        nanos,
        xattrs,
    )
        .prop_map(|(mode, uid, gid, secs, nanos, xattrs)| Attributes {
            mode,
            uid,
            gid,
            mtime: Mtime { secs, nanos },
            xattrs: xattrs.into_iter().collect(),
        })
}

fn entry() -> impl Strategy<Value = Entry> {
    let root = (
        Just(Vec::new()),
        prop_oneof![Just(EntryKind::Directory), Just(EntryKind::Opaque)],
    );
    let place = prop_oneof![9 => (path(), kind()), 1 => root];
    (place, attributes()).prop_map(|((path, kind), attributes)| {
        let is_mark = matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
        let attributes = if is_mark {
            Attributes::default()
        } else {
            attributes
        };
        Entry::new(path, kind, attributes)
    })
}

fn size(kind: &EntryKind) -> usize {
    if let EntryKind::File { size, .. } = kind {
        usize::try_from(*size).unwrap()
    } else {
        0
    }
}

fn write(entries: &[Entry], style: Style) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new(), style);
    for (entry, byte) in entries.iter().zip(1..) {
        tar.header(&entry.path, &entry.attributes(), &entry.kind)
            .unwrap();
        let data = vec![byte; size(&entry.kind)];
        tar.write_all(&data).unwrap();
        tar.pad(data.len() as u64).unwrap();
    }
    tar.finish().unwrap()
}

/// Reads by pulling. The offset of a file is compared with where its data is, and taken out.
fn pull(tar: &[u8], capacity: usize) -> Vec<Entry> {
    let source = std::io::BufReader::with_capacity(capacity, tar);
    let mut reader = Reader::new(source);
    let mut entries = Vec::new();
    while let Some(mut entry) = reader.next_entry().unwrap() {
        let mut data = Vec::new();
        let take = |piece: &[u8]| {
            data.extend_from_slice(piece);
            Ok::<(), ReadError>(())
        };
        reader.data(take).unwrap();
        assert_eq!(data.len(), size(&entry.kind));
        if let EntryKind::File { offset, .. } = &mut entry.kind {
            let from = usize::try_from(std::mem::take(offset)).unwrap();
            assert_eq!(tar[from..from + data.len()], data);
        }
        entries.push(entry);
        let number = u8::try_from(entries.len()).unwrap();
        assert!(data.iter().all(|byte| *byte == number));
    }
    entries
}

/// Reads by pushing pieces of one length; entries with the number of their data's bytes.
fn push(tar: &[u8], length: usize) -> Vec<(Entry, usize)> {
    let mut parser = Parser::new();
    let mut entries: Vec<(Entry, usize)> = Vec::new();
    let mut is_open = false;
    for mut piece in tar.chunks(length) {
        while let Some(event) = parser.next(&mut piece).unwrap() {
            match event {
                Event::Entry(entry) => {
                    assert!(!std::mem::replace(&mut is_open, true));
                    entries.push((entry, 0));
                }
                Event::Data(data) => entries.last_mut().unwrap().1 += data.len(),
                Event::End => assert!(std::mem::take(&mut is_open)),
            }
        }
        assert!(piece.is_empty());
    }
    parser.finish().unwrap();
    entries
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        entries in vec(entry(), 0..8),
        style in prop_oneof![Just(Style::Copy), Just(Style::Diff)],
        length in 1..3000_usize,
    ) {
        let tar = write(&entries, style);
        prop_assert_eq!(tar.len() % 512, 0);
        prop_assert_eq!(&pull(&tar, length), &entries);
        let pushed = push(&tar, length);
        for ((entry, n_bytes), want) in pushed.iter().zip(&entries) {
            prop_assert_eq!(*n_bytes, size(&entry.kind));
            prop_assert_eq!(&entry.path, &want.path);
            prop_assert_eq!(entry.attributes(), want.attributes());
        }
        prop_assert_eq!(pushed.len(), entries.len());
    }
}

#[test]
fn an_attribute_that_no_layer_can_hold_is_refused_by_the_writer() {
    let attributes = Attributes {
        xattrs: vec![(b"user.a=b".to_vec(), b"1".to_vec())],
        ..Attributes::default()
    };
    for style in [Style::Copy, Style::Diff] {
        let mut tar = Writer::new(Vec::new(), style);
        let refused = tar.header(b"f", &attributes, &EntryKind::Fifo).unwrap_err();
        assert!(refused.to_string().contains("user.a=b"), "{refused}");
        assert_eq!(tar.out(), &[0_u8; 0]);
    }
}

#[test]
fn the_size_of_a_large_file_is_in_the_extended_header() {
    for size in [(1_u64 << 33) - 1, 1 << 33, 1 << 39] {
        let kind = EntryKind::File {
            size,
            digest: Digest::UNKNOWN,
            offset: 0,
        };
        for style in [Style::Copy, Style::Diff] {
            let mut tar = Writer::new(Vec::new(), style);
            tar.header(b"f", &Attributes::default(), &kind).unwrap();
            let data = size.next_multiple_of(512);
            assert_eq!(tar.length(), data + tar.out().len() as u64 + 1024);
            let bytes = tar.finish().unwrap();
            let record = format!("{} size={size}\n", 9 + size.to_string().len());
            let is_extended = bytes[512..].starts_with(record.as_bytes());
            assert_eq!(is_extended, size >= 1 << 33);
            let read = Parser::new().next(&mut bytes.as_slice()).unwrap();
            let Some(Event::Entry(entry)) = read else {
                panic!("{read:?}")
            };
            assert!(matches!(entry.kind, EntryKind::File { size: read, .. } if read == size));
        }
    }
}
