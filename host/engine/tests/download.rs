//! Files from servers that behave, and from servers that do not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::download::{DownloadError, Fetched, Job, Limits, Origin, WebAddress, WebSource, fetch};
use engine::event::Progress;
use exec::Cancel;
use oci::http::MinRate;
use store::{Digest, Mtime, PruneOptions};
use support::http::{Answer, Asked, Server};
use support::{TestStore, noise, test_servers};

/// Far more than it takes, even on a slow machine under load.
const SOON: Duration = Duration::from_secs(60);

/// 1994-11-06 08:49:37.
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Small enough to be reached.
const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    idle: Duration::from_millis(500),
    whole: Duration::from_secs(600),
    rate: MinRate::USUAL,
};

fn source(url: &str, checksum: Option<Digest>) -> WebSource {
    WebSource {
        address: WebAddress::parse(url).unwrap(),
        checksum,
        unpack: false,
    }
}

fn get_within(
    store: &TestStore,
    url: &str,
    checksum: Option<Digest>,
    limits: Limits,
    cancel: &Cancel,
) -> Result<Fetched, DownloadError> {
    let job = Job {
        store,
        limits,
        reach: Some(&test_servers()),
        progress: &|_| {},
        cancel,
    };
    fetch(&job, &source(url, checksum))
}

fn get(store: &TestStore, url: &str) -> Result<Fetched, DownloadError> {
    get_within(store, url, None, LIMITS, &Cancel::new())
}

fn get_checked(store: &TestStore, url: &str, digest: Digest) -> Result<Fetched, DownloadError> {
    get_within(store, url, Some(digest), LIMITS, &Cancel::new())
}

/// No object is left, visible or not.
#[track_caller]
fn assert_empty(store: &TestStore) {
    let usage = store.du().unwrap();
    assert_eq!(usage.items.len(), 0, "{:?}", usage.items);
    let report = store.check(false).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.objects, 0);
}

fn has(store: &TestStore, digest: Digest) -> bool {
    store.open_blob(digest).unwrap().is_some()
}

/// Gives what a server does that knows the tag of its only file.
fn tagged(body: &'static [u8]) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    move |asked| {
        if asked.tag.as_deref() == Some("\"v1\"") {
            return Answer::new(304, b"");
        }
        Answer::ok(body).with("ETag: \"v1\"")
    }
}

#[test]
fn a_file_comes_with_its_digest_length_and_time() {
    let store = TestStore::new();
    let body = noise(300_000, 1);
    let sent = body.clone();
    let server = Server::start(move |_| Answer::ok(&sent).with(&format!("Last-Modified: {DATE}")));
    let seen = std::sync::Mutex::new(Vec::<Progress>::new());
    let job = Job {
        store: &store,
        limits: LIMITS,
        reach: Some(&test_servers()),
        progress: &|progress| seen.lock().unwrap().push(progress),
        cancel: &Cancel::new(),
    };
    let file = fetch(&job, &source(&server.url("/f"), None)).unwrap();
    let digest = store::sha256(&body);
    let secs = 784_111_777;
    let want = Fetched {
        digest,
        size: 300_000,
        mtime: Mtime { secs, nanos: 0 },
        before: None,
        origin: Origin::Server,
    };
    assert_eq!(file, want);
    assert_eq!(store.blob(digest).unwrap().unwrap(), body);
    let seen = seen.into_inner().unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.current, last.total), (300_000, 300_000));
    assert_eq!(last.what, format!("downloading {}", server.url("/f")));
}

#[test]
fn a_file_that_did_not_change_is_not_sent_again() {
    let store = TestStore::new();
    let server = Server::start(tagged(b"one"));
    let url = server.url("/f");
    let first = get(&store, &url).unwrap();
    let second = get(&store, &url).unwrap();
    assert_eq!(first.origin, Origin::Server);
    assert_eq!(second.origin, Origin::Unchanged);
    assert_eq!(second.before, Some(first.digest));
    assert_eq!((first.digest, first.size), (second.digest, second.size));
    let tags: Vec<_> = server
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|a| a.tag.clone())
        .collect();
    assert_eq!(tags, [None, Some("\"v1\"".to_owned())]);
}

#[test]
fn without_a_tag_the_date_is_asked_about_as_it_was_sent() {
    let store = TestStore::new();
    let server = Server::start(|asked| {
        if asked.date.as_deref() == Some(DATE) {
            return Answer::new(304, b"");
        }
        Answer::ok(b"one").with(&format!("Last-Modified: {DATE}"))
    });
    let url = server.url("/f");
    let first = get(&store, &url).unwrap();
    let second = get(&store, &url).unwrap();
    assert_eq!(second.origin, Origin::Unchanged);
    assert_eq!(second.mtime, first.mtime);
}

