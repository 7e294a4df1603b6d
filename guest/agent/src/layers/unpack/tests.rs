//! What unpacking makes of layers, honest and not.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::archive::Writer;
use crate::attributes::OPAQUE_XATTR;
use crate::testing::{Tree, unpack};

fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Time {
        secs: 1_000,
        nanos: 0,
    };
    let path = path.as_bytes().to_vec();
    Entry {
        path,
        kind,
        mode: 0o750,
        uid: 0,
        gid: 0,
        mtime,
        xattrs: Vec::new(),
    }
}

fn file(path: &str) -> Entry {
    entry(path, Kind::File(4))
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        writer.entry(entry).unwrap();
        if matches!(entry.kind, Kind::File(_)) {
            writer.data(&mut &b"data"[..], 4).unwrap();
        }
    }
    writer.finish().unwrap()
}

/// The paths and types that unpacking makes.
fn check(entries: &[Entry], want: Result<&[&str], &str>) -> Option<(Tree, Implicit)> {
    match (unpack(&tar(entries)), want) {
        (Ok((tree, implicit)), Ok(want)) => {
            let short = |line: String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let list: Vec<String> = tree.list().into_iter().map(short).collect();
            assert_eq!(list, want);
            Some((tree, implicit))
        }
        (Err(err), Err(want)) => {
            let text = format!("{err:#}");
            assert!(text.contains(want), "{text}");
            None
        }
        (Ok(_), Err(want)) => panic!("it does not fail with {want}"),
        (Err(err), Ok(_)) => panic!("{err:#}"),
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_paths_that_lead_out_are_refused() {
    check(&[file("../x")], Err("leads out"));
    check(&[file("a/../../x")], Err("leads out"));
    check(&[file("/abs//./x")], Ok(&["abs 40755", "abs/x 100750"]));
    let link = entry("l", Kind::Symlink(b"/etc".to_vec()));
    check(&[link.clone(), file("l/x")], Err("no directory"));
    check(
        &[link, entry("h", Kind::Hardlink(b"l/passwd".to_vec()))],
        Err("hard link"),
    );
    check(
        &[entry("h", Kind::Hardlink(b"../../etc/passwd".to_vec()))],
        Err("leads out"),
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_what_no_entry_describes_is_remembered() {
    let entries = [file("a/b/c"), entry("a", Kind::Directory), file("d/e")];
    let list = [
        "a 40750",
        "a/b 40755",
        "a/b/c 100750",
        "d 40755",
        "d/e 100750",
    ];
    let (tree, implicit) = check(&entries, Ok(&list)).unwrap();
    let want: [&[u8]; 3] = [b"", b"a/b", b"d"];
    assert!(implicit.0.iter().map(Vec::as_slice).eq(want));
    let time = |path: &str| {
        std::os::unix::fs::MetadataExt::mtime(&std::fs::metadata(tree.path(path)).unwrap())
    };
    assert_eq!(
        [time("a"), time("a/b"), time("a/b/c"), time(".")],
        [1000, 0, 1000, 0]
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_the_root_can_be_described() {
    let (tree, implicit) = check(&[entry("./", Kind::Directory)], Ok(&[])).unwrap();
    assert!(implicit.0.is_empty());
    let meta = std::fs::metadata(tree.path(".")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
}

#[test]
#[ignore = "needs root"]
fn as_root_the_last_word_about_a_path_counts() {
    let dir = |path| entry(path, Kind::Directory);
    check(&[file("a"), file("a")], Ok(&["a 100750"]));
    check(
        &[file("a"), dir("a"), file("a/x")],
        Ok(&["a 40750", "a/x 100750"]),
    );
    check(&[dir("a"), file("a/x"), file("a")], Ok(&["a 100750"]));
    check(&[file("a"), entry("a", Kind::Fifo)], Ok(&["a 10750"]));
    let again = entry("b", Kind::Hardlink(b"a".to_vec()));
    check(
        &[file("a"), again.clone(), again],
        Ok(&["a 100750", "b 100750"]),
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_whiteouts_become_those_of_overlayfs() {
    let (tree, _) = check(
        &[
            entry("d", Kind::Directory),
            file("d/.wh..wh..opq"),
            file(".wh.gone"),
            file(".wh..wh.plnk"),
            entry(".wh..wh.aufs", Kind::Directory),
            file(".wh..wh.aufs/.wh.x"),
            file("kept"),
            file(".wh.kept"),
            file(".wh.both"),
            entry("both", Kind::Directory),
        ],
        Ok(&["both 40750", "d 40750", "gone 20000", "kept 100750"]),
    )
    .unwrap();
    for path in ["d", "both"] {
        assert_eq!(
            xattr::get(tree.path(path), OPAQUE_XATTR).unwrap(),
            Some(b"y".to_vec())
        );
    }
    check(&[file(".wh..")], Err("no name"));
    check(&[file(".wh.")], Err("no name"));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_layer_cannot_speak_for_overlayfs() {
    let mut redirect = entry("d", Kind::Directory);
    redirect.xattrs = vec![(b"trusted.overlay.redirect".to_vec(), b"/etc".to_vec())];
    check(&[redirect], Err("is reserved for the builder"));
    check(&[entry("w", Kind::Char(0, 0))], Err("EINVAL"));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_hard_link_to_another_layer_is_named() {
    check(
        &[entry("h", Kind::Hardlink(b"no".to_vec()))],
        Err("hard link target no is in another"),
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_a_tar_that_is_cut_inside_an_entry_is_an_error() {
    let whole = tar(&[file("a"), entry("d", Kind::Directory)]);
    for cut in (97..whole.len() - 1024).step_by(97) {
        assert!(unpack(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

/// What unpacking makes of the entries, with files of `size` bytes: a listing without the content of
/// files, or the error.
fn outcome(entries: &[Entry], size: u64) -> Result<Vec<String>, String> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        let mut entry = entry.clone();
        if let Kind::File(length) = &mut entry.kind {
            *length = size;
        }
        writer.entry(&entry).unwrap();
        if matches!(entry.kind, Kind::File(_)) {
            writer.data(&mut std::io::repeat(1), size).unwrap();
        }
    }
    let without_content = |line: String| {
        let fields = line.split(' ').enumerate();
        let kept = fields.filter_map(|(at, field)| (at != 5).then_some(field));
        kept.collect::<Vec<_>>().join(" ")
    };
    let (tree, _) = unpack(&writer.finish().unwrap()).map_err(|err| format!("{err:#}"))?;
    Ok(tree.list().into_iter().map(without_content).collect())
}

fn any_path() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b"])
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let hidden = prop::sample::select(&[".wh.a", "a/.wh.a", "a/.wh.b", "b/.wh..wh..opq"]);
    prop_oneof![
        8 => any_path().prop_map(file),
        3 => any_path().prop_map(|path| entry(path, Kind::Directory)),
        1 => any_path().prop_map(|path| Entry {
            mode: 0o2775,
            gid: 50,
            ..entry(path, Kind::Directory)
        }),
        1 => any_path().prop_map(|path| entry(path, Kind::Symlink(b"x".to_vec()))),
        2 => (any_path(), any_path())
            .prop_map(|(path, link)| entry(path, Kind::Hardlink(link.as_bytes().to_vec()))),
        1 => hidden.prop_map(file),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Files that are made side by side obey the order of the tar like those that are made one
    /// after the other, as large ones are.
    #[test]
    #[ignore = "needs root"]
    fn as_root_small_files_keep_the_order_of_the_tar(mut entries in prop::collection::vec(any_entry(), 1..40)) {
        for (at, entry) in entries.iter_mut().enumerate() {
            entry.mtime.secs = i64::try_from(at).unwrap();
        }
        prop_assert_eq!(outcome(&entries, 1), outcome(&entries, LARGEST + 1));
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_what_is_made_in_a_directory_with_a_group_bit_has_its_own_group() {
    let shared = Entry {
        mode: 0o2775,
        gid: 50,
        ..entry("d", Kind::Directory)
    };
    let large = entry("d/large", Kind::File(4));
    let entries = [shared, file("d/small"), large, file("d/implicit/x")];
    let (tree, _) = check(
        &entries,
        Ok(&[
            "d 42775",
            "d/implicit 40755",
            "d/implicit/x 100750",
            "d/large 100750",
            "d/small 100750",
        ]),
    )
    .unwrap();
    for path in ["d/small", "d/large", "d/implicit", "d/implicit/x"] {
        let meta = std::fs::metadata(tree.path(path)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 0, "{path}");
    }
}

/// Names that are taken wait with their data, so they must not pile up.
#[test]
#[ignore = "needs root"]
fn as_root_files_that_come_twice_do_not_pile_up() {
    let once: Vec<Entry> = (0..500).map(|n| file(&format!("d/{n}"))).collect();
    let twice = [once.clone(), once].concat();
    let (tree, _) = unpack(&tar(&twice)).unwrap();
    assert_eq!(tree.list().len(), 501);
}

#[test]
fn many_small_files_are_made_whole() {
    let mut writer = Writer::new(Vec::new());
    let content = |number: usize| format!("{number} ").repeat(number % 3000);
    let path = |number: usize| format!("d{}/{}/f{number}", number % 7, number % 40);
    for number in 0..3000 {
        let data = content(number);
        let size = data.len() as u64;
        let mut file = entry(&path(number), Kind::File(size));
        (file.uid, file.gid) = (nix::unistd::geteuid().into(), nix::unistd::getegid().into());
        writer.entry(&file).unwrap();
        writer.data(&mut data.as_bytes(), size).unwrap();
    }
    let (tree, _) = unpack(&writer.finish().unwrap()).unwrap();
    for number in 0..3000 {
        let made = std::fs::read_to_string(tree.path(&path(number))).unwrap();
        assert!(made == content(number), "{number}");
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_a_small_file_that_cannot_be_made_is_named() {
    let mut bad = file("d/bad");
    bad.xattrs = vec![(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
    let mut entries = vec![bad];
    entries.extend((0..200).map(|n| file(&format!("d/{n}"))));
    check(&entries, Err("layer entry d/bad: extended attribute"));
}
