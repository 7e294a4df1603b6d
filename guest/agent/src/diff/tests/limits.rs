//! What a step can make at the limits is a layer that the host takes in, or the step's own failure.
//! Nothing is made by its whole path here: some are longer than the kernel takes.

use std::ffi::CString;

use layer::limits::MAX_PATH;
use nix::fcntl::AT_FDCWD;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{UtimensatFlags, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{ftruncate, linkat, symlinkat};
use proptest::prelude::*;
use proptest::sample::select;
use wire::FailureKind;

use super::*;

/// Contents are not compared by their digests.
#[derive(Default)]
struct NoHash;

impl layer::Sha256 for NoHash {
    fn update(&mut self, _: &[u8]) {}
    fn finish(self) -> Digest {
        Digest::UNKNOWN
    }
}

/// What the host makes of a tar.
fn taken_in(tar: &[u8]) -> Result<layer::Index, layer::LayerError> {
    let mut indexer = layer::Indexer::<NoHash>::new();
    indexer.push(tar)?;
    indexer.finish()
}

fn diff(upper: &Tree, lower: &Tree, most: u64) -> Result<Vec<u8>> {
    // One descriptor for each level, as in the VM.
    let (_, most_files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most_files, most_files)?;
    let root = Attributes::read(upper.open().as_fd())?;
    let lower = Lower::new(vec![lower.open()]);
    super::super::export(upper.open(), &lower, &root, most, Vec::new())
}

/// The diff is taken in, and makes the same tree again.
#[track_caller]
fn accepted(upper: &Tree, lower: &Tree) -> layer::Index {
    let tar = diff(upper, lower, u64::MAX).unwrap();
    let index = taken_in(&tar).unwrap();
    let (again, _) = unpack(&tar).unwrap();
    assert!(diff(&again, lower, u64::MAX).unwrap() == tar);
    index
}

#[track_caller]
fn refused(upper: &Tree, most: u64, kind: FailureKind, said: &[&str]) {
    let failure = fault::failure(&diff(upper, &Tree::new(), most).unwrap_err());
    assert_eq!(failure.kind, kind, "{}", failure.text);
    for said in said {
        assert!(failure.text.contains(said), "{}", failure.text);
    }
    assert!(
        failure.text.starts_with("the step made "),
        "{}",
        failure.text
    );
}

/// Makes and opens a directory in another one; `None` if something else is there.
fn dir_in(at: &OwnedFd, name: &[u8]) -> Option<OwnedFd> {
    let name = CString::new(name).unwrap();
    mkdirat(at, name.as_c_str(), Mode::S_IRWXU).ok();
    openat(at, name.as_c_str(), tree::LIST, Mode::empty()).ok()
}

/// Makes directories below the root of a tree until their path has this length, and opens the last.
fn deep(tree: &Tree, element: usize, length: usize) -> OwnedFd {
    let (mut at, mut left) = (tree.open(), length + 1);
    while left > 0 {
        let name = if left > 2 * (element + 1) {
            element
        } else if left > element + 1 {
            left / 2 - 1
        } else {
            left - 1
        };
        at = dir_in(&at, &vec![b'd'; name]).unwrap();
        left -= name + 1;
    }
    at
}

#[test]
#[ignore = "needs root"]
fn as_root_a_directory_with_the_longest_path_is_kept() {
    for element in [1, 254] {
        let (upper, lower) = (Tree::new(), Tree::new());
        deep(&lower, element, MAX_PATH);
        let last = deep(&upper, element, MAX_PATH);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&last));
        xattr::set_deref(path, attributes::OPAQUE_XATTR, b"y").unwrap();
        let index = accepted(&upper, &lower);
        let [.., dir, mark] = index.entries() else {
            panic!("{index:?}")
        };
        assert_eq!((dir.path.len(), &mark.kind), (MAX_PATH, &EntryKind::Opaque));
        dir_in(&last, b"x").unwrap();
        let said = ["4097 bytes", "at most 4095", "use shorter names"];
        refused(&upper, u64::MAX, FailureKind::Unfit, &said);
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_the_longest_name_can_be_removed() {
    let (upper, lower) = (Tree::new(), Tree::new());
    let name = "n".repeat(255);
    lower.file(&name, 0o644, b"");
    upper.whiteout(&name);
    let index = accepted(&upper, &lower);
    assert_eq!(
        index.get(name.as_bytes()).unwrap().kind,
        EntryKind::Whiteout
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_very_many_names_of_one_file_are_kept() {
    let upper = Tree::new();
    let dir = deep(&upper, 250, 3000);
    mknodat(&dir, c"first", SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
    let mut made = 1;
    for number in 0..20_000 {
        let name = CString::new(format!("{number}")).unwrap();
        if linkat(&dir, c"first", &dir, name.as_c_str(), AtFlags::empty()).is_err() {
            break; // as many as this file system allows
        }
        made += 1;
    }
    let index = taken_in(&diff(&upper, &Tree::new(), u64::MAX).unwrap()).unwrap();
    let leaves = index
        .entries()
        .iter()
        .filter(|entry| entry.kind != EntryKind::Directory);
    assert_eq!(leaves.count(), made);
}

#[test]
#[ignore = "needs root"]
fn as_root_names_that_a_layer_cannot_hold_are_the_fault_of_the_step() {
    let upper = Tree::new();
    upper.dir("etc", 0o755).file("etc/.wh.passwd", 0o644, b"");
    let said = ["/etc/.wh.passwd", "reserved", "rename it"];
    refused(&upper, u64::MAX, FailureKind::Unfit, &said);
    let upper = Tree::new();
    upper.dir(".wh..wh..opq", 0o755);
    refused(&upper, u64::MAX, FailureKind::Unfit, &["/.wh..wh..opq"]);
    let upper = Tree::new();
    upper.file("f", 0o644, b"").xattr("f", "user.a=b", b"x");
    let said = ["/f:", "user.a=b", "setfattr --remove"];
    refused(&upper, u64::MAX, FailureKind::Unfit, &said);
}

#[test]
#[ignore = "needs root"]
fn as_root_a_sparse_file_counts_with_its_length_before_its_data_is_sent() {
    let upper = Tree::new();
    let file = upper
        .file("small", 0o644, b"x")
        .file("sparse", 0o644, b"")
        .path("sparse");
    let file = File::options().write(true).open(file).unwrap();
    let said = ["/sparse:", "900 GiB", "at most 8 GiB", "sparse"];
    ftruncate(&file, 900 << 30).unwrap();
    refused(&upper, 8 << 30, FailureKind::TooLarge, &said);
    // Not every file system has such files.
    if ftruncate(&file, 8 << 40).is_ok() {
        let said = ["/sparse:", "8 TiB", "at most 64 GiB"];
        refused(&upper, 64 << 30, FailureKind::TooLarge, &said);
        let said = ["8 TiB", "at most 1 TiB"];
        refused(&upper, u64::MAX, FailureKind::TooLarge, &said);
    }
}

/// Something that a step can make.
#[derive(Debug, Clone)]
enum Thing {
    Dir,
    File(i64),
    Fifo,
    Socket,
    Device(u64, u64),
    Whiteout,
    Symlink(usize),
    Link,
}

#[derive(Debug, Clone)]
struct Made {
    dirs: Vec<Vec<u8>>,
    name: Vec<u8>,
    thing: Thing,
    xattr: Option<&'static str>,
    secs: i64,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let odd: [&[u8]; 9] = [
        b"a",
        b"b",
        b"new\nline",
        b"\xff\xfe",
        b".whole",
        b"a=b",
        b" 9 path=x\n",
        b"..a",
        b"\\",
    ];
    prop_oneof![
        12 => select(odd.to_vec()).prop_map(<[u8]>::to_vec),
        4 => select(vec![251, 252, 254, 255]).prop_map(|length| vec![b'n'; length]),
        1 => select(vec![&b".wh.a"[..], b".wh..wh..opq", b".wh."]).prop_map(<[u8]>::to_vec),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let thing = prop_oneof![
        4 => Just(Thing::Dir),
        2 => select(vec![0, 3, 1 << 20]).prop_map(Thing::File),
        1 => Just(Thing::File(8 << 40)),
        1 => Just(Thing::Fifo),
        1 => Just(Thing::Socket),
        1 => select(vec![(1, 3), (4095, 0xf_ffff)]).prop_map(|(a, b)| Thing::Device(a, b)),
        4 => Just(Thing::Whiteout),
        2 => select(vec![1, 100, 101, 4000]).prop_map(Thing::Symlink),
        3 => Just(Thing::Link),
    ];
    // The last are so deep that the longest names end at the longest path or beyond it.
    let dirs = prop_oneof![
        4 => proptest::collection::vec(name(), 0..3),
        1 => select(vec![3840_usize, 3838]).prop_map(|length| {
            let mut dirs = vec![vec![b'd'; 255]; 14];
            dirs.push(vec![b'e'; length - 14 * 256 - 1]);
            dirs
        }),
    ];
    let xattr = select(vec![None, None, None, Some("user.\nb"), Some("user.a=b")]);
    let secs = select(vec![-(1 << 31), -1, 0, 1 << 33, i64::MAX]);
    (dirs, name(), thing, xattr, secs).prop_map(|(dirs, name, thing, xattr, secs)| Made {
        dirs,
        name,
        thing,
        xattr,
        secs,
    })
}

/// Makes one thing, unless its name is taken or the file system refuses. `first` is a file that may
/// get more names.
fn make(tree: &Tree, made: &Made, first: &mut Option<(OwnedFd, CString)>) -> Option<()> {
    let mut at = tree.open();
    for dir in &made.dirs {
        at = dir_in(&at, dir)?;
    }
    let name = CString::new(made.name.clone()).ok()?;
    let node = |kind, device| mknodat(&at, name.as_c_str(), kind, Mode::S_IRWXU, device).ok();
    match made.thing {
        Thing::Dir => mkdirat(&at, name.as_c_str(), Mode::S_IRWXU).ok()?,
        Thing::File(length) => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
            let file = openat(&at, name.as_c_str(), flags, Mode::S_IRWXU).ok()?;
            ftruncate(&file, length).ok()?;
        }
        Thing::Fifo => node(SFlag::S_IFIFO, 0)?,
        Thing::Socket => node(SFlag::S_IFSOCK, 0)?,
        Thing::Device(major, minor) => node(SFlag::S_IFCHR, makedev(major, minor))?,
        Thing::Whiteout => return node(SFlag::S_IFCHR, 0),
        Thing::Symlink(length) => {
            symlinkat(vec![b't'; length].as_slice(), &at, name.as_c_str()).ok()?;
        }
        Thing::Link => {
            let (dir, old) = first.as_ref()?;
            linkat(dir, old.as_c_str(), &at, name.as_c_str(), AtFlags::empty()).ok()?;
        }
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&at));
    let path = std::path::Path::new(&path).join(std::ffi::OsStr::from_bytes(&made.name));
    if let Some(xattr) = made.xattr {
        xattr::set(&path, xattr, b"x").ok();
    }
    let time = TimeSpec::new(made.secs, 5);
    utimensat(
        AT_FDCWD,
        &path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .ok();
    if !matches!(made.thing, Thing::Dir | Thing::Link) {
        *first = Some((at, name));
    }
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The law of the limits: guest and host agree about every tree.
    #[test]
    #[ignore = "needs root"]
    fn as_root_whatever_a_step_makes_is_taken_in_or_its_own_failure(
        things in proptest::collection::vec(made(), 1..10),
    ) {
        let upper = Tree::new();
        let mut first = None;
        for thing in &things {
            make(&upper, thing, &mut first);
        }
        let lower = Tree::new();
        match diff(&upper, &lower, 64 << 30) {
            Ok(tar) => {
                let index = taken_in(&tar);
                prop_assert!(index.is_ok(), "{index:?}");
                let (again, _) = unpack(&tar).unwrap();
                prop_assert!(diff(&again, &lower, 64 << 30).unwrap() == tar);
            }
            Err(err) => {
                let failure = fault::failure(&err);
                let is_ours = matches!(failure.kind, FailureKind::Unfit | FailureKind::TooLarge);
                prop_assert!(is_ours, "{}", failure.text);
            }
        }
    }
}