#[test]
fn a_file_that_changed_is_told_with_what_it_was() {
    let store = TestStore::new();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Answer::ok(format!("version {n}").as_bytes()).with(&format!("ETag: \"{n}\""))
    });
    let url = server.url("/f");
    get(&store, &url).unwrap();
    let second = get(&store, &url).unwrap();
    assert_eq!(second.before, Some(store::sha256(b"version 0")));
    assert_eq!(second.digest, store::sha256(b"version 1"));
}

#[test]
fn what_was_pruned_is_downloaded_and_not_asked_about() {
    let store = TestStore::new();
    let server = Server::start(tagged(b"one"));
    let url = server.url("/f");
    let file = get(&store, &url).unwrap();
    // As if the process had ended: its leases go.
    store.evict_blob(file.digest).unwrap();
    let mut go_on = |_: &store::Pruned| std::ops::ControlFlow::Continue(());
    store.prune(&PruneOptions::default(), &mut go_on).unwrap();
    assert!(!has(&store, file.digest));
    assert_eq!(get(&store, &url).unwrap().origin, Origin::Server);
    assert_eq!(server.asked.lock().unwrap()[1].tag, None);
    assert!(has(&store, file.digest));
}

#[test]
fn not_modified_without_a_question_is_refused() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(304, b""));
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(
        matches!(err, DownloadError::Refused { status: 304, .. }),
        "{err}"
    );
    assert_empty(&store);
}

#[test]
fn what_is_known_by_its_digest_needs_no_server() {
    let store = TestStore::new();
    let digest = store::sha256(b"one");
    let server = Server::start(|_| Answer::ok(b"one").with(&format!("Last-Modified: {DATE}")));
    let url = server.url("/f");
    let first = get_checked(&store, &url, digest).unwrap();
    drop(server);
    let second = get_checked(&store, &url, digest).unwrap();
    assert_eq!(second.origin, Origin::Store);
    assert_eq!(second.mtime, first.mtime);
    // Nor does another address with the same content; of its time nothing is known.
    let other = get_checked(&store, "http://127.0.0.1:1/other", digest).unwrap();
    assert_eq!(
        (other.origin, other.mtime),
        (Origin::Store, Mtime::default())
    );
}

#[test]
fn nothing_of_the_wrong_content_is_kept() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(b"evil").with("ETag: \"1\""));
    let (expected, actual) = (store::sha256(b"good"), store::sha256(b"evil"));
    let err = get_checked(&store, &server.url("/f?key=k1"), expected).unwrap_err();
    let text = err.to_string();
    for part in [
        expected.to_string(),
        actual.to_string(),
        server.url("/f?key=xxxxx"),
    ] {
        assert!(text.contains(&part), "{text}");
    }
    assert!(!err.is_host());
    assert_empty(&store);
    assert!(!has(&store, actual));
    // It is not asked about either.
    get(&store, &server.url("/f?key=k1")).unwrap();
    assert_eq!(server.asked.lock().unwrap()[1].tag, None);
    assert_eq!(
        server.paths().len(),
        2,
        "a wrong answer is not asked for again"
    );
}

#[test]
fn a_file_that_is_not_there_is_said_to_be_missing() {
    let store = TestStore::new();
    let server = Server::start(|asked| Answer::new(asked.path[1..].parse().unwrap(), b"no"));
    for (status, part) in [
        (404, "404; check the URL"),
        (403, "403; the file requires a login"),
    ] {
        let err = get(&store, &server.url(&format!("/{status}"))).unwrap_err();
        assert!(err.to_string().contains(part), "{err}");
        assert!(!err.is_host());
    }
    assert_eq!(server.paths().len(), 2, "it is asked once");
    assert_empty(&store);
}

#[test]
fn passing_trouble_is_waited_out() {
    let store = TestStore::new();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::new(503, b""),
        1 => Answer {
            claims: Some(100),
            ..Answer::ok(b"cut")
        },
        _ => Answer::ok(b"whole"),
    });
    let file = get(&store, &server.url("/f")).unwrap();
    assert_eq!(file.digest, store::sha256(b"whole"));
    assert!(!has(&store, store::sha256(b"cut")));
    assert_eq!(store.du().unwrap().items.len(), 1);
}

/// The first answer breaks off after ten of a hundred bytes.
fn interrupted(
    tag: &'static str,
    rest: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |asked| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer {
            claims: Some(100),
            ..Answer::ok(&[b'a'; 10])
        }
        .with(&format!("ETag: {tag}")),
        _ => rest(asked),
    })
}

#[track_caller]
fn ranges(server: &Server, want: &[Option<u64>]) {
    let asked = server.asked.lock().unwrap();
    let ranges: Vec<_> = asked.iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, want);
}

