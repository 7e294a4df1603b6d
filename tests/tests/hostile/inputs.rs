//! What comes from strangers and is read on the host: a Dockerfile, a build context, an archive, a base
//! image. No build here boots a VM.

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tar::{Builder, EntryType, Header};
use tests::attempts::Attempts;
use tests::{Bench, Done, run};

/// What no build may show or keep.
const SECRET: &str = "a secret of the host";

/// How long a build of a few files may take.
const BOUND: Duration = Duration::from_secs(30);

/// A build context, and beside it a directory of the host that has nothing to do with it.
struct Place {
    bench: Bench,
    outside: PathBuf,
    attempts: Attempts,
    /// How many builds there were: each exports to a directory of its own.
    builds: Cell<u32>,
}

/// How a build ended, and what it exported.
struct Ended {
    done: Done,
    out: PathBuf,
    took: Duration,
}

impl Ended {
    fn succeeded(&self) -> bool {
        self.done.status == Some(0)
    }

    /// The build failed for a reason that it gave, in time.
    fn refused(&self) -> bool {
        let clear = self.done.stderr.to_lowercase().contains("error")
            && !self.done.stderr.contains("panicked");
        matches!(self.done.status, Some(1 | 2 | 124)) && clear && self.took < BOUND
    }

    fn has(&self, path: &str) -> bool {
        self.out.join(path).symlink_metadata().is_ok()
    }
}

impl Place {
    fn new(group: &'static str) -> Self {
        let bench = Bench::new();
        let outside = bench.out().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        let attempts = Attempts::of(group);
        Self {
            bench,
            outside,
            attempts,
            builds: Cell::new(0),
        }
    }

    fn context(&self) -> PathBuf {
        self.bench.context()
    }

    /// Builds the context as it is, and exports the files of the result.
    fn build(&self, args: &[&str]) -> Ended {
        let number = self.builds.get();
        self.builds.set(number + 1);
        let out = self.bench.out().join(format!("tree-{number}"));
        let output = format!("type=local,dest={}", out.display());
        let begin = Instant::now();
        let done = run(self.bench.build_command(&[&["-o", &output], args].concat()));
        Ended {
            done,
            out,
            took: begin.elapsed(),
        }
    }

    fn build_text(&self, dockerfile: &str) -> Ended {
        fs::remove_file(self.context().join("Dockerfile")).ok();
        self.bench.write("Dockerfile", dockerfile);
        self.build(&[])
    }

