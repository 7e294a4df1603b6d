//! Whole builds that ADD files from a server. None of them needs a VM: the stand-in for it panics.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Read as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use engine::build::{BuildError, BuildRequest, BuildResult, Class, DockerfileSource, build, chain};
use engine::event::{Event, Outcome, Reporter};
use engine::rootfs::Rootfs;
use exec::{Cancel, Executor, Output, StepDone, StepError, StepNetwork, StepSpec};
use store::{Entry, EntryKind, PruneOptions, TrustDomain};
use support::http::{Answer, Asked, Server};
use support::{TestStore, amd64, tar_with};

/// Far more than it takes, even on a slow machine under load.
const SOON: Duration = Duration::from_secs(60);

struct VmForbidden;

impl Executor for VmForbidden {
    fn prepare(&self) {
        panic!("a VM is started");
    }

    fn run(&self, _: &StepSpec, _: &mut dyn Output, _: &Cancel) -> Result<StepDone, StepError> {
        panic!("a VM is used");
    }
}

/// Keeps all that is told.
#[derive(Default)]
struct Watch {
    names: Mutex<Vec<String>>,
    why: Mutex<Vec<String>>,
    ended: Mutex<Vec<Outcome>>,
    all: Mutex<String>,
}

impl Reporter for Watch {
    fn report(&self, event: Event) {
        self.all.lock().unwrap().push_str(&format!("{event:?}\n"));
        match event {
            Event::Started { name, .. } => self.names.lock().unwrap().push(name),
            Event::Explained { why, .. } => self.why.lock().unwrap().push(why.to_string()),
            Event::Ended { outcome, .. } => self.ended.lock().unwrap().push(outcome),
            Event::Log { .. }
            | Event::Status { .. }
            | Event::Compared { .. }
            | Event::Warning { .. } => {}
        }
    }
}

/// What a build did.
struct Built {
    result: Result<BuildResult, BuildError>,
    why: Vec<String>,
    ended: Vec<Outcome>,
    names: Vec<String>,
    /// All that was told, as text.
    told: String,
}

