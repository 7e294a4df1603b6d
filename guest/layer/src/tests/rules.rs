//! Tars that are accepted, tars that are refused, and why.

use crate::{Entry, EntryKind, Index, Mtime};

use super::raw::{Raw, archive, index_of, link, pax, raw, sha256};

#[track_caller]
fn refused(parts: Vec<Raw>, why: &str) {
    match index_of([archive(parts).as_slice()]) {
        Ok(index) => panic!("taken in: {index:?}"),
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
    }
}

/// Paths and kinds, in short: `f` and so on, with the target of links.
#[track_caller]
fn taken(parts: Vec<Raw>, expected: &[&str]) -> Index {
    let index = index_of([archive(parts).as_slice()]).unwrap();
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
    assert_eq!((*digest, *offset), (sha256(b"abc"), 512 + 512 + 512));
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
    refused(vec![star(&[b'p'; 131])], "interpret differently");
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
    let deep = "a/".repeat(2100) + "a";
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
    // A mark is about a path that can be; nobody makes its own name.
    let marks = [
        format!("{}.wh.b", "a/".repeat(2047)),
        format!(".wh.{}", "a".repeat(255)),
    ];
    for (mark, shown) in marks.iter().zip([longest("b"), "a".repeat(255)]) {
        taken(named(mark), &[&format!("{shown} w")]);
        refused(named(&format!("{mark}b")), "too long");
    }
    let opaque = longest("b") + "/.wh..wh..opq";
    taken(named(&opaque), &[&format!("{} o", longest("b"))]);
    let dir = longest("b") + "//./";
    let parts = vec![pax(&[("path", dir.as_bytes())]), raw(b'5', b"x", b"")];
    taken(parts, &[&format!("{} d", longest("b"))]);
    let leads_to = |text: &[u8]| vec![pax(&[("linkpath", text)]), link(b'2', b"x", b"y")];
    let far = "b".repeat(4095);
    taken(leads_to(far.as_bytes()), &[&format!("x l {far}")]);
    refused(leads_to(&[b'b'; 4096]), "target is too long");
    refused(leads_to(b"a\0b"), "target is invalid");
    refused(vec![raw(b'0', b"a/", b"")], "name is that of a directory");
    refused(vec![raw(b'0', b"./", b"")], "name is that of a directory");
    refused(vec![link(b'2', b"a", b"")], "target is empty");
    for target in [&b""[..], b"/", b"../x", b"a/.wh.b"] {
        refused(vec![link(b'1', b"a", target)], "hard link to an invalid");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let file = || raw(b'0', b"a", b"");
    refused(
        vec![file().set(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")],
        "7.9 EiB long, and a file in a layer can have at most 1 TiB",
    );
    refused(
        vec![file().set(124, b"\x80\0\0\x01\0\0\0\0\0\0\0\0")],
        "not a valid number",
    );
    refused(
        vec![file().set(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")],
        "not a valid number",
    );
    refused(vec![file().set(108, b"12z4567\0")], "not a valid number");
    refused(
        vec![file().set(108, b"\x80\0\0\0\xff\xff\xff\xff")],
        "not a user",
    );
    refused(
        vec![pax(&[("size", b"99999999999999999999")]), file()],
        "size",
    );
    refused(vec![pax(&[("uid", b"-1")]), file()], "uid");
    let device = raw(b'3', b"a", b"").set(329, b"0010000\0");
    refused(vec![device], "device numbers");
    refused(vec![raw(b'3', b"a", b"")], "mark removed files");
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
        "lies between",
    );
    refused(
        vec![raw(b'4', b"x", b"").set(257, &[0; 8])],
        "without device numbers",
    );
    refused(
        vec![long(), pax(&[("path", b"a")]), raw(b'0', b"x", b"")],
        "twice",
    );
    refused(
        vec![raw(b'L', b"l", b"a\0b"), raw(b'0', b"x", b"")],
        "continues",
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
        "interpret differently",
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
    refused(vec![raw(b'0', b"a/.wh.", b"")], "invalid name");
    refused(vec![raw(b'0', b"a/.wh...", b"")], "invalid name");
    refused(vec![raw(b'0', b"a/.wh..", b"")], "invalid name");
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
        "both a directory and",
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
        "made opaque but",
    );
    refused(
        vec![raw(b'0', b".wh.a", b""), raw(b'0', b"a/.wh..wh..opq", b"")],
        "both removed and made opaque",
    );
}

#[test]
fn only_directories_have_something_below_them() {
    refused(
        vec![raw(b'0', b"a", b""), raw(b'0', b"a/b", b"")],
        "not a directory",
    );
    refused(
        vec![raw(b'0', b"a/b", b""), link(b'2', b"a", b"/etc")],
        "not a directory",
    );
    refused(
        vec![raw(b'0', b".wh.a", b""), raw(b'0', b"a/b/c", b"")],
        "not a directory",
    );
    // Sorted by bytes alone, the dash would stand between the two.
    refused(
        vec![
            raw(b'0', b"a", b""),
            raw(b'0', b"a-b", b""),
            raw(b'0', b"a/b", b""),
        ],
        "not a directory",
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
        "a later entry",
    );
    refused(vec![link(b'1', b"a", b"a")], "a later entry");
    refused(
        vec![
            raw(b'0', b"b", b"1"),
            link(b'1', b"a", b"b"),
            raw(b'0', b"b", b"2"),
        ],
        "a later entry",
    );
    refused(
        vec![raw(b'5', b"d", b""), link(b'1', b"a", b"d")],
        "to a directory",
    );
    refused(
        vec![raw(b'0', b".wh.b", b""), link(b'1', b"a", b"b")],
        "removes",
    );
    // Beside the file the whiteout has no effect, in either order.
    for removal in [0, 1] {
        let mut parts = vec![raw(b'0', b"b", b"1")];
        parts.insert(removal, raw(b'0', b".wh.b", b""));
        parts.push(link(b'1', b"a", b"b"));
        taken(parts, &["a h b", "b f1"]);
    }
    refused(
        vec![
            raw(b'5', b"d", b""),
            raw(b'0', b".wh.d", b""),
            link(b'1', b"a", b"d"),
        ],
        "to a directory",
    );
}

#[test]
fn a_tar_ends_between_entries_and_nothing_follows() {
    let whole = archive(vec![raw(b'0', b"a", &[1; 600])]);
    let length = whole.len();
    for end in [length, length - 512, length - 1024] {
        assert_eq!(
            index_of([&whole[..end]]).unwrap().entries().len(),
            1,
            "{end}"
        );
    }
    for end in [length - 1025, length - 1, length - 511, 100, 513, 1200] {
        assert!(
            index_of([&whole[..end]])
                .unwrap_err()
                .to_string()
                .contains("ends inside"),
            "{end}"
        );
    }
    assert!(
        index_of([&b""[..]])
            .unwrap_err()
            .to_string()
            .contains("empty")
    );
    assert_eq!(index_of([&[0; 1024][..]]).unwrap().entries(), []);
    assert_eq!(index_of([&[0; 10240][..]]).unwrap().entries(), []);
    let more = [&whole[..], &whole].concat();
    assert!(
        index_of([&more[..]])
            .unwrap_err()
            .to_string()
            .contains("data after the end")
    );
    let lone = [&[0; 512][..], &whole].concat();
    assert!(
        index_of([&lone[..]])
            .unwrap_err()
            .to_string()
            .contains("data after the end")
    );
    let after_extension = [pax(&[("path", b"a")]).bytes(), vec![0; 1024]].concat();
    assert!(
        index_of([&after_extension[..]])
            .unwrap_err()
            .to_string()
            .contains("extended header")
    );
    let mut damaged = whole;
    damaged[0] ^= 1;
    assert!(
        index_of([&damaged[..]])
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
}

#[test]
fn a_directory_by_name_is_one_by_both_names() {
    let named = || pax(&[("path", b"y")]);
    refused(vec![named(), raw(0, b"x/", b"")], "two names disagree");
    taken(vec![named(), raw(0, b"x", b"")], &["y f0"]);
    taken(vec![raw(0, b"x/", b"")], &["x d"]);
}

/// Laxer readers take these.
#[test]
fn a_file_is_not_a_directory_and_a_length_has_no_sign() {
    refused(vec![raw(b'0', b"x/", b"")], "name is that of a directory");
    for record in [
        &b"+8 uid=1\n"[..],
        b"-8 uid=1\n",
        b" 8 uid=1\n",
        b"0x8 uid=1\n",
    ] {
        refused(
            vec![raw(b'x', b"pax", record), raw(b'0', b"x", b"")],
            "malformed",
        );
    }
}