#[test]
fn after_an_interruption_only_the_rest_is_asked_for() {
    let store = TestStore::new();
    let server = interrupted("\"1\"", |asked| {
        assert_eq!(asked.if_range.as_deref(), Some("\"1\""));
        Answer::new(206, &[b'a'; 90]).with("Content-Range: bytes 10-99/100")
    });
    let digest = store::sha256(&[b'a'; 100]);
    let file = get_checked(&store, &server.url("/f"), digest).unwrap();
    assert_eq!((file.digest, file.size), (digest, 100));
    ranges(&server, &[None, Some(10)]);
}

#[test]
fn a_file_that_changed_during_an_interruption_comes_whole() {
    let store = TestStore::new();
    let server = interrupted("\"1\"", |_| Answer::ok(&[b'b'; 100]).with("ETag: \"2\""));
    let file = get(&store, &server.url("/f")).unwrap();
    assert_eq!(file.digest, store::sha256(&[b'b'; 100]));
    ranges(&server, &[None, Some(10)]);
    assert_eq!(store.du().unwrap().items.len(), 1);
}

#[test]
fn without_a_strong_tag_all_of_it_is_asked_for_again() {
    let store = TestStore::new();
    let server = interrupted("W/\"1\"", |_| Answer::ok(&[b'b'; 100]));
    let file = get(&store, &server.url("/f")).unwrap();
    assert_eq!(file.digest, store::sha256(&[b'b'; 100]));
    ranges(&server, &[None, None]);
}

#[test]
fn a_rest_that_does_not_fit_is_thrown_away() {
    for (range, length) in [
        ("bytes 9-99/100", 91),
        ("bytes 9-99/100", 90),
        ("bytes 10-50/100", 41),
        ("bytes 10-109/110", 100),
        ("bytes 10-99/100", 80),
        ("bytes */100", 90),
        ("nonsense", 90),
    ] {
        let store = TestStore::new();
        let server = interrupted("\"1\"", move |asked| match asked.range {
            Some(_) => {
                Answer::new(206, &vec![b'x'; length]).with(&format!("Content-Range: {range}"))
            }
            None => Answer::ok(&[b'b'; 100]),
        });
        let file = get(&store, &server.url("/f")).unwrap();
        assert_eq!(file.digest, store::sha256(&[b'b'; 100]), "{range}");
        ranges(&server, &[None, Some(10), None]);
        assert_eq!(store.du().unwrap().items.len(), 1);
    }
}

#[test]
fn a_rest_without_end_is_cut_off_at_the_limit() {
    let store = TestStore::new();
    let server = interrupted("\"1\"", |_| {
        Answer {
            endless: true,
            ..Answer::new(206, &[7; 64 << 10])
        }
        .with("Content-Range: bytes 10-99/100")
    });
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(matches!(err, DownloadError::TooLarge { .. }), "{err}");
    assert_empty(&store);
}

#[test]
fn trouble_that_lasts_is_the_hosts() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(500, b""));
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(
        matches!(err, DownloadError::Failing { status: 500, .. }),
        "{err}"
    );
    assert!(err.is_host());
    let port = support::registry::free_port();
    let err = get(&store, &format!("http://127.0.0.1:{port}/f")).unwrap_err();
    assert!(matches!(err, DownloadError::Unreachable { .. }), "{err}");
    assert_empty(&store);
}

#[test]
fn redirections_are_followed_and_a_loop_of_them_ends() {
    let store = TestStore::new();
    let server = Server::start(|asked| match asked.path.as_str() {
        "/there" => Answer::ok(b"one"),
        "/from?secret=1" => Answer::new(302, b"").with("Location: /there"),
        _ => Answer::new(302, b"").with("Location: /loop"),
    });
    let file = get(&store, &server.url("/from?secret=1")).unwrap();
    assert_eq!(file.digest, store::sha256(b"one"));
    let there = server.asked.lock().unwrap()[1].clone();
    assert_eq!((there.path.as_str(), there.referer), ("/there", None));
    let err = get(&store, &server.url("/loop")).unwrap_err();
    assert!(err.to_string().contains("too many redirections"), "{err}");
    assert_eq!(server.paths().len(), 2 + 11, "a loop is not tried again");
}

#[test]
fn a_redirection_to_something_else_than_http_is_not_followed() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(302, b"").with("Location: file:///etc/passwd"));
    get(&store, &server.url("/f")).unwrap_err();
    assert_empty(&store);
}

#[test]
fn a_body_without_end_is_cut_off_at_the_limit() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        endless: true,
        ..Answer::ok(&[7; 64 << 10])
    });
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(
        err.to_string().contains("larger than 1048576 bytes"),
        "{err}"
    );
    assert_eq!(server.paths().len(), 1, "it is not tried again");
    assert_empty(&store);
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_read() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        claims: Some((1 << 20) + 1),
        stall: true,
        ..Answer::ok(b"")
    });
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(matches!(err, DownloadError::TooLarge { .. }), "{err}");
    assert_empty(&store);
}

