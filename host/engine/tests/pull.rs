//! Images out of registries: a real one, and one that misbehaves.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one tells its parent how it went"
)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::pull::{ImageSource, PullError, PullOptions, resolve};
use exec::Cancel;
use net_policy::Reach;
use oci::http::{ClientOptions, MinRate};
use oci::{ImageError, ImageRef};
use store::Digest;
use support::http::{Answer, Server};
use support::registry::{Registry, free_port};
use support::{
    Form, LayoutDir, TestLayer, TestStore, amd64, chain, find, find_with, noise, options, tar_with,
};

fn named(name: &str) -> ImageSource {
    ImageSource::Named(name.to_owned())
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn images_of_every_form_are_pulled() {
    let registry = Registry::start();
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let single = [TestLayer::new(tar_with("a", b"one"), Form::Gzip)];
    let many: Vec<TestLayer> = (0..9)
        .map(|n| {
            let form = [Form::Gzip, Form::Zstd, Form::Plain][n % 3];
            TestLayer::new(
                tar_with(&format!("f{n}"), &noise(400_000, n as u64 + 7)),
                form,
            )
        })
        .collect();
    let (a, b) = (layout.image("amd64", &single), layout.image("amd64", &many));
    layout.tag(a.clone(), "single");
    layout.tag(b.clone(), "many");
    registry.push(&layout, "single", "a/single:1");
    registry.push(&layout, "many", "many");

    let base = find(&store, &named(&registry.name("a/single:1"))).unwrap();
    assert_eq!(base.manifest_digest, a.digest);
    assert_eq!(base.name, registry.name("a/single:1"));
    let base = find(&store, &named(&registry.name("many"))).unwrap();
    assert_eq!(base.manifest_digest, b.digest);
    let ids: Vec<Digest> = base.layers.iter().map(|layer| layer.0).collect();
    assert_eq!(ids, many.iter().map(TestLayer::diff_id).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_pulled_image_needs_the_registry_no_more() {
    let registry = Registry::start();
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image = layout.image(
        "amd64",
        &[TestLayer::new(tar_with("a", b"one"), Form::Gzip)],
    );
    layout.tag(image.clone(), "v1");
    registry.push(&layout, "v1", "app:1");
    let name = registry.name("app:1");
    find(&store, &named(&name)).unwrap();
    registry.stop();

    assert_eq!(
        find(&store, &named(&name)).unwrap().manifest_digest,
        image.digest
    );
    let fresh = resolve(
        &store,
        &named(&name),
        &amd64(),
        true,
        &options(),
        &|_| {},
        &Cancel::new(),
    );
    assert!(matches!(
        fresh,
        Err(PullError::Image(ImageError::Registry { .. }))
    ));
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_tag_that_moved_is_seen_when_asked_for() {
    let registry = Registry::start();
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    for version in ["one", "two"] {
        let layer = TestLayer::new(tar_with("a", version.as_bytes()), Form::Gzip);
        let image = layout.image("amd64", &[layer]);
        layout.tag(image, version);
    }
    let name = registry.name("app:latest");
    registry.push(&layout, "one", "app:latest");
    let one = find(&store, &named(&name)).unwrap();
    registry.push(&layout, "two", "app:latest");
    assert_eq!(find(&store, &named(&name)).unwrap(), one);
    let two = resolve(
        &store,
        &named(&name),
        &amd64(),
        true,
        &options(),
        &|_| {},
        &Cancel::new(),
    )
    .unwrap();
    assert_ne!(two.manifest_digest, one.manifest_digest);
    assert_eq!(find(&store, &named(&name)).unwrap(), two);
    let by_digest = format!("{}@{}", registry.name("app"), one.manifest_digest);
    assert_eq!(find(&store, &named(&by_digest)).unwrap().layers, one.layers);
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn the_platform_is_chosen_from_a_manifest_list() {
    let registry = Registry::start();
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image = |architecture: &str| {
        let tar = tar_with("arch", architecture.as_bytes());
        layout.image(architecture, &[TestLayer::new(tar, Form::Gzip)])
    };
    let (x, a) = (image("amd64"), image("arm64"));
    let index = layout.index(&[("amd64", x.clone()), ("arm64", a.clone())]);
    layout.tag(index.clone(), "multi");
    registry.push(&layout, "multi", "multi:1");

    for name in [
        registry.name("multi:1"),
        format!("{}@{}", registry.name("multi"), index.digest),
    ] {
        for (platform, image) in [("linux/amd64", &x), ("linux/arm64", &a)] {
            let platform = platform.parse().unwrap();
            let base = resolve(
                &store,
                &named(&name),
                &platform,
                false,
                &options(),
                &|_| {},
                &Cancel::new(),
            );
            assert_eq!(base.unwrap().manifest_digest, image.digest);
        }
    }
    let riscv = "linux/riscv64".parse().unwrap();
    let name = registry.name("multi:1");
    let none = resolve(
        &store,
        &named(&name),
        &riscv,
        false,
        &options(),
        &|_| {},
        &Cancel::new(),
    );
    assert!(chain(&none.unwrap_err()).contains("only for linux/amd64, linux/arm64"));
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn a_damaged_blob_in_the_registry_is_named_and_nothing_is_kept() {
    let registry = Registry::start();
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layers = [
        TestLayer::new(tar_with("a", &noise(300_000, 5)), Form::Gzip),
        TestLayer::new(tar_with("b", &noise(300_000, 6)), Form::Zstd),
    ];
    let image = layout.image("amd64", &layers);
    layout.tag(image.clone(), "v1");
    registry.push(&layout, "v1", "app:1");
    let path = registry.blob_path(store::sha256(&layers[1].blob()));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let error = find(&store, &named(&registry.name("app:1"))).unwrap_err();
    assert!(
        matches!(error, PullError::Image(ImageError::Damaged { .. })),
        "{}",
        chain(&error)
    );
    assert!(chain(&error).contains("push or copy the image again"));
    assert_eq!(store.layer(layers[1].diff_id().into()).unwrap(), None);
    assert_eq!(store.blob(image.digest).unwrap(), None);
}

#[test]
#[ignore = "needs docker-registry and skopeo"]
fn missing_images_and_missing_registries_are_told_apart() {
    let registry = Registry::start();
    let store = TestStore::new();
    let error = find(&store, &named(&registry.name("nothing:1"))).unwrap_err();
    assert!(
        matches!(error, PullError::Image(ImageError::NotFound { .. })),
        "{}",
        chain(&error)
    );
    assert!(chain(&error).contains("check the name and the tag"));

    let down = format!("127.0.0.1:{}/app:1", free_port());
    let error = find(&store, &named(&down)).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("cannot be reached") && text.contains("refused"),
        "{text}"
    );
    let error = find(&store, &named("Not A Name")).unwrap_err();
    assert!(matches!(error, PullError::Name(_)));
}

/// A one-layer image as a misbehaving registry serves it.
struct Small {
    layer: TestLayer,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Small {
    fn new(length: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path());
        let layer = TestLayer::new(tar_with("a", &noise(length, 9)), Form::Gzip);
        let image = layout.image("amd64", std::slice::from_ref(&layer));
        let manifest = fs::read(layout.blob_path(image.digest)).unwrap();
        let Ok(oci::Document::Manifest(parsed)) = oci::Document::parse(&manifest) else {
            panic!("no manifest")
        };
        let config = fs::read(layout.blob_path(parsed.config.digest)).unwrap();
        Self {
            layer,
            config,
            manifest,
        }
    }

    /// What an honest registry answers.
    fn answer(&self, path: &str) -> Answer {
        let last = path.rsplit('/').next().unwrap_or_default();
        let config = store::sha256(&self.config).to_string();
        let layer = store::sha256(&self.layer.blob()).to_string();
        match last {
            "1" => Answer::ok(&self.manifest),
            digest if digest == config => Answer::ok(&self.config),
            digest if digest == layer => Answer::ok(&self.layer.blob()),
            _ => Answer::new(404, b"{}"),
        }
    }

    fn is_layer(&self, path: &str) -> bool {
        path.ends_with(&store::sha256(&self.layer.blob()).to_string())
    }
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    for honours_ranges in [true, false] {
        let small = Small::new(1_000_000);
        let store = TestStore::new();
        let diff_id = small.layer.diff_id();
        let server = Server::start(move |asked| {
            let mut answer = small.answer(&asked.path);
            if small.is_layer(&asked.path) {
                let whole = answer.body.clone();
                let from = usize::try_from(asked.range.unwrap_or(0)).unwrap();
                let from = if honours_ranges { from } else { 0 };
                let cut = if asked.range.is_none() {
                    400_000
                } else {
                    whole.len()
                };
                answer.status = if from > 0 { 206 } else { 200 };
                answer.claims = Some((whole.len() - from) as u64);
                answer.body = whole[from..cut].to_vec();
            }
            answer
        });
        let base = find(&store, &named(&server.name("app:1"))).unwrap();
        assert_eq!(base.layers, [diff_id.into()]);
        let ranges: Vec<_> = server
            .asked
            .lock()
            .unwrap()
            .iter()
            .filter_map(|asked| asked.range)
            .collect();
        assert_eq!(ranges.len(), 1, "{ranges:?}");
        assert!(ranges[0] > 0 && ranges[0] <= 400_000);
    }
}

#[test]
fn a_registry_that_sends_a_byte_now_and_then_is_given_up() {
    let small = Small::new(100_000);
    let store = TestStore::new();
    let server = Server::start(move |asked| {
        let mut answer = small.answer(&asked.path);
        if small.is_layer(&asked.path) {
            answer.claims = Some(answer.body.len() as u64);
            answer.body.truncate(1000);
            answer.trickle = true;
        }
        answer
    });
    let rate = MinRate {
        bytes: 2000,
        window: Duration::from_millis(200),
    };
    let mut options = options();
    options.client.min_rate = rate;
    let error = find_with(&store, &named(&server.name("app:1")), &options).unwrap_err();
    assert!(chain(&error).contains("too slow"), "{}", chain(&error));
    let layers = server.paths().into_iter();
    let layers = layers.filter(|path| path.contains("/blobs/"));
    // The configuration, and the layer as often as a broken blob is resumed.
    assert_eq!(layers.count(), 5);
}

#[test]
fn passing_trouble_is_waited_out_and_lasting_trouble_is_not() {
    let small = Small::new(10);
    let store = TestStore::new();
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        if asked.path.contains("/broken/") {
            return Answer::new(503, br#"{"errors":[{"code":"X","message":"on holiday"}]}"#);
        }
        if asked.path.contains("/manifests/") && tries.fetch_add(1, Ordering::Relaxed) < 2 {
            return Answer::new(502, b"bad gateway");
        }
        small.answer(&asked.path)
    });
    find(&store, &named(&server.name("app:1"))).unwrap();
    let error = find(&store, &named(&server.name("broken:1"))).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("status 503") && text.contains("on holiday"),
        "{text}"
    );
    let asked = server
        .paths()
        .iter()
        .filter(|path| path.contains("/broken/"))
        .count();
    assert_eq!(asked, 4);
}

#[test]
fn a_token_is_fetched_when_the_registry_wants_one() {
    let small = Small::new(10);
    let store = TestStore::new();
    let port = std::sync::Arc::new(AtomicUsize::new(0));
    let known = port.clone();
    let server = Server::start(move |asked| {
        if asked.path.starts_with("/token") {
            return Answer::ok(br#"{"token":"opensesame"}"#);
        }
        if asked.authorization.as_deref() == Some("Bearer opensesame")
            && !asked.path.contains("/secret/")
        {
            return small.answer(&asked.path);
        }
        let mut answer = Answer::new(401, b"{}");
        let port = known.load(Ordering::Relaxed);
        answer.headers = vec![format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\""
        )];
        answer
    });
    port.store(server.port.into(), Ordering::Relaxed);
    find(&store, &named(&server.name("user/app:1"))).unwrap();
    let token = server
        .paths()
        .into_iter()
        .find(|path| path.starts_with("/token"))
        .unwrap();
    assert!(
        token.contains("service=s") && token.contains("user%2Fapp%3Apull"),
        "{token}"
    );

    let error = find(&store, &named(&server.name("secret/app:1"))).unwrap_err();
    assert!(
        chain(&error).contains("require a login"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_cancel_interrupts_a_registry_that_says_nothing() {
    let server = Server::start(|_| Answer {
        hang: true,
        ..Answer::ok(b"")
    });
    let store = TestStore::new();
    let cancel = Cancel::new();
    let begun = Instant::now();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
        });
        resolve(
            &store,
            &named(&server.name("app:1")),
            &amd64(),
            false,
            &options(),
            &|_| {},
            &cancel,
        )
    });
    assert!(matches!(
        outcome,
        Err(PullError::Image(ImageError::Cancelled))
    ));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_manifest_without_end_is_refused() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(&vec![b' '; 9 << 20]));
    let error = find(&store, &named(&server.name("app:1"))).unwrap_err();
    assert!(
        chain(&error).contains("more than 8388608 bytes"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let small = Small::new(10);
    let store = TestStore::new();
    let wrong = store::sha256(b"other");
    let manifest = small.manifest.clone();
    let server = Server::start(move |_| Answer::ok(&manifest));
    let error = find(&store, &named(&format!("{}@{wrong}", server.name("app")))).unwrap_err();
    assert!(
        matches!(error, PullError::Image(ImageError::Damaged { .. })),
        "{}",
        chain(&error)
    );
}

#[test]
fn html_instead_of_a_manifest_is_explained() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::ok(b"<html>log in to the hotel network</html>"));
    let error = find(&store, &named(&server.name("app:1"))).unwrap_err();
    assert!(
        chain(&error).contains("not a manifest or index"),
        "{}",
        chain(&error)
    );
}

/// The image that `helper_resolve_over_tls` looks for.
const TLS_IMAGE: &str = "COFFERDAM_TEST_TLS_IMAGE";

/// Not a test of its own: the trusted certificates come from the environment, which a program cannot
/// safely change for itself.
#[test]
#[ignore = "a process of another test"]
fn helper_resolve_over_tls() {
    let name = std::env::var(TLS_IMAGE).unwrap();
    let store = TestStore::new();
    let own_name: ImageRef = name.parse().unwrap();
    let reach = Reach::default().and(own_name.host_rule());
    let options = PullOptions::new(ClientOptions::new(reach));
    let outcome = find_with(&store, &named(&name), &options).map_err(|error| chain(&error));
    print!("outcome: {:?}", outcome.map(|base| base.layers.len()));
}

/// Everywhere but on this machine itself, registries are spoken to with TLS.
#[test]
#[ignore = "needs docker-registry, skopeo, openssl and an address for the machine's name"]
fn with_host_address_other_hosts_need_tls_and_a_trusted_certificate() {
    let registry = Registry::start_with_tls();
    let dir = tempfile::tempdir().unwrap();
    let mut layout = LayoutDir::new(dir.path());
    let image = layout.image(
        "amd64",
        &[TestLayer::new(tar_with("a", b"one"), Form::Gzip)],
    );
    layout.tag(image, "v1");
    registry.push(&layout, "v1", "app:1");
    let again = |trusted: &std::path::Path| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("helper_resolve_over_tls")
            .env(TLS_IMAGE, registry.name("app:1"))
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let trusted = again(&registry.path("ca.pem"));
    assert!(trusted.contains("outcome: Ok(1)"), "{trusted}");
    let stranger = again(&registry.path("other-ca.pem"));
    assert!(stranger.contains("certificate"), "{stranger}");
}