fn request(store: &TestStore, dockerfile: &str) -> BuildRequest {
    let context = store.path("context");
    std::fs::create_dir_all(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    BuildRequest {
        context: Some(context),
        dockerfile: DockerfileSource::Default,
        build_args: Vec::new(),
        target: None,
        no_cache: false,
        rebuild: None,
        trust_domain: TrustDomain::new("test").unwrap(),
        timeout: None,
        step_timeout: None,
        idle_timeout: None,
        log_limit: store::StepLog::DEFAULT_LIMIT,
        explain: true,
        pull: false,
        labels: Vec::new(),
        tags: Vec::new(),
        outputs: Vec::new(),
        jobs: 4,
        platform: amd64(),
        named_contexts: Vec::new(),
        hosts: Vec::new(),
        network: StepNetwork::Default,
        epoch: None,
    }
}

fn run_as(store: &TestStore, request: &BuildRequest, cancel: &Cancel) -> Built {
    let watch = Watch::default();
    let result = build(request, store, &VmForbidden, &watch, cancel);
    Built {
        result,
        why: watch.why.into_inner().unwrap(),
        ended: watch.ended.into_inner().unwrap(),
        names: watch.names.into_inner().unwrap(),
        told: watch.all.into_inner().unwrap(),
    }
}

fn run(store: &TestStore, dockerfile: &str) -> Built {
    run_as(store, &request(store, dockerfile), &Cancel::new())
}

/// Builds; all files of the image with mode, owner, time and content.
#[track_caller]
fn files(store: &TestStore, dockerfile: &str) -> Vec<String> {
    let image = run(store, dockerfile).result.unwrap().image;
    let root = Rootfs::new(store, &image.layers).unwrap();
    let index = store.index(*image.layers.last().unwrap()).unwrap();
    index
        .entries()
        .iter()
        .map(|entry| show(&root, entry))
        .collect()
}

fn show(root: &Rootfs, entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    let Entry {
        mode,
        uid,
        gid,
        mtime,
        ..
    } = entry;
    let EntryKind::File { .. } = entry.kind else {
        return format!("{path}/ {mode:o}");
    };
    let mut content = String::new();
    let found = root.find(&entry.path).unwrap();
    root.open_data(found)
        .unwrap()
        .read_to_string(&mut content)
        .unwrap();
    format!("{path} {mode:o} {uid}:{gid} {} {content}", mtime.secs)
}

/// Answers with the path, dated one second after 1970.
fn echo(asked: &Asked) -> Answer {
    Answer::ok(asked.path.as_bytes()).with("Last-Modified: Thu, 01 Jan 1970 00:00:01 GMT")
}

#[test]
fn a_file_of_a_server_becomes_a_file_of_the_image() {
    let store = TestStore::new();
    let server = Server::start(echo);
    let at = server.url("");
    for (instruction, want) in [
        (
            "ADD $URL/x/f.bin /d/",
            vec!["d/ 755", "d/f.bin 600 0:0 1 /x/f.bin"],
        ),
        (
            "ADD ${URL}/f?v=1 /opt/tool",
            vec!["opt/ 755", "opt/tool 600 0:0 1 /f?v=1"],
        ),
        (
            "ADD --chmod=755 --chown=1:2 $URL/f /g",
            vec!["g 755 1:2 1 /f"],
        ),
        ("ADD $URL /d/", vec!["d/ 755", "d/__unnamed__ 600 0:0 1 /"]),
        ("ADD $URL/a%20b .", vec!["w/ 755", "w/a b 600 0:0 1 /a%20b"]),
        ("ADD --link $URL/f /w/", vec!["w/ 755", "w/f 600 0:0 1 /f"]),
        ("ADD [\"$URL/f\", \"/a b\"]", vec!["a b 600 0:0 1 /f"]),
    ] {
        let text = format!("FROM scratch\nARG URL={at}\nWORKDIR /w\n{instruction}\n");
        assert_eq!(files(&store, &text), want, "{instruction}");
    }
}

#[test]
fn files_of_servers_and_of_the_context_go_together() {
    let store = TestStore::new();
    let server = Server::start(echo);
    let text = format!(
        "FROM scratch\nADD {} Dockerfile {} <<here /d/\ntext\nhere\n",
        server.url("/one"),
        server.url("/two")
    );
    let found = files(&store, &text);
    let names: Vec<&str> = found
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["d/", "d/Dockerfile", "d/here", "d/one", "d/two"]);
}

#[test]
fn a_server_that_dates_nothing_dates_1970() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(b"x"));
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    assert_eq!(files(&store, &text), ["f 600 0:0 0 x"]);
}

#[test]
fn an_archive_is_unpacked_only_if_that_is_said() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(&tar_with("in/side", b"text")));
    let url = server.url("/a.tar");
    let text = format!("FROM scratch\nADD --unpack=true {url} /d\n");
    for _ in 0..2 {
        assert_eq!(
            files(&store, &text),
            ["d/ 755", "d/in/ 755", "d/in/side 644 0:0 1000000000 text"]
        );
    }
    let text = format!("FROM scratch\nADD {url} /d\n");
    assert!(files(&store, &text)[0].starts_with("d 600 0:0 0 in/side"));
}

#[test]
fn what_is_no_archive_is_copied_though_it_should_be_unpacked() {
    let store = TestStore::new();
    let server = Server::start(echo);
    let text = format!("FROM scratch\nADD --unpack {} /d/\n", server.url("/f"));
    assert_eq!(files(&store, &text), ["d/ 755", "d/f 600 0:0 1 /f"]);
}

