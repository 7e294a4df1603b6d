//! The network of steps, in whole builds: what they reach, what they do not, and what is recorded.
//!
//! The servers are this test's own, on the loopback of this machine, which a step reaches as 10.0.2.2
//! where `--allow-net` names it. The busybox in them is linked statically, and of its programs only `nc`
//! and `nslookup` work without the libraries that the C library loads for the others.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tests::{BUSYBOX, Bench, run};

/// A server that gives this body to whoever connects.
struct Server {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn of(body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, body) = (Arc::clone(&asked), Arc::new(body));
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (mut stream, body) = (stream.unwrap(), Arc::clone(&body));
                // The other end may be gone already.
                thread::spawn(move || drop(stream.write_all(&body)));
            }
        });
        Self { port, asked }
    }

    fn was_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > 0
    }
}

/// The connections of the last build in its history.
fn connections(bench: &Bench) -> Vec<Value> {
    let shown = run(bench.cofferdam(["history", "inspect"])).expect_status(0);
    let object: Value = serde_json::from_str(&shown.stdout).unwrap();
    object["connections"].as_array().unwrap().clone()
}

#[test]
fn a_step_reaches_this_machine_where_allow_net_says_so_and_the_history_tells() {
    let bench = Bench::new();
    let (open, shut) = (
        Server::of(b"hello\n".to_vec()),
        Server::of(b"no\n".to_vec()),
    );
    let dockerfile = format!(
        "{BUSYBOX}RUN test \"$(nc -w 20 10.0.2.2 {0} </dev/null)\" = hello \\\n\
 && nslookup -type=a host.docker.internal | grep -q 'Address: 10.0.2.2' \\\n\
 && grep -q '^10.0.2.2.builder$' /etc/hosts \\\n\
 && ! nc -w 20 10.0.2.2 {1} </dev/null\n",
        open.port, shut.port
    );
    let allowed = format!("localhost:{}", open.port);
    let args = [
        "--allow-net",
        &allowed,
        "--add-host",
        "builder:host-gateway",
    ];
    let done = bench.build(&dockerfile, &args).expect_status(0);
    done.says(&[
        &format!(
            "the connection to 127.0.0.1:{} (host.docker.internal) is denied",
            shut.port
        ),
        &format!("--allow-net localhost:{}", shut.port),
    ]);
    assert!(!shut.was_asked());
    let connections = connections(&bench);
    let with = |port: u16, verdict: &str| {
        let is = |c: &&Value| c["port"] == port && c["verdict"] == verdict;
        connections.iter().filter(is).count()
    };
    assert_eq!(
        (with(open.port, "allowed"), with(shut.port, "denied")),
        (1, 1)
    );
    let first = connections
        .iter()
        .find(|c| c["verdict"] == "allowed")
        .unwrap();
    assert_eq!(first["address"], "127.0.0.1");
    assert_eq!(first["name"], "host.docker.internal");
    assert!(first["received"].as_u64().unwrap() >= 6, "{first}");
    let text = run(bench.cofferdam(["history", "inspect", "--format", "table"])).expect_status(0);
    assert!(
        text.stdout.contains("host.docker.internal"),
        "{}",
        text.stdout
    );
    bench.check_clean();
}

#[test]
fn without_network_a_step_reaches_nothing_at_all() {
    let bench = Bench::new();
    let server = Server::of(b"no\n".to_vec());
    let dockerfile = format!(
        "{BUSYBOX}RUN test \"$(ls /sys/class/net)\" = lo && ! nc -w 5 10.0.2.2 {} </dev/null\n",
        server.port
    );
    let args = ["--network", "none", "--allow-net", "localhost"];
    let _built = bench.build(&dockerfile, &args).expect_status(0);
    assert!(!server.was_asked());
    assert!(connections(&bench).is_empty());
    bench.check_clean();
}

#[test]
fn by_default_a_step_reaches_neither_this_machine_nor_metadata_and_is_told() {
    let bench = Bench::new();
    let server = Server::of(b"no\n".to_vec());
    let port = server.port;
    let dockerfile = format!(
        "{BUSYBOX}RUN for to in \"10.0.2.2 {port}\" \"169.254.169.254 80\" \"169.254.1.1 80\" \"224.0.0.1 80\"; do \\\n\
 if nc -w 20 $to </dev/null; then exit 1; fi; done\n"
    );
    let done = bench.build(&dockerfile, &[]).expect_status(0);
    done.says(&[
        &format!("--allow-net localhost:{port} --allow-net '*'"),
        "169.254.169.254:80 is denied: it is an address of a cloud's metadata service",
        "169.254.1.1:80 is denied",
    ]);
    assert!(!server.was_asked());
    assert!(connections(&bench).iter().all(|c| c["verdict"] == "denied"));
    bench.check_clean();
}

#[test]
fn with_allow_net_other_names_do_not_resolve() {
    let bench = Bench::new();
    let dockerfile = format!("{BUSYBOX}RUN ! nslookup secret.example.com\n");
    let args = ["--allow-net", "deb.debian.org"];
    let done = bench.build(&dockerfile, &args).expect_status(0);
    done.says(&[
        "the name secret.example.com is not resolved",
        "--allow-net secret.example.com",
    ]);
    let found = connections(&bench);
    assert!(
        found
            .iter()
            .any(|c| c["name"] == "secret.example.com" && c["protocol"] == "dns")
    );
    bench.check_clean();
}

#[test]
fn what_a_step_downloads_arrives_whole_on_many_connections_at_once() {
    let bench = Bench::new();
    let body: Vec<u8> = (0..4_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    bench.write("body", &body);
    let server = Server::of(body);
    let dockerfile = format!(
        "{BUSYBOX}COPY body /\nRUN for n in 1 2 3 4; do nc -w 60 10.0.2.2 {} </dev/null >/got.$n & done; wait; \\\n\
 for n in 1 2 3 4; do cmp /body /got.$n || exit 1; done; rm /got.*\n",
        server.port
    );
    let _built = bench
        .build(&dockerfile, &["--allow-net", "localhost"])
        .expect_status(0);
    let received: u64 = connections(&bench)
        .iter()
        .filter_map(|c| c["received"].as_u64())
        .sum();
    assert_eq!(received, 16 << 20);
    bench.check_clean();
}
