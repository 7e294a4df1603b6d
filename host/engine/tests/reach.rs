//! What a Dockerfile, an image, a registry and a server can make this machine reach: nothing that the
//! user did not name. None of the builds needs a VM: the stand-in for it panics.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use engine::build::{BuildError, BuildRequest, BuildResult, Class, build, chain};
use engine::download::{DownloadError, Fetched, Job, Limits, WebAddress, WebSource, fetch};
use engine::event::{Event, Reporter};
use engine::pull::{ImageSource, PullOptions};
use exec::{Cancel, StepNetwork};
use net_policy::{HostRule, Policy, Reach};
use support::builds::{VmForbidden, request};
use support::http::{Answer, Server};
use support::{TestStore, find_with, test_servers};

struct Silent;

impl Reporter for Silent {
    fn report(&self, _: Event) {}
}

fn run(store: &TestStore, request: &BuildRequest) -> Result<BuildResult, BuildError> {
    build(request, store, &VmForbidden, &Silent, &Cancel::new())
}

/// Builds as a user who names no server.
fn run_plain(store: &TestStore, dockerfile: &str) -> Result<BuildResult, BuildError> {
    let request = BuildRequest {
        reach: Reach::default(),
        ..request(store, dockerfile)
    };
    run(store, &request)
}

/// A build that is refused for a server that it must not reach, which `allowed` would allow.
#[track_caller]
fn refused(outcome: Result<BuildResult, BuildError>, allowed: &str) {
    let error = outcome.unwrap_err();
    let text = chain(&error);
    assert_eq!(error.class(), Class::User, "{text}");
    assert!(text.contains(&format!("--allow-host {allowed}")), "{text}");
}

fn server() -> Server {
    Server::start(|_| Answer::ok(b"internal"))
}

fn download(store: &TestStore, reach: &Reach, url: &str) -> Result<Fetched, DownloadError> {
    let job = Job {
        store,
        limits: Limits::USUAL,
        reach: Some(reach),
        progress: &|_| {},
        cancel: &Cancel::new(),
    };
    let source = WebSource {
        address: WebAddress::parse(url).unwrap(),
        checksum: None,
        unpack: false,
    };
    fetch(&job, &source)
}

#[track_caller]
fn out_of_reach(outcome: Result<Fetched, DownloadError>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, DownloadError::OutOfReach { .. }), "{error}");
}

#[test]
fn this_machine_is_not_asked_however_its_address_is_written() {
    let store = TestStore::new();
    let server = server();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "localhost",
        "localhost.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "me:secret@127.0.0.1",
    ] {
        let url = format!("http://{host}:{}/f", server.port);
        out_of_reach(download(&store, &Reach::default(), &url));
    }
    assert!(server.paths().is_empty());
    // The server would have answered.
    download(&store, &test_servers(), &server.url("/f")).unwrap();
}

#[test]
fn metadata_services_are_not_asked() {
    let store = TestStore::new();
    for host in [
        "169.254.169.254",
        "2852039166",
        "[fd00:ec2::254]",
        "100.100.100.200",
    ] {
        let url = format!("http://{host}/latest/meta-data/");
        out_of_reach(download(&store, &Reach::default(), &url));
    }
}

#[test]
fn a_redirection_leads_to_nothing_that_the_user_did_not_name() {
    let store = TestStore::new();
    let inside = server();
    let port = inside.port;
    let outside = Server::start(move |asked| {
        let host = asked.path.trim_start_matches('/');
        Answer::new(302, b"").with(&format!("Location: http://{host}:{port}/f"))
    });
    let named = format!("127.0.0.1:{}", outside.port).parse::<HostRule>();
    let reach = Reach::default().and(named);
    for host in ["127.0.0.1", "localhost", "[::1]", "0x7f.1"] {
        out_of_reach(download(&store, &reach, &outside.url(&format!("/{host}"))));
    }
    assert_eq!(outside.paths().len(), 4);
    assert!(inside.paths().is_empty());
    let file = download(&store, &test_servers(), &outside.url("/127.0.0.1")).unwrap();
    assert_eq!(file.size, 8);
}