#[test]
fn a_file_at_the_limit_is_taken() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(&noise(1 << 20, 3)));
    assert_eq!(get(&store, &server.url("/f")).unwrap().size, 1 << 20);
}

#[test]
fn a_cancel_ends_a_wait_at_once() {
    for hang in [true, false] {
        let store = TestStore::new();
        let server = Server::start(move |_| Answer {
            hang,
            stall: true,
            claims: Some(100),
            ..Answer::ok(b"begun")
        });
        let cancel = Cancel::new();
        let limits = Limits {
            idle: Duration::from_secs(600),
            whole: Duration::from_secs(600),
            ..LIMITS
        };
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(300));
                cancel.cancel();
            });
            let err = get_within(&store, &server.url("/f"), None, limits, &cancel).unwrap_err();
            assert!(matches!(err, DownloadError::Cancelled), "{err}");
        });
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_empty(&store);
    }
}

#[test]
fn a_cancel_ends_a_download_of_which_bytes_keep_coming() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        trickle: true,
        claims: Some(1 << 20),
        ..Answer::ok(b"begun")
    });
    let cancel = Cancel::new();
    let limits = Limits {
        idle: Duration::from_secs(600),
        ..LIMITS
    };
    let job = Job {
        store: &store,
        limits,
        reach: Some(&test_servers()),
        progress: &|progress| {
            if progress.current > 10 {
                cancel.cancel();
            }
        },
        cancel: &cancel,
    };
    let begun = Instant::now();
    let err = fetch(&job, &source(&server.url("/f"), None)).unwrap_err();
    assert!(matches!(err, DownloadError::Cancelled), "{err}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_empty(&store);
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        stall: true,
        claims: Some(100),
        ..Answer::ok(b"begun")
    });
    let begun = Instant::now();
    let err = get(&store, &server.url("/f")).unwrap_err();
    assert!(matches!(err, DownloadError::Unreachable { .. }), "{err}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(server.paths().len(), 4);
    assert_empty(&store);
}

#[test]
fn a_server_that_sends_a_byte_now_and_then_is_given_up() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        trickle: true,
        claims: Some(1000),
        ..Answer::ok(b"begun")
    });
    let rate = MinRate {
        bytes: 1 << 10,
        window: Duration::from_millis(200),
    };
    let limits = Limits {
        idle: Duration::from_secs(600),
        rate,
        ..LIMITS
    };
    let begun = Instant::now();
    let err = get_within(&store, &server.url("/f"), None, limits, &Cancel::new()).unwrap_err();
    assert!(matches!(err, DownloadError::Trickles { .. }), "{err}");
    assert!(err.is_host());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(server.paths().len(), 4);
    assert_empty(&store);
}

#[test]
fn a_server_that_dawdles_is_given_up_in_the_end() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer {
        stall: true,
        claims: Some(100),
        ..Answer::ok(b"begun")
    });
    let limits = Limits {
        idle: Duration::from_secs(600),
        whole: Duration::from_secs(1),
        ..LIMITS
    };
    let begun = Instant::now();
    let err = get_within(&store, &server.url("/f"), None, limits, &Cancel::new()).unwrap_err();
    assert!(matches!(err, DownloadError::TooSlow { .. }), "{err}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_empty(&store);
}

#[test]
fn a_password_is_sent_and_never_shown() {
    let store = TestStore::new();
    let server = Server::start(|asked| {
        let right = asked.authorization.as_deref() == Some("Basic bWU6aHVudGVyMg==");
        Answer::new(
            if right && asked.path == "/f" {
                200
            } else {
                404
            },
            b"one",
        )
    });
    let url = |path: &str| server.url(path).replace("//", "//me:hunter2@");
    get(&store, &url("/f")).unwrap();
    let missing = get(&store, &url("/missing")).unwrap_err();
    let nobody = get(&store, "http://me:hunter2@127.0.0.1:1/f").unwrap_err();
    for err in [missing, nobody] {
        let text = format!("{} {err:?}", engine::build::chain(&err));
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("//xxxxx@127.0.0.1"), "{text}");
    }
}

#[test]
fn a_hint_that_is_damaged_or_lies_costs_a_download_and_nothing_else() {
    let store = TestStore::new();
    let server = Server::start(tagged(b"one"));
    let url = server.url("/f");
    get(&store, &url).unwrap();
    for file in std::fs::read_dir(store.root().join("cache")).unwrap() {
        std::fs::write(file.unwrap().path(), "nonsense").unwrap();
    }
    let again = get(&store, &url).unwrap();
    assert_eq!((again.origin, again.before), (Origin::Server, None));
}
