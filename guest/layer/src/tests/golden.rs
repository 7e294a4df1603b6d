//! Bytes that must never change: those of layers, since their digests are names, and those of index
//! files, which lie in stores.
//!
//! `tar tvf` shows the archives. `copy.tar` and `diff.tar` were written by the first versions of the
//! two writers.

use std::io::Write as _;

use crate::{Index, Style, Writer};

use super::raw::index_of;
use super::sample;

fn written(style: Style) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new(), style);
    for (entry, data) in sample::entries() {
        tar.header(&entry.path, &entry.attributes(), &entry.kind)
            .unwrap();
        tar.write_all(&data).unwrap();
        tar.pad(data.len() as u64).unwrap();
    }
    tar.finish().unwrap()
}

/// Compares block by block, so that a failure shows a header and not the whole tar.
#[track_caller]
fn check(bytes: &[u8], golden: &[u8]) {
    for (at, (block, want)) in bytes.chunks(512).zip(golden.chunks(512)).enumerate() {
        let [block, want] = [block, want].map(<[u8]>::escape_ascii);
        assert_eq!(block.to_string(), want.to_string(), "block {at}");
    }
    assert_eq!(bytes.len(), golden.len());
}

#[test]
fn layers_of_copy_are_written_as_ever() {
    check(&written(Style::Copy), include_bytes!("golden/copy.tar"));
}

#[test]
fn layers_of_steps_are_written_as_ever() {
    check(&written(Style::Diff), include_bytes!("golden/diff.tar"));
}

#[test]
fn an_index_file_is_written_and_read_as_ever() {
    let golden = include_bytes!("golden/copy.index");
    let index = index_of([&include_bytes!("golden/copy.tar")[..]]).unwrap();
    check(&index.encode(), golden);
    assert_eq!(Index::decode(golden), Some(index));
}

/// The two styles differ in bytes only.
#[test]
fn both_styles_say_the_same() {
    let [copy, diff] = [Style::Copy, Style::Diff].map(|style| {
        let tar = written(style);
        let mut entries = index_of([tar.as_slice()]).unwrap().entries().to_vec();
        for entry in &mut entries {
            if let crate::EntryKind::File { offset, .. } = &mut entry.kind {
                *offset = 0;
            }
        }
        entries
    });
    assert_eq!(copy, diff);
}