#[test]
fn an_add_reaches_what_the_user_names_and_nothing_else() {
    let store = TestStore::new();
    let server = server();
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    let host = format!("127.0.0.1:{}", server.port);
    refused(run_plain(&store, &text), &host);
    let by_default = format!("FROM scratch\nARG AT={}\nADD $AT /f\n", server.url("/f"));
    refused(run_plain(&store, &by_default), &host);
    assert!(server.paths().is_empty());
    run(&store, &request(&store, &text)).unwrap();
}

#[test]
fn a_trigger_of_a_base_image_reaches_nothing_that_the_user_did_not_name() {
    let store = TestStore::new();
    let server = server();
    let base = format!("FROM scratch\nONBUILD ADD {} /f\n", server.url("/f"));
    let base = BuildRequest {
        tags: vec!["docker.io/library/base:1".to_owned()],
        ..request(&store, &base)
    };
    run(&store, &base).unwrap();
    let host = format!("127.0.0.1:{}", server.port);
    refused(run_plain(&store, "FROM base:1\n"), &host);
    assert!(server.paths().is_empty());
    run(&store, &request(&store, "FROM base:1\n")).unwrap();
    assert_eq!(server.paths(), ["/f"]);
}

#[test]
fn a_trigger_of_a_base_image_names_no_image_that_is_out_of_reach() {
    let store = TestStore::new();
    let server = server();
    let host = format!("127.0.0.1:{}", server.port);
    let base = format!("FROM scratch\nONBUILD COPY --from={host}/app:1 /f /f\n");
    let base = BuildRequest {
        tags: vec!["docker.io/library/base:1".to_owned()],
        ..request(&store, &base)
    };
    run(&store, &base).unwrap();
    refused(run_plain(&store, "FROM base:1\n"), &host);
    assert!(server.paths().is_empty());
}

#[test]
fn a_base_image_comes_from_a_local_registry_only_if_the_user_names_it() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(404, b"{}"));
    let host = format!("127.0.0.1:{}", server.port);
    for text in [
        format!("FROM {host}/app:1\n"),
        format!("ARG REGISTRY={host}\nFROM $REGISTRY/app:1\n"),
        format!("FROM scratch\nCOPY --from={host}/app:1 /a /a\n"),
    ] {
        refused(run_plain(&store, &text), &host);
    }
    assert!(server.paths().is_empty());
    // It was asked, and has no such image.
    let by_option = run(&store, &request(&store, &format!("FROM {host}/app:1\n")));
    let context = (
        "app".to_owned(),
        ImageSource::Named(format!("{host}/app:1")),
    );
    let by_context = BuildRequest {
        named_contexts: vec![context],
        reach: Reach::default(),
        ..request(&store, "FROM app\n")
    };
    for outcome in [by_option, run(&store, &by_context)] {
        let text = chain(&outcome.unwrap_err());
        assert!(text.contains("does not exist in registry"), "{text}");
    }
    assert_eq!(server.paths(), ["/v2/app/manifests/1"; 2]);
}

/// A registry that the user names, and that sends its clients on, or to a token server.
#[test]
fn a_registry_leads_to_nothing_that_the_user_did_not_name() {
    let store = TestStore::new();
    let inside = server();
    let port = inside.port;
    let registry = Server::start(move |asked| {
        let there = format!("http://127.0.0.1:{port}/x");
        if asked.path.contains("/token/") {
            let realm = format!("WWW-Authenticate: Bearer realm=\"{there}\",service=\"s\"");
            return Answer::new(401, b"{}").with(&realm);
        }
        Answer::new(307, b"").with(&format!("Location: {there}"))
    });
    let named = registry.name("x").replace("/x", "").parse::<HostRule>();
    let client = oci::http::ClientOptions::new(Reach::default().and(named));
    let options = PullOptions::new(client);
    for name in ["token/app:1", "blobs/app:1"] {
        let image = ImageSource::Named(registry.name(name));
        let text = chain(&find_with(&store, &image, &options).unwrap_err());
        let want = format!("--allow-host 127.0.0.1:{port}");
        assert!(text.contains(&want), "{text}");
    }
    // Neither is tried again.
    assert_eq!(registry.paths().len(), 2);
    assert!(inside.paths().is_empty());
    let image = ImageSource::Named(registry.name("token/app:1"));
    find_with(&store, &image, &support::options()).unwrap_err();
    assert!(!inside.paths().is_empty());
}

