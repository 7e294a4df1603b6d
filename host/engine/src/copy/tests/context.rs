//! The context on disk, with all that can be wrong with it.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use exec::Cancel;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Uid, mkfifo, setfsuid};
use store::{EntryKind, Layer};

use super::{Kit, UNPACK, check, spec};
use crate::context::Context;
use crate::copy::{CopyError, SourceTree, plan};
use crate::download::Downloads;
use crate::rootfs::Rootfs;

/// Runs something as a user to whom permissions matter, also where tests run as root.
fn unprivileged<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let as_nobody = || {
        // Counts for this thread only, and takes the right to read everything with it.
        setfsuid(Uid::from_raw(65_534));
        work()
    };
    thread::scope(|scope| scope.spawn(as_nobody).join().expect("no panic"))
}

/// A kit that others may look into.
fn open_kit(context: &[&str]) -> Kit {
    let kit = Kit::new(context, &[]);
    let parent = kit.path();
    for dir in [kit.dir.path(), &parent] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("a mode");
    }
    kit
}

/// Names in the archive of an instruction; the store has no part in it.
fn written(kit: &Kit, instruction: &str) -> Vec<String> {
    let mut bytes = Vec::new();
    let plan = kit.plan(instruction).expect("a plan");
    plan.write(&mut bytes, &Cancel::new()).expect("written");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let name = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        String::from_utf8_lossy(&entry.expect("whole").path_bytes()).into_owned()
    };
    archive.entries().expect("entries").map(name).collect()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

/// Names of a layer with their kinds.
fn names(kit: &Kit, layer: &Layer) -> Vec<Vec<u8>> {
    let index = kit.store.index(layer.diff_id).expect("an index");
    index
        .entries()
        .iter()
        .map(|entry| entry.path.clone())
        .collect()
}

#[test]
fn the_root_may_be_a_link_or_lie_below_one() {
    let kit = Kit::new(&["a", "d/b"], &[]);
    symlink(kit.path(), kit.dir.path().join("link")).expect("a link");
    symlink(kit.dir.path(), kit.dir.path().join("up")).expect("a link");
    let want = kit.ingest(&kit.plan("COPY . /").expect("a plan"));
    assert_eq!(kit.list(&want), ["a", "d/", "d/b"]);
    for path in ["link", "link/", "up/context", "up/link/d/..", "context/."] {
        let context = Context::open(&kit.dir.path().join(path), None, None).expect("a context");
        let plan = plan(
            &spec("COPY . /"),
            &SourceTree::Context(&context),
            &Downloads::default(),
            &kit.target,
            UNPACK,
            &Cancel::new(),
        );
        let layer = kit.ingest(&plan.expect("a plan"));
        assert_eq!(layer, want, "{path}");
    }
}

