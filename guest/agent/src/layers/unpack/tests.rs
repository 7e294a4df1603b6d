//! What unpacking makes of layers, honest and not.

use std::os::unix::fs::PermissionsExt as _;

use layer::{Attributes, Digest, Style, Writer};
use proptest::prelude::*;

use super::*;
use crate::attributes::OPAQUE_XATTR;
use crate::testing::{Tree, unpack};

fn entry(path: &str, kind: EntryKind) -> Entry {
    let attributes = Attributes {
        mode: 0o750,
        mtime: Mtime {
            secs: 1_000,
            nanos: 0,
        },
        ..Attributes::default()
    };
    Entry::new(path.as_bytes().to_vec(), kind, attributes)
}

const fn of_size(size: u64) -> EntryKind {
    EntryKind::File {
        size,
        digest: Digest::UNKNOWN,
        offset: 0,
    }
}

fn file(path: &str) -> Entry {
    entry(path, of_size(4))
}

/// An empty file, as marks of removal are.
fn mark(path: &str) -> Entry {
    entry(path, of_size(0))
}

fn link(path: &str, target: &str) -> Entry {
    let target = target.as_bytes().to_vec();
    entry(path, EntryKind::Hardlink { target })
}

fn symlink(path: &str, target: &str) -> Entry {
    let target = target.as_bytes().to_vec();
    entry(path, EntryKind::Symlink { target })
}