#[test]
fn an_archive_that_leads_out_is_refused() {
    let store = TestStore::new();
    let mut header = support::file_header(1);
    header.as_gnu_mut().unwrap().name[..6].copy_from_slice(b"../out");
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend([b'x'; 512]);
    tar.extend([0; 1024]);
    let server = Server::start(move |_| Answer::ok(&tar));
    let text = format!(
        "FROM scratch\nADD --unpack=true {} /d\n",
        server.url("/a.tar")
    );
    let err = run(&store, &text).result.unwrap_err();
    assert_eq!(err.class(), Class::User, "{err}");
    assert!(
        err.to_string().contains("cannot unpack http://127.0.0.1"),
        "{err}"
    );
}

#[test]
fn a_second_build_asks_and_finds_everything() {
    let store = TestStore::new();
    let server = Server::start(|asked| match asked.tag {
        Some(_) => Answer::new(304, b""),
        None => Answer::ok(b"one").with("ETag: \"1\""),
    });
    let url = server.url("/f");
    let text = format!("FROM scratch\nADD {url} /f\n");
    let first = run(&store, &text);
    let second = run(&store, &text);
    assert_eq!(first.why, ["miss: never built before"]);
    let hit = format!("hit: same inputs; {url} is unchanged on the server");
    assert_eq!(second.why, [hit]);
    assert!(
        second.ended.contains(&Outcome::Cached),
        "{:?}",
        second.ended
    );
    assert_eq!(first.result.unwrap().image, second.result.unwrap().image);
    assert_eq!(server.paths().len(), 2);
}

#[test]
fn other_content_gives_another_layer_and_both_digests_are_shown() {
    let store = TestStore::new();
    let version = Arc::new(AtomicUsize::new(1));
    let served = Arc::clone(&version);
    let server = Server::start(move |_| {
        let n = served.load(Ordering::SeqCst);
        Answer::ok(format!("version {n}").as_bytes()).with(&format!("ETag: \"{n}\""))
    });
    let url = server.url("/f");
    let text = format!("FROM scratch\nADD {url} /f\n");
    let first = run(&store, &text).result.unwrap().image;
    version.store(2, Ordering::SeqCst);
    let second = run(&store, &text);
    let (was, is) = (store::sha256(b"version 1"), store::sha256(b"version 2"));
    let want = format!("miss: {url} changed from {was} to {is}; /f changed (content)");
    assert_eq!(second.why, [want]);
    assert_ne!(first.layers, second.result.unwrap().image.layers);
    // Back to what it was: that layer is found again.
    version.store(1, Ordering::SeqCst);
    let third = run(&store, &text);
    assert_eq!(
        third.why,
        [format!("hit: same inputs; {url} was downloaded ({was})")]
    );
    assert_eq!(first, third.result.unwrap().image);
}

#[test]
fn a_new_date_alone_changes_nothing() {
    let store = TestStore::new();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let second = count.fetch_add(1, Ordering::SeqCst);
        Answer::ok(b"x").with(&format!(
            "Last-Modified: Thu, 01 Jan 1970 00:00:0{second} GMT"
        ))
    });
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    let first = run(&store, &text).result.unwrap().image;
    let second = run(&store, &text);
    assert!(
        second.ended.contains(&Outcome::Cached),
        "{:?}",
        second.ended
    );
    assert_eq!(first, second.result.unwrap().image);
}

#[test]
fn with_a_checksum_a_second_build_needs_no_server() {
    let store = TestStore::new();
    let digest = store::sha256(b"/f");
    let server = Server::start(echo);
    let url = server.url("/f");
    let text = format!("FROM scratch\nARG SUM={digest}\nADD --checksum=$SUM {url} /f\n");
    let first = run(&store, &text).result.unwrap().image;
    drop(server);
    let second = run(&store, &text);
    let hit = format!("hit: same inputs; {url} is in the store (matched by --checksum)");
    assert_eq!(second.why, [hit]);
    assert_eq!(first, second.result.unwrap().image);
    // Elsewhere in the image, too.
    let other = format!("FROM scratch\nADD --checksum={digest} {url} /d/\n");
    assert_eq!(files(&store, &other)[1], "d/f 600 0:0 1 /f");
}

