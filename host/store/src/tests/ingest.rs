//! Tars that are taken in, tars that are refused, and why.

use super::*;
use crate::{Entry, EntryKind, Index, Mtime};

/// A header of our own, for what no honest writer writes.
struct Raw {
    block: [u8; 512],
    data: Vec<u8>,
}

fn raw(kind: u8, name: &[u8], data: &[u8]) -> Raw {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    Raw {
        block,
        data: data.to_vec(),
    }
}

fn link(kind: u8, name: &[u8], target: &[u8]) -> Raw {
    raw(kind, name, b"").set(157, target)
}

fn pax(records: &[(&str, &[u8])]) -> Raw {
    let records = records.iter();
    let records = records.map(|(key, value)| pax_record(key.as_bytes(), value));
    raw(b'x', b"pax", &records.collect::<Vec<_>>().concat())
}

impl Raw {
    fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn bytes(mut self) -> Vec<u8> {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = [&self.block[..], &self.data].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn archive(parts: Vec<Raw>) -> Vec<u8> {
    let mut bytes: Vec<u8> = parts.into_iter().flat_map(Raw::bytes).collect();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn index_of(bytes: &[u8]) -> Result<Index, IngestError> {
    let root = Root::new();
    let store = root.open();
    let layer = ingest(&store, bytes);
    let index = layer.map(|layer| store.index(layer.diff_id).unwrap());
    store.close().unwrap();
    root.assert_clean();
    index.map(|index| Index::clone(&index))
}

#[track_caller]
fn refused(parts: Vec<Raw>, why: &str) {
    match index_of(&archive(parts)) {
        Ok(index) => panic!("taken in: {index:?}"),
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
    }
}

/// Paths and kinds, in short: `f` and so on, with the target of links.
#[track_caller]
fn taken(parts: Vec<Raw>, expected: &[&str]) -> Index {
    let index = index_of(&archive(parts)).unwrap();
    let shown: Vec<String> = index.entries().iter().map(show).collect();
    assert_eq!(shown, expected);
    index
}

fn show(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    match &entry.kind {
        EntryKind::File { size, .. } => format!("{path} f{size}"),
        EntryKind::Directory => format!("{path} d"),
        EntryKind::Symlink { target } => format!("{path} l {}", String::from_utf8_lossy(target)),
        EntryKind::Hardlink { target } => format!("{path} h {}", String::from_utf8_lossy(target)),
        EntryKind::CharDevice { major, minor } => format!("{path} c{major}:{minor}"),
        EntryKind::BlockDevice { major, minor } => format!("{path} b{major}:{minor}"),
        EntryKind::Fifo => format!("{path} p"),
        EntryKind::Whiteout => format!("{path} w"),
        EntryKind::Opaque => format!("{path} o"),
    }
}

#[test]
fn every_type_of_entry_is_taken_in() {
    taken(
        vec![
            raw(b'5', b"./", b""),
            raw(b'5', b"./d/", b""),
            raw(b'0', b"/d/f", b"abc"),
            raw(0, b"old", b"x"),
            raw(0, b"olddir/", b""),
            raw(b'7', b"contiguous", b"x"),
            link(b'2', b"s", b"../anything/at all"),
            link(b'1', b"h", b"./d/f"),
            raw(b'3', b"c", b"")
                .set(329, b"0000001\0")
                .set(337, b"0000003\0"),
            raw(b'4', b"b", b"")
                .set(329, b"0000010\0")
                .set(337, b"0000000\0"),
            raw(b'6', b"p", b""),
        ],
        &[
            " d",
            "b b8:0",
            "c c1:3",
            "contiguous f1",
            "d d",
            "d/f f3",
            "h h d/f",
            "old f1",
            "olddir d",
            "p p",
            "s l ../anything/at all",
        ],
    );
}

#[test]
fn properties_come_from_headers_and_extensions() {
    let records: [(&str, &[u8]); 8] = [
        ("path", b"long/name"),
        ("uid", b"4000000000"),
        ("gid", b"7"),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.b", b"line\nbreak"),
        ("SCHILY.xattr.security.capability", b"\0\x01"),
        ("comment", b"ignored"),
        ("LIBARCHIVE.xattr.user.b", b"ignored"),
    ];
    let index = taken(
        vec![
            pax(&records),
            raw(b'0', b"short", b"abc").set(100, b"0106755\0"),
            raw(b'0', b"z", b"")
                .set(108, b"\x80\0\0\0\0\x01\0\0")
                .set(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
        ],
        &["long/name f3", "z f0"],
    );
    let [first, second] = index.entries() else {
        panic!()
    };
    assert_eq!(
        (first.mode, first.uid, first.gid),
        (0o6755, 4_000_000_000, 7)
    );
    assert_eq!(
        first.mtime,
        Mtime {
            secs: -2,
            nanos: 750_000_000
        }
    );
    let xattrs = [
        (b"security.capability".to_vec(), b"\0\x01".to_vec()),
        (b"user.b".to_vec(), b"line\nbreak".to_vec()),
    ];
    assert_eq!(first.xattrs, xattrs);
    let EntryKind::File { digest, offset, .. } = &first.kind else {
        panic!()
    };
    assert_eq!((*digest, *offset), (Digest::of(b"abc"), 512 + 512 + 512));
    assert_eq!((second.uid, second.mtime.secs), (65536, -2));
    assert_eq!(second.xattrs, []);
}

#[test]
fn long_names_come_in_three_forms() {
    let (long, link_to) = ([b'a'; 200], [b'b'; 200]);
    let name = |n: &[u8]| [n, b"\0"].concat();
    let shown = [
        format!("{} l {}", "a".repeat(200), "b".repeat(200)),
        "pax l target".to_owned(),
        format!("{}/{} f0", "p".repeat(155), "n".repeat(100)),
    ];
    taken(
        vec![
            raw(b'L', b"././@LongLink", &name(&long)),
            raw(b'K', b"././@LongLink", &name(&link_to)),
            link(b'2', b"short", b"short"),
            raw(b'0', &[b'n'; 100], b"").set(345, &[b'p'; 155]),
            pax(&[("path", b"pax"), ("linkpath", b"target")]),
            link(b'2', b"short", b"short"),
        ],
        &shown.each_ref().map(String::as_str),
    );
}

#[test]
fn each_dialect_is_read_as_what_it_is() {
    // GNU keeps times where ustar keeps the beginning of a long path.
    let gnu = |part: Raw| part.set(257, b"ustar  \0");
    let device = raw(b'3', b"tty", b"").set(329, b"0000005\0");
    taken(
        vec![
            gnu(raw(b'0', b"a", b"").set(345, b"00000000001\0")),
            gnu(device.set(337, b"0000001\0")),
        ],
        &["a f0", "tty c5:1"],
    );
    // Before ustar there were no extensions.
    for extension in [b'x', b'g', b'L', b'K'] {
        let old = raw(extension, b"e", b"").set(257, &[0; 8]);
        refused(vec![old, raw(b'0', b"a", b"")], "unknown type");
    }
    // And star keeps times behind the 131st byte of the beginning.
    let star = |long: &[u8]| raw(b'0', b"n", b"").set(345, long).set(508, b"tar\0");
    let name = format!("{}/n f0", "p".repeat(130));
    taken(vec![star(&[b'p'; 130])], &[&name]);
    refused(vec![star(&[b'p'; 131])], "dialect");
}

#[test]
fn names_that_cannot_be_are_refused() {
    refused(vec![raw(b'0', b"a/../b", b"")], "`..`");
    refused(vec![raw(b'0', b"..", b"")], "`..`");
    refused(vec![raw(b'0', b"", b"")], "empty");
    refused(vec![pax(&[("path", b"a\0b")]), raw(b'0', b"x", b"")], "NUL");
    refused(
        vec![pax(&[("path", &[b'a'; 256])]), raw(b'0', b"x", b"")],
        "too long",
    );
    let deep = "a/".repeat(2100);
    refused(
        vec![pax(&[("path", deep.as_bytes())]), raw(b'0', b"x", b"")],
        "too long",
    );
    let named = |path: &str| vec![pax(&[("path", path.as_bytes())]), raw(b'0', b"x", b"")];
    let longest = |last: &str| format!("{}{last}", "a/".repeat(2047));
    for longest in [longest("b"), "a".repeat(255)] {
        taken(named(&longest), &[&format!("{longest} f0")]);
    }
    refused(named(&longest("bc")), "too long");
    let leads_to = |text: &[u8]| vec![pax(&[("linkpath", text)]), link(b'2', b"x", b"y")];
    let far = "b".repeat(4095);
    taken(leads_to(far.as_bytes()), &[&format!("x l {far}")]);
    refused(leads_to(&[b'b'; 4096]), "name that cannot be");
    refused(leads_to(b"a\0b"), "name that cannot be");
    refused(vec![raw(b'0', b"a/", b"")], "name is that of a directory");
    refused(vec![raw(b'0', b"./", b"")], "name is that of a directory");
    refused(vec![link(b'2', b"a", b"")], "link to nowhere");
    for target in [&b""[..], b"/", b"../x", b"a/.wh.b"] {
        refused(vec![link(b'1', b"a", target)], "hard link to a name");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let file = || raw(b'0', b"a", b"");
    refused(
        vec![file().set(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")],
        "more than",
    );
    refused(
        vec![file().set(124, b"\x80\0\0\x01\0\0\0\0\0\0\0\0")],
        "no number",
    );
    refused(
        vec![file().set(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")],
        "no number",
    );
    refused(vec![file().set(108, b"12z4567\0")], "no number");
    refused(
        vec![file().set(108, b"\x80\0\0\0\xff\xff\xff\xff")],
        "no user",
    );
    refused(
        vec![pax(&[("size", b"99999999999999999999")]), file()],
        "size",
    );
    refused(vec![pax(&[("uid", b"-1")]), file()], "uid");
    let device = raw(b'3', b"a", b"").set(329, b"0010000\0");
    refused(vec![device], "device numbers");
    refused(vec![raw(b'3', b"a", b"")], "mark removals");
}

#[test]
fn what_readers_disagree_about_is_refused() {
    refused(vec![raw(b'S', b"a", b"")], "sparse");
    refused(
        vec![pax(&[("GNU.sparse.major", b"1")]), raw(b'0', b"a", b"")],
        "sparse",
    );
    refused(vec![raw(b'V', b"label", b"")], "unknown type");
    refused(vec![raw(b'2', b"a", b"x").set(157, b"t")], "content");
    refused(vec![raw(b'5', b"a", b"x")], "content");
    refused(
        vec![pax(&[("path", b"a"), ("path", b"b")]), raw(b'0', b"x", b"")],
        "twice",
    );
    refused(
        vec![pax(&[]), pax(&[("path", b"a")]), raw(b'0', b"x", b"")],
        "two extended",
    );
    let long = || raw(b'L', b"l", b"name\0");
    refused(vec![long(), long(), raw(b'0', b"x", b"")], "twice");
    refused(
        vec![pax(&[("size", b"0")]), long(), raw(b'0', b"x", b"")],
        "stands between",
    );
    refused(
        vec![raw(b'4', b"x", b"").set(257, &[0; 8])],
        "without numbers",
    );
    refused(
        vec![long(), pax(&[("path", b"a")]), raw(b'0', b"x", b"")],
        "twice",
    );
    refused(
        vec![raw(b'L', b"l", b"a\0b"), raw(b'0', b"x", b"")],
        "goes on",
    );
    let global = |records| Raw {
        block: raw(b'g', b"g", b"").block,
        ..pax(records)
    };
    let sized = |part: Raw| {
        let length = format!("{:011o}\0", part.data.len());
        part.set(124, length.as_bytes())
    };
    refused(
        vec![sized(global(&[("path", b"a")])), raw(b'0', b"x", b"")],
        "global",
    );
    taken(
        vec![sized(global(&[("comment", b"a")])), raw(b'0', b"x", b"")],
        &["x f0"],
    );
    refused(
        vec![raw(b'0', b"a", b"").set(263, b"  ").set(345, b"prefix")],
        "dialect",
    );
    refused(
        vec![raw(b'x', b"p", b"11 path=abc"), raw(b'0', b"x", b"")],
        "malformed",
    );
    let overlay = pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]);
    refused(vec![overlay, raw(b'5', b"x", b"")], "overlay");
}

#[test]
fn removals_are_read_and_odd_ones_refused() {
    taken(
        vec![
            raw(b'0', b"d/.wh.gone", b""),
            raw(b'0', b"d/.wh..wh..opq", b""),
            raw(b'0', b".wh.top", b""),
            link(b'1', b".wh.linked", b".wh..wh.aufs"),
            raw(b'0', b".wh..wh.aufs", b""),
            raw(b'0', b".wh..wh.plnk/1.2", b"data"),
        ],
        &["d o", "d/gone w", "linked w", "top w"],
    );
    taken(
        vec![raw(b'0', b".wh..wh..opq", b""), raw(b'5', b"/", b"")],
        &[" d", " o"],
    );
    refused(vec![raw(b'0', b"a/.wh.", b"")], "cannot be");
    refused(vec![raw(b'0', b"a/.wh...", b"")], "cannot be");
    refused(vec![raw(b'0', b"a/.wh..", b"")], "cannot be");
    refused(
        vec![raw(b'0', b"a/.wh.b/c", b"")],
        "below something that its layer removes",
    );
    refused(vec![raw(b'0', b"a/.wh.b", b"x")], "content");
    refused(vec![raw(b'5', b"a/.wh.b", b"")], "content");
}

#[test]
fn the_last_of_a_name_counts_as_in_unpacking() {
    let index = taken(
        vec![
            raw(b'5', b"d", b""),
            raw(b'0', b"d/a", b"one"),
            raw(b'5', b"./d/", b"").set(100, b"0000700\0"),
            raw(b'0', b"/d/a", b"two!"),
            link(b'2', b"d/b", b"x"),
            raw(b'0', b"d/b", b""),
        ],
        &["d d", "d/a f4", "d/b f0"],
    );
    assert_eq!(index.get(b"d").unwrap().mode, 0o700);
    refused(
        vec![raw(b'5', b"a", b""), raw(b'0', b"a", b"")],
        "directory and something else",
    );
    // A removal and something new at the same name.
    taken(
        vec![raw(b'0', b".wh.a", b""), raw(b'0', b"a", b"x")],
        &["a f1"],
    );
    taken(
        vec![
            raw(b'5', b"a", b""),
            raw(b'0', b"a/b", b"x"),
            raw(b'0', b".wh.a", b""),
        ],
        &["a d", "a o", "a/b f1"],
    );
    refused(
        vec![raw(b'0', b"a", b""), raw(b'0', b"a/.wh..wh..opq", b"")],
        "opaque",
    );
    refused(
        vec![raw(b'0', b".wh.a", b""), raw(b'0', b"a/.wh..wh..opq", b"")],
        "removed",
    );
}

#[test]
fn only_directories_have_something_below_them() {
    refused(
        vec![raw(b'0', b"a", b""), raw(b'0', b"a/b", b"")],
        "no directory",
    );
    refused(
        vec![raw(b'0', b"a/b", b""), link(b'2', b"a", b"/etc")],
        "no directory",
    );
    refused(
        vec![raw(b'0', b".wh.a", b""), raw(b'0', b"a/b/c", b"")],
        "no directory",
    );
    // Sorted by bytes alone, the dash would stand between the two.
    refused(
        vec![
            raw(b'0', b"a", b""),
            raw(b'0', b"a-b", b""),
            raw(b'0', b"a/b", b""),
        ],
        "no directory",
    );
}

#[test]
fn hard_links_name_a_file_that_is_there_already() {
    let index = taken(
        vec![
            raw(b'0', b"z", b"data").set(100, b"0000600\0"),
            link(b'1', b"m", b"z"),
            link(b'1', b"a", b"m"),
            link(b'1', b"elsewhere", b"lower/file"),
        ],
        &["a h z", "elsewhere h lower/file", "m h z", "z f4"],
    );
    assert_eq!(index.get(b"a").unwrap().mode, 0o600);
    refused(
        vec![link(b'1', b"a", b"b"), raw(b'0', b"b", b"")],
        "comes later",
    );
    refused(vec![link(b'1', b"a", b"a")], "comes later");
    refused(
        vec![
            raw(b'0', b"b", b"1"),
            link(b'1', b"a", b"b"),
            raw(b'0', b"b", b"2"),
        ],
        "comes later",
    );
    refused(
        vec![raw(b'5', b"d", b""), link(b'1', b"a", b"d")],
        "to a directory",
    );
    refused(
        vec![raw(b'0', b".wh.b", b""), link(b'1', b"a", b"b")],
        "removes",
    );
}

#[test]
fn a_tar_ends_between_entries_and_nothing_follows() {
    let whole = archive(vec![raw(b'0', b"a", &[1; 600])]);
    let length = whole.len();
    for end in [length, length - 512, length - 1024] {
        assert_eq!(index_of(&whole[..end]).unwrap().entries().len(), 1, "{end}");
    }
    for end in [length - 1025, length - 1, length - 511, 100, 513, 1200] {
        assert!(
            index_of(&whole[..end])
                .unwrap_err()
                .to_string()
                .contains("ends inside"),
            "{end}"
        );
    }
    assert!(index_of(b"").unwrap_err().to_string().contains("empty"));
    assert_eq!(index_of(&[0; 1024]).unwrap().entries(), []);
    assert_eq!(index_of(&[0; 10240]).unwrap().entries(), []);
    let more = [&whole[..], &whole].concat();
    assert!(
        index_of(&more)
            .unwrap_err()
            .to_string()
            .contains("follows the end")
    );
    let lone = [&[0; 512][..], &whole].concat();
    assert!(
        index_of(&lone)
            .unwrap_err()
            .to_string()
            .contains("follows the end")
    );
    let after_extension = [pax(&[("path", b"a")]).bytes(), vec![0; 1024]].concat();
    assert!(
        index_of(&after_extension)
            .unwrap_err()
            .to_string()
            .contains("extended header")
    );
    let mut damaged = whole;
    damaged[0] ^= 1;
    assert!(
        index_of(&damaged)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
}

#[test]
fn what_was_refused_stays_refused_and_leaves_nothing() {
    let root = Root::new();
    let store = root.open();
    let mut writer = store.layer_writer("test").unwrap();
    let error = writer.write_all(&[1; 512]).unwrap_err();
    let inner = error
        .into_inner()
        .unwrap()
        .downcast::<IngestError>()
        .unwrap();
    assert!(matches!(*inner, IngestError::Rejected { .. }));
    assert!(writer.write_all(&[0; 1024]).is_err());
    assert!(writer.finish().is_err());
    let mut writer = store.layer_writer("test").unwrap();
    writer.write_all(&vec![0; 5 << 20]).unwrap();
    writer.abandon();
    drop(store.layer_writer("dropped").unwrap());
    assert_eq!(names(&root.path().join("blobs")).len(), 1);
    store.close().unwrap();
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    root.assert_clean();
}

#[test]
fn a_layer_that_is_written_is_not_there_before_it_is_finished() {
    let root = Root::new();
    let store = root.open();
    let written = || {
        let mut writer = store.layer_writer("test").unwrap();
        let tar = archive(vec![raw(b'0', b"a", b"x")]);
        writer.write_all(&tar).unwrap();
        let written = writer.written().unwrap();
        assert_eq!(written.diff_id().digest(), Digest::of(&tar));
        written
    };
    let unwanted = written();
    let diff_id = unwanted.diff_id();
    assert_eq!(store.layer(diff_id).unwrap(), None);
    unwanted.abandon();
    assert_eq!(store.layer(diff_id).unwrap(), None);
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    let layer = written().finish().unwrap();
    assert_eq!(store.layer(diff_id).unwrap(), Some(layer));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn the_content_id_leaves_out_times_and_nothing_else() {
    let root = Root::new();
    let store = root.open();
    let id = |part: Raw| ingest(&store, &archive(vec![part])).unwrap().content_id;
    let file = || raw(b'0', b"a", b"x");
    let base = id(file());
    assert_eq!(id(file().set(136, b"00000000777\0")), base);
    assert_ne!(id(file().set(100, b"0000600\0")), base);
    assert_ne!(id(file().set(108, b"0000001\0")), base);
    assert_ne!(id(raw(b'0', b"b", b"x")), base);
    assert_ne!(id(raw(b'0', b"a", b"y")), base);
    assert_ne!(id(raw(b'5', b"a", b"")), id(raw(b'6', b"a", b"")));
    let device = |minor| id(raw(b'3', b"a", b"").set(337, minor));
    assert_ne!(device(b"0000001\0"), device(b"0000002\0"));
    store.close().unwrap();
}

#[test]
fn a_directory_by_name_is_one_by_both_names() {
    let root = Root::new();
    let store = root.open();
    let pax = || raw(b'x', b"pax", b"10 path=y\n");
    let refused = ingest(&store, &archive(vec![pax(), raw(0, b"x/", b"")]));
    assert!(
        matches!(refused, Err(IngestError::Rejected { .. })),
        "{refused:?}"
    );
    assert!(ingest(&store, &archive(vec![pax(), raw(0, b"x", b"")])).is_ok());
    assert!(ingest(&store, &archive(vec![raw(0, b"x/", b"")])).is_ok());
    store.close().unwrap();
}