/// Writes an entry and its data, so many bytes of `data` as its size says.
fn write(writer: &mut Writer<Vec<u8>>, entry: &Entry, data: &[u8]) {
    let attributes = entry.attributes();
    writer
        .header(&entry.path, &attributes, &entry.kind)
        .unwrap();
    if let EntryKind::File { size, .. } = entry.kind {
        let data = data.get(..usize::try_from(size).unwrap()).unwrap();
        writer.write_all(data).unwrap();
        writer.pad(size).unwrap();
    }
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Style::Diff);
    for entry in entries {
        write(&mut writer, entry, b"data");
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
    check(&[file("../x")], Err("contains `..`"));
    check(&[file("a/../../x")], Err("contains `..`"));
    check(&[file("/abs//./x")], Ok(&["abs 40755", "abs/x 100750"]));
    let to_etc = symlink("l", "/etc");
    check(&[to_etc.clone(), file("l/x")], Err("not a directory"));
    check(&[to_etc, link("h", "l/passwd")], Err("hard link"));
    check(
        &[link("h", "../../etc/passwd")],
        Err("hard link to an invalid name"),
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_what_no_entry_describes_is_remembered() {
    let entries = [file("a/b/c"), entry("a", EntryKind::Directory), file("d/e")];
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
    let (tree, implicit) = check(&[entry("./", EntryKind::Directory)], Ok(&[])).unwrap();
    assert!(implicit.0.is_empty());
    let meta = std::fs::metadata(tree.path(".")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
}

#[test]
#[ignore = "needs root"]
fn as_root_the_last_entry_of_a_path_counts() {
    let dir = |path| entry(path, EntryKind::Directory);
    check(&[file("a"), file("a")], Ok(&["a 100750"]));
    check(
        &[dir("a"), file("a/x"), dir("a")],
        Ok(&["a 40750", "a/x 100750"]),
    );
    let both = "both a directory and";
    check(&[file("a"), dir("a"), file("a/x")], Err(both));
    check(&[dir("a"), file("a/x"), file("a")], Err(both));
    check(&[file("a/x"), symlink("a", "b")], Err(both));
    check(&[file("a"), entry("a", EntryKind::Fifo)], Ok(&["a 10750"]));
    let again = link("b", "a");
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
            entry("d", EntryKind::Directory),
            mark("d/.wh..wh..opq"),
            mark(".wh.gone"),
            file(".wh..wh.plnk"),
            entry(".wh..wh.aufs", EntryKind::Directory),
            file(".wh..wh.aufs/.wh.x"),
            file("kept"),
            mark(".wh.kept"),
            mark(".wh.early"),
            mark("early/below"),
            entry("early", EntryKind::Directory),
            mark(".wh.both"),
            entry("both", EntryKind::Directory),
        ],
        Ok(&[
            "both 40750",
            "d 40750",
            "early 40750",
            "early/below 100750",
            "gone 20000",
            "kept 100750",
        ]),
    )
    .unwrap();
    for path in ["d", "both", "early"] {
        assert_eq!(
            xattr::get(tree.path(path), OPAQUE_XATTR).unwrap(),
            Some(b"y".to_vec())
        );
    }
    check(&[mark(".wh..")], Err("removes an invalid name"));
    check(&[mark(".wh.")], Err("removes an invalid name"));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_layer_cannot_speak_for_overlayfs() {
    let mut redirect = entry("d", EntryKind::Directory);
    redirect.xattrs = vec![(b"trusted.overlay.redirect".to_vec(), b"/etc".to_vec())];
    check(&[redirect], Err("control the overlay file system"));
    let (major, minor) = (0, 0);
    let device = entry("w", EntryKind::CharDevice { major, minor });
    check(&[device], Err("by which overlay file systems mark"));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_hard_link_to_another_layer_is_named() {
    check(&[link("h", "no")], Err("hard link to no in another layer"));
}

#[test]
#[ignore = "needs root"]
fn as_root_a_tar_that_is_cut_inside_an_entry_is_an_error() {
    let whole = tar(&[file("a"), entry("d", EntryKind::Directory)]);
    for cut in (97..whole.len() - 1024).step_by(97) {
        assert!(unpack(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

/// What unpacking makes of the entries, with files of `size` bytes: a listing without the content of
/// files, or that it fails.
fn outcome(entries: &[Entry], size: u64) -> Result<Vec<String>, ()> {
    let mut writer = Writer::new(Vec::new(), Style::Diff);
    let data = vec![1; usize::try_from(size).unwrap()];
    for entry in entries {
        let mut entry = entry.clone();
        if matches!(entry.kind, EntryKind::File { .. }) {
            entry.kind = of_size(size);
        }
        write(&mut writer, &entry, &data);
    }
    let without_content = |line: String| {
        let fields = line.split(' ').enumerate();
        let kept = fields.filter_map(|(at, field)| (at != 5).then_some(field));
        kept.collect::<Vec<_>>().join(" ")
    };
    // Which of several mistakes is met first depends on the threads.
    let (tree, _) = unpack(&writer.finish().unwrap()).map_err(|_| ())?;
    Ok(tree.list().into_iter().map(without_content).collect())
}

fn any_path() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b"])
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        8 => any_path().prop_map(file),
        3 => any_path().prop_map(|path| entry(path, EntryKind::Directory)),
        1 => any_path().prop_map(|path| Entry {
            mode: 0o2775,
            gid: 50,
            ..entry(path, EntryKind::Directory)
        }),
        1 => any_path().prop_map(|path| symlink(path, "x")),
        2 => (any_path(), any_path()).prop_map(|(path, target)| link(path, target)),
        1 => any_path().prop_map(|path| entry(path, EntryKind::Whiteout)),
        1 => any_path().prop_map(|path| entry(path, EntryKind::Opaque)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Files that are made in parallel obey the order of the tar like those that are made one after
    /// the other, as large ones are.
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
        ..entry("d", EntryKind::Directory)
    };
    let large = file("d/large");
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
    let mut writer = Writer::new(Vec::new(), Style::Diff);
    let content = |number: usize| format!("{number} ").repeat(number % 3000);
    let path = |number: usize| format!("d{}/{}/f{number}", number % 7, number % 40);
    for number in 0..3000 {
        let data = content(number);
        let mut file = entry(&path(number), of_size(data.len() as u64));
        (file.uid, file.gid) = (nix::unistd::geteuid().into(), nix::unistd::getegid().into());
        write(&mut writer, &file, data.as_bytes());
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
    bad.xattrs = vec![(b"nonsense.a".to_vec(), b"y".to_vec())];
    let mut entries = vec![bad];
    entries.extend((0..200).map(|n| file(&format!("d/{n}"))));
    check(
        &entries,
        Err("layer entry d/bad: cannot set extended attribute"),
    );
}

/// The host hashes; here contents are compared themselves.
#[derive(Default)]
struct NoHash;

impl layer::Sha256 for NoHash {
    fn update(&mut self, _: &[u8]) {}
    fn finish(self) -> Digest {
        Digest::UNKNOWN
    }
}

/// What the host makes of a tar.
fn index(tar: &[u8]) -> Option<layer::Index> {
    let mut indexer = layer::Indexer::<NoHash>::new();
    indexer.push(tar).ok()?;
    indexer.finish().ok()
}

/// A line for each path that the index has, in the form of [`Tree::list`], and those of directories
/// without an entry.
fn expected(index: &layer::Index, tar: &[u8], implicit: &Implicit) -> Vec<String> {
    let made = Tree::new();
    let dirs = implicit.0.iter().filter(|path| !path.is_empty());
    for path in dirs.map(|path| str::from_utf8(path).unwrap()) {
        made.dir(path, 0o755);
    }
    for entry in index.entries() {
        let path = str::from_utf8(&entry.path).unwrap();
        match &entry.kind {
            EntryKind::Directory => made.dir(path, 0o755),
            EntryKind::Opaque => made.dir(path, 0o755).opaque(path),
            EntryKind::File { size, offset, .. } => {
                let from = usize::try_from(*offset).unwrap();
                let data = &tar[from..from + usize::try_from(*size).unwrap()];
                made.file(path, entry.mode, data)
            }
            EntryKind::Symlink { target } => made.symlink(path, str::from_utf8(target).unwrap()),
            EntryKind::Whiteout => made.whiteout(path),
            EntryKind::Hardlink { .. } => &made, // when its file is there
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                panic!("{path} is of no type that this test makes")
            }
        };
    }
    for entry in index.entries() {
        if let EntryKind::Hardlink { target } = &entry.kind {
            let path = str::from_utf8(&entry.path).unwrap();
            made.hardlink(str::from_utf8(target).unwrap(), path);
        }
    }
    describe_all(&made, index, implicit);
    made.list()
}

fn is_symlink(index: &layer::Index, entry: &Entry) -> bool {
    let file = if let EntryKind::Hardlink { target } = &entry.kind {
        index.get(target)
    } else {
        Some(entry)
    };
    file.is_some_and(|file| matches!(file.kind, EntryKind::Symlink { .. }))
}

/// Sets owners, modes and times, those of directories last.
fn describe_all(made: &Tree, index: &layer::Index, implicit: &Implicit) {
    for entry in index.entries().iter().rev() {
        let path = str::from_utf8(&entry.path).unwrap();
        if matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque) {
            continue;
        }
        if !is_symlink(index, entry) {
            let mode = std::fs::Permissions::from_mode(entry.mode);
            std::fs::set_permissions(made.path(path), mode).unwrap();
            made.chown(path, entry.uid, entry.gid);
        }
        made.time(path, entry.mtime.secs, entry.mtime.nanos.into());
    }
    for path in &implicit.0 {
        made.time(str::from_utf8(path).unwrap(), 0, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The host and the guest see the same tree in the same bytes.
    #[test]
    #[ignore = "needs root"]
    fn as_root_what_the_host_accepts_is_unpacked_as_its_index_says(
        mut entries in prop::collection::vec(any_entry(), 1..12),
    ) {
        for (at, entry) in entries.iter_mut().enumerate() {
            entry.mtime.secs = i64::try_from(at).unwrap();
        }
        let tar = tar(&entries);
        let Some(index) = index(&tar) else { return Ok(()) };
        // Also of links that are replaced later: the guest unpacks them first.
        let is_elsewhere = entries.iter().enumerate().any(|(at, entry)| {
            let is_before = |path: &[u8]| entries[..at].iter().any(|other| other.path == path);
            matches!(&entry.kind, EntryKind::Hardlink { target } if !is_before(target))
        });
        match unpack(&tar) {
            Ok((tree, implicit)) => {
                prop_assert_eq!(tree.list(), expected(&index, &tar, &implicit));
            }
            // A layer on the guest disk cannot have a file of another one.
            Err(err) => prop_assert!(is_elsewhere, "{err:#}"),
        }
    }
}