#[test]
fn the_wrong_content_is_told_with_its_line_and_nothing_of_it_is_kept() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(b"evil"));
    let (url, good, evil) = (
        server.url("/f"),
        store::sha256(b"good"),
        store::sha256(b"evil"),
    );
    let text = format!("FROM scratch\nWORKDIR /w\nADD --checksum={good} {url} /f\n");
    let built = run(&store, &text);
    let err = built.result.unwrap_err();
    assert_eq!(err.class(), Class::User);
    let line = chain(&err);
    for part in ["Dockerfile:3: ", &url, &good.to_string(), &evil.to_string()] {
        assert!(line.contains(part), "{line}");
    }
    assert!(err.excerpt().unwrap().contains(">>> ADD --checksum"));
    assert!(store.open_blob(evil).unwrap().is_none());
    let usage = store.du().unwrap();
    assert!(
        usage.items.iter().all(|item| item.kind != "download"),
        "{:?}",
        usage.items
    );
    assert!(store.check(false).unwrap().is_clean());
}

#[test]
fn a_missing_file_is_the_users_with_the_line() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(404, b""));
    let url = server.url("/f");
    let err = run(&store, &format!("FROM scratch\nADD {url} /f\n"))
        .result
        .unwrap_err();
    assert_eq!(err.class(), Class::User);
    let want =
        format!("Dockerfile:2: cannot download {url}: the server answered 404; check the URL");
    assert_eq!(chain(&err), want);
}

#[test]
fn a_server_that_cannot_be_reached_is_the_hosts() {
    let store = TestStore::new();
    let url = format!("http://127.0.0.1:{}/f", support::registry::free_port());
    let err = run(&store, &format!("FROM scratch\nADD {url} /f\n"))
        .result
        .unwrap_err();
    assert_eq!(err.class(), Class::Host, "{err}");
}

