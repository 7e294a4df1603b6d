//! The network of steps, in whole builds: what they reach, what they do not, and what is recorded.
//!
//! The servers are this test's own, on the loopback of this machine, which a step reaches as 10.0.2.2
//! where `--allow-net` names it, or on another machine ([`Elsewhere`]). The busybox of the steps is
//! Debian's static one, whose `wget` crashes with `-T`, in a step and elsewhere.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tests::elsewhere::{ADDRESSES, ANSWER, Elsewhere};
use tests::guest_image::{self, More};
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

/// UDP, IPv4 and IPv6; each end of a connection goes on after the other one has ended.
#[test]
#[ignore = "needs root"]
fn as_root_a_step_reaches_another_machine_by_udp_and_tcp_of_both_kinds() {
    let bench = Bench::new();
    let port = Elsewhere::connect().port;
    let [v4, v6] = ADDRESSES;
    let answer = Ipv4Addr::from(ANSWER);
    let dockerfile = format!(
        "{BUSYBOX}RUN nslookup -type=a any.example {v4} | grep 'Address: {answer}' \\\n\
 && for to in {v4} {v6}; do \\\n\
 test \"$(dd if=/dev/zero bs=1000 count=300 | nc $to {port})\" = 300000 || exit 1; done \\\n\
 && test \"$(wget -q -O - http://{v4}:{port}/)\" = http\n"
    );
    let _built = bench.build(&dockerfile, &[]).expect_status(0);
    let connections = connections(&bench);
    let to = |address: &str, protocol: &str, port: u16| {
        let is =
            |c: &&Value| c["address"] == address && c["protocol"] == protocol && c["port"] == port;
        connections.iter().filter(is).count()
    };
    let counts = (to(v4, "udp", 53), to(v4, "tcp", port), to(v6, "tcp", port));
    assert_eq!(counts, (1, 2, 1), "{connections:?}");
    bench.check_clean();
}

/// How many connections are open at once. On the agent's side a test without a VM opens more.
const AT_ONCE: usize = 300;

#[test]
fn hundreds_of_connections_are_open_at_once_and_all_are_told() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        // Nobody is answered before the last one has come.
        let streams = listener.incoming().take(AT_ONCE);
        let streams: Vec<TcpStream> = streams.map(|stream| stream.unwrap()).collect();
        for mut stream in streams {
            stream.write_all(b"all\n").unwrap();
        }
    });
    let dockerfile = format!(
        "{BUSYBOX}RUN n=0; while [ $n -lt {AT_ONCE} ]; do nc 10.0.2.2 {port} </dev/null >>/got & n=$((n+1)); done; wait; \\\n\
 test $(grep -c '^all$' /got) = {AT_ONCE}; rm /got\n"
    );
    let _built = bench
        .build(&dockerfile, &["--allow-net", "localhost"])
        .expect_status(0);
    serving.join().unwrap();
    let connections = connections(&bench);
    let allowed = connections.iter().filter(|c| c["verdict"] == "allowed");
    assert_eq!(allowed.count(), AT_ONCE);
    bench.check_clean();
}

/// Kills the process `net` while a step sleeps for an hour.
const KILLER: &str = r#"#!/busybox sh
/busybox mkdir /seen
/busybox mount -t proc none /seen
/busybox mount -t devtmpfs none /dev
while /busybox sleep 1; do
  step= net=
  for p in /seen/[0-9]*; do
    case "$(/busybox tr '\0' ' ' <$p/cmdline)" in
      "sleep 3600 ") step=yes ;;
      "net ") net=${p#/seen/} ;;
    esac
  done
  if [ $step ]; then kill -9 $net; fi
done </dev/null >/dev/null 2>&1 &
exec /init
"#;

/// The step fails with its network, or its VM ends before that is told; then the step runs again in
/// another one, which ends alike.
#[test]
fn the_end_of_the_process_net_is_a_failure_of_the_host_and_ends_the_build_at_once() {
    let bench = Bench::new();
    let image = bench.out().join("image");
    let honest = PathBuf::from(std::env::var_os("COFFERDAM_VM_IMAGE").unwrap());
    let busybox = fs::read("/bin/busybox").unwrap();
    let more = More {
        cmdline: "rdinit=/killer",
        files: &[("busybox", &busybox), ("killer", KILLER.as_bytes())],
    };
    guest_image::copy(&honest, &image, more);
    bench.write("Dockerfile", format!("{BUSYBOX}RUN sleep 3600\n"));
    let mut command = bench.build_command(&[]);
    command.env("COFFERDAM_VM_IMAGE", &image);
    let done = run(command).expect_status(125);
    let reasons = [
        "the network of the step was lost",
        "the process net has ended: Killed(SIGKILL)",
    ];
    let told = reasons.iter().any(|reason| done.stderr.contains(reason));
    assert!(told, "{}", done.stderr);
    bench.check_clean();
}