#[test]
fn what_is_no_directory_is_no_context() {
    let kit = Kit::new(&["file"], &[]);
    for name in ["file", "nothing"] {
        let error = Context::open(&kit.path().join(name), None, None).expect_err("an error");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn names_are_bytes() {
    let kit = Kit::new(&[], &[]);
    let long = [b'n'; 255];
    let mut want: Vec<&[u8]> = vec![
        b"a,b",
        b"%20",
        b"100%",
        b"new\nline",
        b"-dash",
        b"back\\slash",
        b"]",
        b"space ",
        b" ",
        b"\xff\xfe",
        b"caf\xc3\xa9",
        b"*",
        b"[x]",
        b"tab\t",
        b"#",
        b"!x",
        b"...",
        &long,
    ];
    for name in &want {
        fs::write(kit.path().join(OsStr::from_bytes(name)), name).expect("a file");
    }
    let layer = kit.ingest(&kit.plan("COPY . /").expect("a plan"));
    want.sort_unstable();
    assert_eq!(names(&kit, &layer), want);
    let again = kit.ingest(&kit.plan("COPY * /").expect("a plan"));
    assert_eq!(
        again.content_id, layer.content_id,
        "a pattern finds them all"
    );
    check(
        &["back\\slash"],
        &[],
        "COPY back\\slash /d/",
        &["d/", "d/back\\slash"],
    );
}

#[test]
fn depth_is_no_matter() {
    let kit = Kit::new(&[], &[]);
    let deep = vec!["d"; 300].join("/");
    kit.add(&[&format!("{deep}/f = deep"), "z = last", "d/e = beside"]);
    let layer = kit.ingest(&kit.plan("COPY . /").expect("a plan"));
    let listed = kit.list(&layer);
    assert_eq!(listed.len(), 303);
    assert!(listed.contains(&format!("{deep}/f = deep")) && listed.contains(&"z = last".into()));
}

#[test]
fn paths_may_be_longer_than_the_system_takes_at_once() {
    let kit = Kit::new(&[], &[]);
    let name = "n".repeat(250);
    let mut at: OwnedFd = File::open(kit.path()).expect("the root").into();
    for _ in 0..20 {
        mkdirat(at.as_fd(), name.as_str(), Mode::S_IRWXU).expect("a directory");
        at = openat(at.as_fd(), name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).expect("it");
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let mut file: File = openat(at.as_fd(), "f", flags, Mode::S_IRUSR)
        .expect("a file")
        .into();
    file.write_all(b"text").expect("data");
    let mut archive = Vec::new();
    // A layer can hold what is left of the path.
    let from = [name.as_str(); 5].join("/");
    kit.plan(&format!("COPY {from} /"))
        .expect("a plan")
        .write(&mut archive, &Cancel::new())
        .expect("written");
    let mut reader = tar::Archive::new(archive.as_slice());
    let last = reader
        .entries()
        .expect("entries")
        .last()
        .expect("one")
        .expect("whole");
    assert_eq!(last.path_bytes().len(), 15 * 251 + 1);
    assert_eq!(last.size(), 4);
}

#[test]
fn what_is_neither_file_nor_directory_nor_link_is_skipped_with_a_warning() {
    let kit = Kit::new(&["d/f"], &[]);
    mkfifo(&kit.path().join("d/pipe"), Mode::S_IRWXU).expect("a fifo");
    let socket = std::os::unix::net::UnixListener::bind(kit.path().join("d/socket"));
    let plan = kit.plan("COPY . /").expect("a plan");
    assert_eq!(
        plan.warnings,
        [
            "d/pipe is a named pipe and was skipped",
            "d/socket is a socket and was skipped"
        ]
    );
    assert_eq!(kit.list(&kit.ingest(&plan)), ["d/", "d/f"]);
    assert!(
        kit.plan("COPY --exclude=d/p* --exclude=d/s* . /")
            .expect("a plan")
            .warnings
            .is_empty()
    );
    assert_eq!(
        kit.error("COPY d/pipe /"),
        "d/pipe: a named pipe in the build context cannot be copied"
    );
    drop(socket);
}

#[test]
fn metadata_survives() {
    let kit = Kit::new(
        &[
            "a [777]",
            "b [666]",
            "c [4755]",
            "d/ [1777]",
            "g/ [2755]",
            "h == a",
            "l -> /abs/../x",
        ],
        &[],
    );
    let time = UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    let file = File::options()
        .write(true)
        .open(kit.path().join("b"))
        .expect("a file");
    file.set_times(FileTimes::new().set_modified(time))
        .expect("a time");
    // Not every file system has them.
    let with_xattr = xattr::set(kit.path().join("c"), "user.colour", b"red\n").is_ok()
        && xattr::set(kit.path().join("d"), "user.shape", b"round").is_ok();
    let layer = kit.ingest(&kit.plan("COPY . /").expect("a plan"));
    let want = [
        "a [777]",
        "b [666]",
        "c [4755]",
        "d/ [1777]",
        "g/ [2755]",
        "h == a [777]",
        "l -> /abs/../x",
    ];
    assert_eq!(kit.list(&layer), want);
    let index = kit.store.index(layer.diff_id).expect("an index");
    let entry = |path: &[u8]| {
        index
            .entries()
            .iter()
            .find(|entry| entry.path == path)
            .expect("it")
    };
    assert_eq!(
        (entry(b"b").mtime.secs, entry(b"b").mtime.nanos),
        (1_600_000_000, 123_456_789)
    );
    if with_xattr {
        assert_eq!(
            entry(b"c").xattrs,
            [(b"user.colour".to_vec(), b"red\n".to_vec())]
        );
        assert_eq!(
            entry(b"d").xattrs,
            [(b"user.shape".to_vec(), b"round".to_vec())]
        );
    }
}

#[test]
fn hard_links_are_kept_inside_one_source_only() {
    let context = ["d/a = text", "d/b == d/a", "e == d/a"];
    check(
        &context,
        &[],
        "COPY d /o",
        &["o/", "o/a = text", "o/b == o/a"],
    );
    check(
        &context,
        &[],
        "COPY . /o",
        &[
            "o/",
            "o/d/",
            "o/d/a = text",
            "o/d/b == o/d/a",
            "o/e == o/d/a",
        ],
    );
    check(
        &context,
        &[],
        "COPY d/a e /o/",
        &["o/", "o/a = text", "o/e = text"],
    );
    check(
        &["d/a = text", "d/b == d/a", "f/a = new"],
        &[],
        "COPY d f /o",
        &["o/", "o/a = new", "o/b = text"],
    );
}

#[test]
fn an_unreadable_file_matters_only_if_it_is_needed() {
    let kit = open_kit(&["ok", "secret/key", "locked [0]", ".dockerignore = secret\n"]);
    chmod(&kit.path().join("secret"), 0);
    unprivileged(|| {
        assert_eq!(written(&kit, "COPY ok /"), ["ok"]);
        assert_eq!(
            written(&kit, "COPY --exclude=locked . /"),
            [".dockerignore", "ok"]
        );
        let plan = kit.plan("COPY . /").expect("a plan");
        let error = plan
            .write(&mut io::sink(), &Cancel::new())
            .expect_err("an error");
        assert_eq!(error.to_string(), "cannot read locked in the build context");
        assert!(!error.is_host());
    });
    fs::write(kit.path().join(".dockerignore"), "locked\n").expect("an ignore file");
    unprivileged(|| {
        assert_eq!(
            kit.error("COPY . /"),
            "cannot read secret in the build context"
        );
        assert_eq!(kit.plan("COPY ok /").expect("a plan").entries.len(), 1);
    });
}

#[test]
fn the_context_is_never_written_to() {
    let kit = open_kit(&["a", "d/b"]);
    let open: Vec<_> = ["", "d"].iter().map(|dir| kit.path().join(dir)).collect();
    for dir in &open {
        chmod(dir, 0o555);
    }
    unprivileged(|| assert_eq!(written(&kit, "COPY . /"), ["a", "d/", "d/b"]));
}

#[test]
fn modes_are_content_and_times_are_not() {
    let kit = Kit::new(&["f", "d/g"], &[]);
    let id = || {
        kit.ingest(&kit.plan("COPY . /").expect("a plan"))
            .content_id
    };
    let first = id();
    let file = File::options()
        .write(true)
        .open(kit.path().join("f"))
        .expect("a file");
    file.set_times(FileTimes::new().set_modified(UNIX_EPOCH))
        .expect("a time");
    assert_eq!(id(), first, "touched");
    chmod(&kit.path().join("f"), 0o755);
    assert_ne!(id(), first, "chmod");
    chmod(&kit.path().join("f"), 0o644);
    assert_eq!(id(), first);
    chmod(&kit.path().join("d"), 0o700);
    assert_ne!(id(), first, "chmod of a directory");
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let kit = Kit::new(&["f = one", "fresh"], &[]);
    let path = kit.path().join("f");
    let build = |want_known: bool| {
        let context = kit.context();
        let plan = kit.plan_from(&context, "COPY f /").expect("a plan");
        assert_eq!(plan.content_id().is_some(), want_known);
        let id = plan
            .content_id()
            .unwrap_or_else(|| kit.ingest(&plan).content_id);
        context.save_cache();
        id
    };
    let first = build(false);
    build(false); // Too fresh to be believed.
    thread::sleep(Duration::from_millis(3_100));
    assert_eq!(build(false), first);
    assert_eq!(build(true), first);
    // The same length and the same time, but another text.
    let time = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    fs::write(&path, "two").expect("written");
    let file = File::options().write(true).open(&path).expect("a file");
    file.set_times(FileTimes::new().set_modified(time))
        .expect("a time");
    assert_ne!(build(false), first);
}

/// Does something once, when bytes come for the first time that make more than `after` in all.
struct Meddling<F: FnMut()> {
    after: usize,
    meddle: F,
    n_bytes: usize,
}

impl<F: FnMut()> Write for Meddling<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.n_bytes <= self.after;
        self.n_bytes += bytes.len();
        if before && self.n_bytes > self.after {
            (self.meddle)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_fails_the_step() {
    let big = "x".repeat(1 << 20);
    let longer = format!("{big}y");
    let other = "z".repeat(1 << 20);
    for changed in [longer.as_str(), "short", &other] {
        let kit = Kit::new(&[&format!("f = {big}")], &[]);
        let path = kit.path().join("f");
        let meddle = || fs::write(&path, changed).expect("written");
        let plan = kit.plan("COPY f /").expect("a plan");
        let mut out = Meddling {
            after: 1024,
            meddle,
            n_bytes: 0,
        };
        let error = plan.write(&mut out, &Cancel::new()).expect_err("an error");
        assert!(
            matches!(&error, CopyError::Changed(path) if path == "f"),
            "{error}"
        );
        assert_eq!(plan.content_id(), None, "nothing was learnt");
    }
}

#[test]
fn a_file_that_changed_before_it_is_read_is_taken_as_it_is() {
    let kit = Kit::new(&["a", "f = old"], &[]);
    let plan = kit.plan("COPY . /").expect("a plan");
    fs::write(kit.path().join("f"), "new and longer").expect("written");
    // The kit checks that the plan then tells the content of what was written.
    assert_eq!(kit.list(&kit.ingest(&plan)), ["a", "f = new and longer"]);
    let plan = kit.plan("COPY . /").expect("a plan");
    chmod(&kit.path().join("f"), 0o600);
    let error = plan
        .write(&mut io::sink(), &Cancel::new())
        .expect_err("an error");
    assert!(matches!(error, CopyError::Changed(_)), "{error}");
}

#[test]
fn nothing_from_outside_gets_in() {
    let kit = Kit::new(&["d/passwd = mine", "f = text"], &[]);
    let plan = kit.plan("COPY . /").expect("a plan");
    fs::rename(kit.path().join("d"), kit.path().join("was-d")).expect("renamed");
    symlink("/etc", kit.path().join("d")).expect("a link");
    let mut out = Vec::new();
    let error = plan.write(&mut out, &Cancel::new()).expect_err("an error");
    assert!(error.to_string().contains("d/passwd"), "{error}");
    let kit = Kit::new(&["f = text"], &[]);
    let plan = kit.plan("COPY . /").expect("a plan");
    fs::remove_file(kit.path().join("f")).expect("removed");
    symlink("/etc/passwd", kit.path().join("f")).expect("a link");
    plan.write(&mut out, &Cancel::new()).expect_err("an error");
    fs::remove_file(kit.path().join("f")).expect("removed");
    mkfifo(&kit.path().join("f"), Mode::S_IRWXU).expect("a fifo");
    plan.write(&mut out, &Cancel::new())
        .expect_err("an error, and no waiting for a writer");
}

#[test]
fn the_ignore_file_of_the_dockerfile_comes_first() {
    let of_dockerfile = "sub/Dockerfile.dockerignore = b\n";
    let kit = Kit::new(
        &[
            "a",
            "b",
            ".dockerignore = a\n",
            "sub/Dockerfile",
            of_dockerfile,
        ],
        &[],
    );
    let list = |dockerfile: Option<&Path>| {
        let context = Context::open(&kit.path(), dockerfile, None).expect("a context");
        kit.list(&kit.ingest(&kit.plan_from(&context, "COPY ? /d/").expect("a plan")))
    };
    let dockerfile = kit.path().join("sub/Dockerfile");
    assert_eq!(list(None), ["d/", "d/b"]);
    assert_eq!(list(Some(&dockerfile)), ["d/", "d/a"]);
    assert_eq!(list(Some(&kit.path().join("other"))), ["d/", "d/b"]);
    let context = Context::open(&kit.path(), Some(&dockerfile), None).expect("a context");
    assert_eq!(
        kit.plan_from(&context, "COPY b /b")
            .expect_err("an error")
            .to_string(),
        "`b` not found in the build context: it is excluded by sub/Dockerfile.dockerignore line 1: `b`"
    );
}

#[test]
fn ignored_files_are_not_there() {
    let ignore = ".dockerignore = **/*.log\nfoo/*\n!foo/.gitkeep\nparent\n!parent/child\nlogs/**\nDockerfile\n.dockerignore\n";
    let context = [
        ignore,
        "Dockerfile",
        "a.log",
        "d/e/b.log",
        "foo/.gitkeep",
        "foo/x",
        "parent/ [700]",
        "parent/child/y",
        "parent/z",
        "logs/1",
        "kept",
    ];
    let want = [
        "d/",
        "d/e/",
        "foo/",
        "foo/.gitkeep",
        "kept",
        "logs/",
        "parent/ [700]",
        "parent/child/",
        "parent/child/y",
    ];
    check(&context, &[], "COPY . /", &want);
}

#[test]
fn a_broken_ignore_file_is_an_error() {
    let kit = Kit::new(&[".dockerignore = a\n[\n"], &[]);
    let error = Context::open(&kit.path(), None, None).expect_err("an error");
    assert!(
        error.to_string().starts_with(".dockerignore:2: `[`"),
        "{error}"
    );
    let kit = Kit::new(&[".dockerignore/"], &[]);
    Context::open(&kit.path(), None, None).expect_err("a directory is not an ignore file");
}

#[test]
fn an_ignore_file_leads_to_nothing_outside_and_does_not_hang() {
    let inside = Kit::new(
        &["docker/ignore = b\n", ".dockerignore -> docker/ignore"],
        &[],
    );
    inside.add(&["a", "b"]);
    let kept = inside.context();
    assert!(kept.first_ignored().is_none() && kept.scan().is_ok());
    assert!(kept.first_ignored().is_some());
    for target in ["/etc/passwd", "/dev/zero", "../elsewhere"] {
        let kit = Kit::new(&[&format!(".dockerignore -> {target}")], &[]);
        Context::open(&kit.path(), None, None).expect_err("a link that leads out");
    }
    let kit = Kit::new(&[], &[]);
    let fifo = kit.path().join(".dockerignore");
    mkfifo(&fifo, Mode::S_IRUSR).expect("a pipe");
    let error = Context::open(&kit.path(), None, None).expect_err("a pipe is not a file");
    assert!(error.to_string().contains(".dockerignore"), "{error}");
}

#[test]
fn cancelling_ends_the_walk() {
    let kit = Kit::new(&["a", "b"], &[]);
    let cancel = Cancel::new();
    cancel.cancel();
    let context = kit.context().cancelled_by(&cancel);
    assert!(matches!(
        context.scan(),
        Err(crate::context::ContextError::Cancelled)
    ));
}

#[test]
fn cancelling_ends_the_planning() {
    let kit = Kit::new(&["d/a", "d/b"], &[]);
    let context = kit.context();
    context.scan().expect("a walk");
    let cancel = Cancel::new();
    cancel.cancel();
    for instruction in ["COPY d/* /", "COPY . /", "COPY --parents **/a /"] {
        let error = plan(
            &spec(instruction),
            &SourceTree::Context(&context),
            &Downloads::default(),
            &kit.target,
            UNPACK,
            &cancel,
        );
        assert!(matches!(error, Err(CopyError::Cancelled)), "{instruction}");
    }
}

#[test]
fn cancelling_ends_the_writing() {
    let kit = Kit::new(&["a", "b"], &[]);
    let cancel = Cancel::new();
    cancel.cancel();
    let error = kit
        .plan("COPY . /")
        .expect("a plan")
        .write(&mut io::sink(), &cancel);
    assert!(matches!(error, Err(CopyError::Cancelled)));
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let kit = Kit::new(&["d/a", "d/b -> a", "c"], &[]);
    let bytes = || {
        let mut bytes = Vec::new();
        let plan = kit
            .plan("COPY . <<n=text /made/on/the/way/")
            .expect("a plan");
        plan.write(&mut bytes, &Cancel::new()).expect("written");
        bytes
    };
    assert_eq!(bytes(), bytes());
    let root = Rootfs::empty();
    let made = crate::copy::plan_workdir("/a/b", "", &root)
        .expect("a plan")
        .expect("missing");
    let layer = kit.ingest(&made);
    let index = kit.store.index(layer.diff_id).expect("an index");
    assert!(
        index
            .entries()
            .iter()
            .all(|entry| entry.mtime.secs > 0 && entry.kind == EntryKind::Directory)
    );
}