#[test]
fn a_stalled_build_is_cancelled_at_once() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        stall: true,
        claims: Some(1000),
        ..Answer::ok(b"begun")
    });
    let cancel = Cancel::new();
    let request = request(
        &store,
        &format!("FROM scratch\nADD {} /f\n", server.url("/f")),
    );
    let begun = Instant::now();
    let built = thread::scope(|scope| {
        scope.spawn(|| {
            while server.paths().is_empty() {
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        run_as(&store, &request, &cancel)
    });
    assert_eq!(built.result.unwrap_err().class(), Class::Cancelled);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(store.check(false).unwrap().is_clean());
}

#[test]
fn a_password_is_used_and_told_to_nobody() {
    let store = TestStore::new();
    let server = Server::start(|asked| {
        let status = if asked.authorization.is_some() {
            200
        } else {
            403
        };
        Answer::new(status, b"secret content")
    });
    let url = server.url("/f?sig=hunter3").replace("//", "//me:hunter2@");
    let text = format!("FROM scratch\nADD {url} /f\n");
    let built = run(&store, &text);
    let image = built.result.as_ref().unwrap().image.clone();
    let config = store.blob(image.config).unwrap().unwrap();
    let config = String::from_utf8(config).unwrap();
    assert!(config.contains("ADD http://xxxxx@127.0.0.1"), "{config}");
    let failed = run(&store, &text.replace("ADD ", "ADD --chown=nobody "));
    let err = failed.result.unwrap_err();
    let shown = format!("{} {}", chain(&err), err.excerpt().unwrap());
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(store.root().join("cache")).unwrap() {
        kept.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    let kept = String::from_utf8_lossy(&kept).into_owned();
    for text in [config, built.told, failed.told, shown, kept] {
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[test]
fn a_name_that_no_file_can_have_is_refused_where_it_would_be_used() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(b"x"));
    for path in ["/a%2f..", "/a%00b", &format!("/{}", "n".repeat(256))] {
        let url = server.url(path);
        let err = run(&store, &format!("FROM scratch\nADD {url} /d/\n"))
            .result
            .unwrap_err();
        assert_eq!(err.class(), Class::User);
        assert!(
            err.to_string().contains("cannot determine a file name"),
            "{err}"
        );
        let named = files(&store, &format!("FROM scratch\nADD {url} /named\n"));
        assert_eq!(named, ["named 600 0:0 0 x"]);
    }
    let url = server.url("/..%2f..%2fetc%2fpasswd");
    let found = files(&store, &format!("FROM scratch\nADD {url} /d/\n"));
    assert_eq!(found[1], "d/passwd 600 0:0 0 x");
}

#[test]
fn an_address_is_asked_once_in_a_build() {
    let store = TestStore::new();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        Answer::ok(format!("{}", count.fetch_add(1, Ordering::SeqCst)).as_bytes())
    });
    let url = server.url("/f");
    let text = format!("FROM scratch\nADD {url} /a\nADD {url} /b\n");
    assert_eq!(files(&store, &text), ["b 600 0:0 0 0"]);
    assert_eq!(server.paths().len(), 1);
}

#[test]
fn bytes_that_rot_in_the_store_are_never_used() {
    let store = TestStore::new();
    let digest = store::sha256(b"/f");
    let server = Server::start(echo);
    let url = server.url("/f");
    run(
        &store,
        &format!("FROM scratch\nADD --checksum={digest} {url} /f\n"),
    )
    .result
    .unwrap();
    for entry in std::fs::read_dir(store.root().join("blobs")).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read(&path).unwrap() == b"/f" {
            std::fs::write(&path, b"/g").unwrap();
        }
    }
    let text = format!("FROM scratch\nADD --checksum={digest} {url} /elsewhere\n");
    let err = run(&store, &text).result.unwrap_err();
    assert_eq!(err.class(), Class::Host, "{err}");
    assert!(err.to_string().contains("retry the build"), "{err}");
    assert_eq!(files(&store, &text), ["elsewhere 600 0:0 1 /f"]);
}

#[test]
fn a_pruned_download_is_downloaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let server = Server::start(echo);
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    for n in 1..3 {
        let store = support::open_store(&path);
        let mut go_on = |_: &store::Pruned| ControlFlow::Continue(());
        store.prune(&PruneOptions::default(), &mut go_on).unwrap();
        assert_eq!(store.du().unwrap().items.len(), 0);
        let request = BuildRequest {
            context: None,
            dockerfile: DockerfileSource::Text(text.clone().into_bytes()),
            ..request(&TestStore::new(), "")
        };
        build(
            &request,
            &store,
            &VmForbidden,
            &Watch::default(),
            &Cancel::new(),
        )
        .unwrap();
        assert_eq!(server.paths().len(), n);
        assert_eq!(server.asked.lock().unwrap()[n - 1].date, None);
        support::close_clean(store);
    }
}

#[test]
fn a_rebuild_of_what_is_stored_makes_the_same() {
    let store = TestStore::new();
    let server = Server::start(echo);
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    run(&store, &text).result.unwrap();
    let again = BuildRequest {
        rebuild: Some(engine::build::Rebuild::Strict),
        ..request(&store, &text)
    };
    let built = run_as(&store, &again, &Cancel::new()).result.unwrap();
    assert_eq!(built.differing(), 0);
    let compared = built.steps.iter().filter(|step| step.compared.is_some());
    assert_eq!(compared.count(), 1);
}

#[test]
fn the_step_is_shown_like_any_other() {
    let store = TestStore::new();
    let server = Server::start(echo);
    let url = server.url("/f");
    let built = run(&store, &format!("FROM scratch\nADD {url} /f\n"));
    let name = format!("[1/1] ADD {url} /f");
    assert!(built.names.contains(&name), "{:?}", built.names);
    assert!(
        built.told.contains(&format!("downloading {url}")),
        "{}",
        built.told
    );
}