    /// Nothing was written beside the context, and nothing of what is there was read.
    fn kept(&self, ended: &Ended) -> bool {
        let names: Vec<_> = fs::read_dir(&self.outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let intact = fs::read_to_string(self.outside.join("secret")).unwrap() == SECRET;
        let hidden = !ended.done.stderr.contains(SECRET) && !ended.done.stdout.contains(SECRET);
        let found = Command::new("grep")
            .args(["-rqs", SECRET])
            .arg(&ended.out)
            .status();
        names == ["secret"] && intact && hidden && !found.unwrap().success()
    }

    /// An attempt that must leave everything outside alone, whether the build is refused or not.
    fn note(&mut self, name: &str, ended: &Ended, control: bool) {
        let contained = self.kept(ended) && (ended.succeeded() || ended.refused());
        let details = format!("{:?} {:?}", ended.took, ended.done);
        self.attempts.note(name, contained, control, &details);
    }

    /// An attempt that must be refused, too.
    fn note_refused(&mut self, name: &str, ended: &Ended, control: bool) {
        let contained = self.kept(ended) && ended.refused();
        let details = format!("{:?} {:?}", ended.took, ended.done);
        self.attempts.note(name, contained, control, &details);
    }

    fn finish(self) {
        self.bench.check_clean();
        self.attempts.finish();
    }
}

#[test]
fn a_hostile_context_leads_nowhere() {
    let mut place = Place::new("context");
    let (context, outside) = (place.context(), place.outside.clone());
    let dockerfile = "FROM scratch\nCOPY inside /inside\n";
    place.bench.write("inside", "inside\n");
    place.bench.write("elsewhere", dockerfile);

    symlink(outside.join("secret"), context.join("Dockerfile")).unwrap();
    let led_out = place.build(&[]);
    fs::remove_file(context.join("Dockerfile")).unwrap();
    symlink("elsewhere", context.join("Dockerfile")).unwrap();
    let led_in = place.build(&[]).succeeded();
    place.note_refused("link-in-place-of-the-dockerfile", &led_out, led_in);
    fs::remove_file(context.join("Dockerfile")).unwrap();

    let fifo = context.join("Dockerfile");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let waits = place.build(&[]);
    place.note_refused("pipe-in-place-of-the-dockerfile", &waits, led_in);
    fs::remove_file(&fifo).unwrap();

    symlink(outside.join("secret"), context.join(".dockerignore")).unwrap();
    let ignore = place.build_text(dockerfile);
    fs::remove_file(context.join(".dockerignore")).unwrap();
    place.note_refused("link-in-place-of-the-ignore-file", &ignore, led_in);

    symlink(&outside, context.join("way")).unwrap();
    fs::create_dir(context.join("real")).unwrap();
    place.bench.write("real/secret", "public\n");
    symlink("real", context.join("inner")).unwrap();
    let inner = place
        .build_text("FROM scratch\nCOPY inner/secret /x\n")
        .has("x");
    for (name, source) in [
        ("link-to-a-directory", "way/secret"),
        ("parent-directories", "../out/outside/secret"),
        ("absolute-path", outside.join("secret").to_str().unwrap()),
    ] {
        let ended = place.build_text(&format!("FROM scratch\nCOPY {source} /x\n"));
        place.note_refused(name, &ended, inner);
    }
    let wildcard = place.build_text("FROM scratch\nCOPY w*/s* /x/\n");
    let control = place
        .build_text("FROM scratch\nCOPY r*/s* /x/\n")
        .has("x/secret");
    place.note("wildcard-over-a-link", &wildcard, control);
    let whole = place.build_text("FROM scratch\nCOPY . /all/\n");
    let control = whole.has("all/real/secret");
    place.note("whole-context", &whole, control);

    place.finish();
}

#[test]
fn a_hostile_link_in_an_image_stays_in_the_image() {
    let mut place = Place::new("links");
    let (context, outside) = (place.context(), place.outside.clone());
    place.bench.write("inside", "inside\n");
    let target = outside.to_str().unwrap();
    fs::create_dir(context.join("links")).unwrap();
    symlink(&outside, context.join("links/way")).unwrap();
    let copied = place.build_text("FROM scratch\nCOPY links /\nCOPY inside /way/new\n");
    let below = copied.has(&format!("{}/new", target.trim_start_matches('/')));
    place.note("link-in-the-image", &copied, below);
    let workdir = place.build_text("FROM scratch\nCOPY links /\nWORKDIR /way/made\n");
    let below = workdir.has(&format!("{}/made", target.trim_start_matches('/')));
    place.note("working-directory-behind-a-link", &workdir, below);

    let name = "clear\u{1b}[2J\u{202e}";
    let shown = place.build_text(&format!("FROM scratch\nCOPY [\"{name}\", \"/x\"]\n"));
    let plain = !shown.done.stderr.contains(['\u{1b}', '\u{202e}']);
    let control = shown.done.stderr.contains("clear");
    place.attempts.note(
        "escapes-in-names",
        plain && shown.refused(),
        control,
        &shown.done.stderr,
    );
    place.finish();
}

#[test]
fn a_hostile_dockerfile_costs_no_more_than_a_limit() {
    let mut place = Place::new("dockerfile");
    place.bench.write("file", "text\n");
    let small = place.build_text("FROM scratch\nCOPY file /\nENV a=1\nENV b=$a$a\nLABEL l=$b\n");
    let control = small.succeeded();
    let doubled: String = (0..60)
        .map(|n| format!("ENV v{}=$v{n}$v{n}\n", n + 1))
        .collect();
    let patterns = format!("ENV p=${{a#{}}}\n", "*?".repeat(20_000));
    let texts = [
        (
            "long-line",
            format!("FROM scratch\nLABEL a={}\n", "x".repeat(100 << 20)),
        ),
        (
            "doubling-variables",
            format!("FROM scratch\nENV v0=0123456789abcdef\n{doubled}"),
        ),
        (
            "costly-patterns",
            format!("FROM scratch\nENV a={}\n{patterns}", "a".repeat(60_000)),
        ),
        ("many-stages", "FROM scratch\nCOPY file /\n".repeat(200_000)),
        (
            "many-instructions",
            format!("FROM scratch\n{}", "ENV a=b\n".repeat(1_000_000)),
        ),
        (
            "nested-variables",
            format!("FROM scratch\nENV a={}x\n", "${b:-".repeat(100_000)),
        ),
        (
            "unknown-syntax",
            "# syntax=evil.invalid/frontend\nFROM nowhere.invalid/a\n".to_owned(),
        ),
        (
            "endless-heredoc",
            format!("FROM scratch\nCOPY <<E /x\n{}", "y\n".repeat(10_000_000)),
        ),
        (
            "bytes",
            "FROM scratch\n\u{0}\u{7f}\u{85}RUN\u{0} \n".to_owned(),
        ),
    ];
    for (name, text) in texts {
        let ended = place.build_text(&text);
        place.note_refused(name, &ended, control);
    }
    place.finish();
}

/// It refuses nothing, and ends in time.
#[test]
fn a_hostile_ignore_file_takes_no_longer_than_others() {
    let mut place = Place::new("ignore-file");
    let deep = (0..14)
        .map(|_| "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
        .collect::<Vec<_>>();
    place
        .bench
        .write(&format!("{}/file", deep.join("/")), "deep\n");
    place
        .bench
        .write(".dockerignore", "*a".repeat(5_000) + "b\n");
    let ended = place.build_text("FROM scratch\nCOPY . /\n");
    let in_time = ended.succeeded() && ended.took < BOUND;
    let control = ended.has(&format!("{}/file", deep.join("/")));
    let details = format!("{:?} {:?}", ended.took, ended.done);
    place
        .attempts
        .note("costly-ignore-file", in_time, control, &details);
    place.finish();
}

type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// A tar whose headers are filled in as they are given: the library would refuse such paths.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, target, data) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o6755 });
        header.set_size(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if kind.is_character_special() {
            header.set_device_major(1).unwrap();
            header.set_device_minor(8).unwrap();
        }
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Six gigabytes of zeroes in a few megabytes: a tar of one file, compressed piece by piece.
fn bomb() -> Vec<u8> {
    let gzip = |bytes: &[u8]| {
        let mut child = Command::new("gzip")
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
        let writer = thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap().stdout;
        writer.join().unwrap();
        output
    };
    let mut header = Header::new_ustar();
    header.set_path("zeroes").unwrap();
    header.set_size(6 << 30);
    header.set_cksum();
    let zeroes = gzip(&vec![0; 64 << 20]);
    [gzip(header.as_bytes()), zeroes.repeat(96)].concat()
}

#[test]
fn a_hostile_archive_stays_in_its_place() {
    let mut place = Place::new("archives");
    let file = EntryType::Regular;
    let write = |place: &Place, bytes: &[u8]| {
        place.bench.write("a.tar", bytes);
        place.build_text("FROM scratch\nADD a.tar /in/\n")
    };
    let outside = place.outside.to_str().unwrap().to_owned();
    let control = write(&place, &archive(&[(file, "good", "", b"good")])).has("in/good");
    let up = format!("{}{}/new", "../".repeat(12), outside);
    let absolute = format!("{outside}/new");
    let secret = format!("{outside}/secret");
    let cases: &[(&str, &[Entry<'_>])] = &[
        ("parent-directories", &[(file, &up, "", b"x")]),
        ("absolute-path", &[(file, &absolute, "", b"x")]),
        (
            "through-its-own-link",
            &[
                (EntryType::Symlink, "way", &outside, b""),
                (file, "way/new", "", b"x"),
            ],
        ),
        ("hard-link-out", &[(EntryType::Link, "x", &secret, b"")]),
        (
            "hard-link-through-a-link",
            &[
                (EntryType::Symlink, "way", &outside, b""),
                (EntryType::Link, "x", "way/secret", b""),
            ],
        ),
        (
            "overwrites-its-root",
            &[
                (EntryType::Symlink, ".", &outside, b""),
                (file, "new", "", b"x"),
            ],
        ),
        (
            "whiteout-of-all",
            &[(file, ".wh..", "", b""), (file, ".wh...", "", b"")],
        ),
        ("link-to-itself", &[(EntryType::Link, "x", "x", b"")]),
        ("name-of-dots", &[(file, "a/../../b", "", b"x")]),
    ];
    for (name, entries) in cases {
        let ended = write(&place, &archive(entries));
        place.note(name, &ended, control);
    }
    let whole = archive(&[(file, "f", "", &[7; 5000])]);
    let cut = write(&place, &whole[..3000]);
    place.note_refused("cut", &cut, control);
    let mut size = whole.clone();
    size[124..136].copy_from_slice(&[0xff; 12]);
    let ended = write(&place, &size);
    place.note("size-beyond-everything", &ended, control);
    let ended = write(&place, &bomb());
    place.note_refused("bomb", &ended, control);
    place.finish();
}

#[test]
#[ignore = "needs root"]
fn as_root_a_hostile_archive_gives_no_rights() {
    let mut place = Place::new("rights");
    let tar = archive(&[
        (EntryType::Char, "device", "", b""),
        (EntryType::Regular, "setuid", "", b"#!/bin/sh\n"),
    ]);
    place.bench.write("a.tar", tar);
    let text = "FROM scratch\nADD a.tar /\n";
    let is_device = |out: &Path| {
        let facts = out.join("device").symlink_metadata();
        facts.is_ok_and(|facts| facts.file_type().is_char_device())
    };
    let mode = |out: &Path| out.join("setuid").metadata().unwrap().permissions().mode() & 0o7000;
    let plain = place.build_text(text);
    let (device, bits) = (is_device(&plain.out), mode(&plain.out));
    let asked = place.bench.out().join("asked");
    let spec = format!(
        "type=local,dest={},devices=true,setuid=true",
        asked.display()
    );
    let _done = run(place.bench.build_command(&["-o", &spec])).expect_status(0);
    let details = format!("{:?}", plain.done);
    place.attempts.note(
        "device",
        !device && plain.succeeded(),
        is_device(&asked),
        &details,
    );
    place
        .attempts
        .note("setuid", bits == 0, mode(&asked) == 0o6000, &details);
    place.finish();
}

/// A server on this machine that counts who asks. `/away` leads to `/secret`.
fn server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let mut request = [0; 2048];
            // Whoever hangs up has not got anything.
            let n = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            let answer = if request.contains("/away") {
                format!("302 Found\r\nLocation: http://127.0.0.1:{port}/secret")
            } else {
                "200 OK".to_owned()
            };
            let answer = format!(
                "HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{SECRET}",
                SECRET.len()
            );
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    (port, asked)
}

/// The options that the errors of a build name.
fn named_options(done: &Done) -> Vec<String> {
    let words: Vec<&str> = done.stderr.split_whitespace().collect();
    let hosts = words.windows(2).filter(|pair| pair[0] == "--allow-host");
    hosts
        .map(|pair| pair[1].trim_matches(['`', ',', '.', ';', ')']).to_owned())
        .collect()
}

#[test]
fn a_hostile_dockerfile_makes_the_host_ask_nobody() {
    let mut place = Place::new("requests");
    let (port, asked) = server();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "127.9.8.7",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ];
    for host in hosts {
        let before = asked.load(Ordering::SeqCst);
        let ended = place.build_text(&format!("FROM scratch\nADD http://{host}:{port}/s /s\n"));
        let alone = asked.load(Ordering::SeqCst) == before;
        let contained = alone && ended.refused() && place.kept(&ended);
        // The control does what the error says.
        let options = named_options(&ended.done);
        let mut args = Vec::new();
        for option in &options {
            args.extend(["--allow-host", option]);
        }
        let allowed = place.build(&args);
        let control = allowed.has("s") && asked.load(Ordering::SeqCst) > before;
        let details = format!("{:?}\nwith {options:?}: {:?}", ended.done, allowed.done);
        place
            .attempts
            .note(&format!("add-{host}"), contained, control, &details);
    }
    place.finish();
}

#[test]
fn a_hostile_server_or_registry_makes_the_host_ask_nobody() {
    let mut place = Place::new("servers");
    let (port, asked) = server();
    // A server that the user names leads to one that the user does not name.
    let named = format!("localhost:{port}");
    place.build_text(&format!("FROM scratch\nADD http://{named}/away /s\n"));
    let redirected = place.build(&["--allow-host", &named]);
    let both = format!("127.0.0.1:{port}");
    let control = place
        .build(&["--allow-host", &named, "--allow-host", &both])
        .has("s");
    place.note_refused("redirection", &redirected, control);
    // Registries and repositories.
    let before = asked.load(Ordering::SeqCst);
    let pulled = place.build_text(&format!("FROM 127.0.0.1:{port}/image\n"));
    let alone = asked.load(Ordering::SeqCst) == before;
    place.build(&["--allow-host", &both]);
    let control = asked.load(Ordering::SeqCst) > before;
    let details = format!("{:?}", pulled.done);
    place
        .attempts
        .note("from", alone && pulled.refused(), control, &details);
    let before = asked.load(Ordering::SeqCst);
    let offline = place.build_text(&format!("FROM scratch\nADD http://{both}/s /s\n"));
    let offline_too = place.build(&["--network", "none", "--allow-host", &both]);
    let alone = asked.load(Ordering::SeqCst) == before;
    let control = place.build(&["--allow-host", &both]).has("s");
    let contained = alone && offline.refused() && offline_too.refused();
    let details = format!("{:?}", offline_too.done);
    place
        .attempts
        .note("add-without-network", contained, control, &details);
    place.finish();
}

/// An image in an OCI layout, as a directory whose files can be changed.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn new(place: &Place, name: &str) -> Self {
        let archive = place.bench.out().join("base.tar");
        if !archive.exists() {
            place.bench.write("base/file", "of the base\n");
            place
                .bench
                .write("Dockerfile", "FROM scratch\nCOPY base /\nENV a=b\n");
            let spec = format!("type=oci,dest={}", archive.display());
            let _done = run(place.bench.build_command(&["-o", &spec])).expect_status(0);
        }
        let dir = place.bench.out().join(name);
        fs::create_dir(&dir).unwrap();
        let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
        tar.unpack(&dir).unwrap();
        Self { dir }
    }

    /// The blobs, with the manifest first and the largest last.
    fn blobs(&self) -> Vec<PathBuf> {
        let blobs = fs::read_dir(self.dir.join("blobs/sha256")).unwrap();
        let mut blobs: Vec<PathBuf> = blobs.map(|blob| blob.unwrap().path()).collect();
        let index = fs::read_to_string(self.dir.join("index.json")).unwrap();
        blobs.sort_by_key(|blob| {
            let name = blob.file_name().unwrap().to_str().unwrap();
            (!index.contains(name), blob.metadata().unwrap().len())
        });
        blobs
    }
}

/// Changes a layout. The path is that of a secret of the host.
type Change = fn(&Layout, &Path);

/// What can be wrong with a base image.
const CHANGES: &[(&str, Change)] = &[
    ("intact", |_, _| {}),
    ("another-manifest", |layout, _| {
        fs::write(&layout.blobs()[0], "{}").unwrap();
    }),
    ("another-config", |layout, _| {
        fs::write(&layout.blobs()[1], "{}").unwrap();
    }),
    ("another-layer", |layout, _| {
        let last = layout.blobs().pop().unwrap();
        fs::write(last, [0; 4096]).unwrap();
    }),
    ("missing-layer", |layout, _| {
        fs::remove_file(layout.blobs().pop().unwrap()).unwrap();
    }),
    ("link-in-place-of-a-layer", |layout, secret| {
        let last = layout.blobs().pop().unwrap();
        fs::remove_file(&last).unwrap();
        symlink(secret, last).unwrap();
    }),
    ("pipe-in-place-of-a-layer", |layout, _| {
        let last = layout.blobs().pop().unwrap();
        fs::remove_file(&last).unwrap();
        nix::unistd::mkfifo(&last, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }),
    ("link-in-place-of-the-index", |layout, secret| {
        fs::remove_file(layout.dir.join("index.json")).unwrap();
        symlink(secret, layout.dir.join("index.json")).unwrap();
    }),
    ("nested-index", |layout, _| {
        let text = "[".repeat(1_000_000);
        fs::write(layout.dir.join("index.json"), text).unwrap();
    }),
    ("endless-index", |layout, _| {
        let file = fs::File::create(layout.dir.join("index.json")).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    ("digest-with-a-path", |layout, secret| {
        let text = format!(
            "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\
             \"application/vnd.oci.image.manifest.v1+json\",\"size\":20,\
             \"digest\":\"sha256:../../../{}\"}}]}}",
            secret.display()
        );
        fs::write(layout.dir.join("index.json"), text).unwrap();
    }),
    ("index-of-itself", |layout, _| {
        let text = "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\
             \"application/vnd.oci.image.index.v1+json\",\"size\":-1,\
             \"digest\":\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}]}";
        fs::write(layout.dir.join("index.json"), text).unwrap();
    }),
];

#[test]
fn a_hostile_base_image_is_refused() {
    let mut place = Place::new("images");
    let secret = place.outside.join("secret");
    let mut intact = false;
    for (name, change) in CHANGES {
        let layout = Layout::new(&place, name);
        change(&layout, &secret);
        place.bench.write("Dockerfile", "FROM base\nLABEL a=b\n");
        let base = format!("base=oci-layout://{}", layout.dir.display());
        // A store of its own: in the first one, all blobs are there already.
        let store = place.bench.out().join(format!("store-{name}"));
        let store = store.to_str().unwrap();
        let ended = place.build(&["--build-context", &base, "--store", store]);
        if *name == "intact" {
            intact = ended.has("file");
        } else {
            place.note_refused(name, &ended, intact);
        }
    }
    place.finish();
}