/// What `--allow-net` says, and no more.
fn allow_net(rules: &[String]) -> Reach {
    let policy = Policy {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..Policy::default()
    };
    let named = Vec::new();
    Reach { policy, named }
}

/// Neither name that is refused here is looked up.
#[test]
fn with_allow_net_an_add_reaches_nothing_else() {
    let store = TestStore::new();
    let server = Server::start(|asked| match asked.path.as_str() {
        "/f" => Answer::ok(b"named"),
        _ => Answer::new(302, b"").with("Location: http://other.example/f"),
    });
    let rules = [format!("127.0.0.1:{}", server.port)];
    let build = |url: &str| {
        let request = BuildRequest {
            reach: allow_net(&rules),
            ..request(&store, &format!("FROM scratch\nADD {url} /f\n"))
        };
        run(&store, &request)
    };
    for url in ["http://other.example/f", &server.url("/redirected")] {
        let error = build(url).unwrap_err();
        let text = chain(&error);
        assert_eq!(error.class(), Class::User, "{text}");
        assert!(
            text.contains("build with --allow-net other.example:80"),
            "{text}"
        );
    }
    assert_eq!(server.paths(), ["/redirected"]);
    build(&server.url("/f")).unwrap();
}

/// Nothing could be built without base images.
#[test]
fn allow_net_is_not_about_registries() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(404, b"{}"));
    let named = server.name("x").replace("/x", "").parse::<HostRule>();
    let request = BuildRequest {
        reach: allow_net(&["other.example".to_owned()]).and(named),
        ..request(&store, &format!("FROM {}\n", server.name("app:1")))
    };
    run(&store, &request).unwrap_err();
    assert_eq!(server.paths(), ["/v2/app/manifests/1"]);
}

#[test]
fn a_build_without_network_downloads_nothing() {
    let store = TestStore::new();
    let server = server();
    let offline = |text: &str| BuildRequest {
        network: StepNetwork::None,
        ..request(&store, text)
    };
    let text = format!("FROM scratch\nADD {} /f\n", server.url("/f"));
    let error = run(&store, &offline(&text)).unwrap_err();
    assert_eq!(error.class(), Class::User);
    assert!(
        chain(&error).contains("--network none"),
        "{}",
        chain(&error)
    );
    assert!(server.paths().is_empty());

    // What was downloaded before, and is named by its digest, needs no network.
    let sum = store::sha256(b"internal");
    let text = format!(
        "FROM scratch\nADD --checksum={sum} {} /f\n",
        server.url("/f")
    );
    run(&store, &offline(&text)).unwrap_err();
    run(&store, &request(&store, &text)).unwrap();
    run(&store, &offline(&text)).unwrap();
    assert_eq!(server.paths(), ["/f"]);
}

/// As in Docker, `--network` is about steps and not about images.
#[test]
fn a_build_without_network_still_pulls_images() {
    let store = TestStore::new();
    let server = Server::start(|_| Answer::new(404, b"{}"));
    let text = format!("FROM {}\n", server.name("app:1"));
    let offline = BuildRequest {
        network: StepNetwork::None,
        ..request(&store, &text)
    };
    run(&store, &offline).unwrap_err();
    assert_eq!(server.paths(), ["/v2/app/manifests/1"]);
}
