//! A guest that was taken over, agent and kernel included.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tests::attempts::Attempts;
use tests::guest_image::{self, More};
use tests::{Bench, Done, run};

use crate::hostile_image;

/// A stage whose steps a hostile guest carries out. It needs a layer to begin with.
const STAGE: &str = "FROM scratch\nCOPY seed /seed\n";

/// How long a build may take whose guest breaks the rules: two boots, since it gets a second VM, and the
/// time that a silent guest has. Emulated VMs are slow.
const BOUND: Duration = Duration::from_secs(180);

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("seed", "seed\n");
    bench
}

/// The command of a build in a hostile VM.
fn command(bench: &Bench, dockerfile: &str, args: &[&str]) -> Command {
    bench.write("Dockerfile", dockerfile);
    let mut command = bench.build_command(args);
    command.env("COFFERDAM_VM_IMAGE", hostile_image());
    command
}

/// A step that a hostile guest carries out.
fn step(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("RUN [\"hostile\", {}]\n", words.join(", "))
}

/// What the steps printed, without times and step numbers.
fn lines(done: &Done) -> Vec<&str> {
    let lines = done.stderr.lines();
    lines
        .filter_map(|line| line.strip_prefix('#')?.splitn(3, ' ').nth(2))
        .collect()
}

/// A hostile image that greets in this way.
fn greeting(bench: &Bench, greeting: &str) -> PathBuf {
    let to = bench.out().join(greeting);
    let more = More {
        cmdline: &format!("hostile.greeting={greeting}"),
        files: &[],
    };
    guest_image::copy(&hostile_image(), &to, more);
    to
}

/// A build by a guest that breaks a rule ends in time, with an error that is nobody else's, and leaves
/// nothing. `wanted` is in the error.
fn note_end(attempts: &mut Attempts, name: &str, bench: &Bench, command: Command, wanted: &str) {
    let begin = Instant::now();
    let done = run(command);
    let took = begin.elapsed();
    let clean = run(bench.cofferdam(["store", "check"])).status == Some(0);
    let alone = bench.monitors().is_empty();
    let contained = done.status == Some(125) && clean && alone && took < BOUND;
    let says = done.stderr.contains(wanted) && !done.stderr.contains("panicked");
    let details = format!("after {took:?}, clean: {clean}, alone: {alone}: {done:?}");
    attempts.note(name, contained && says, true, &details);
}

/// Attempts of which each costs the guest its VM: all of them with `COFFERDAM_EVERY_ATTEMPT`, else every
/// third one, which has to do for every run.
fn some<T>(attempts: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    let every = std::env::var_os("COFFERDAM_EVERY_ATTEMPT").is_some();
    attempts.into_iter().step_by(if every { 1 } else { 3 })
}

/// The control of all that [`note_end`] takes note of: the same guest without the attack.
fn honest(bench: &Bench) {
    let steps = [step(&["say", "hello"]), step(&["exit", "0"])].concat();
    let done = run(command(bench, &format!("{STAGE}{steps}"), &["--no-cache"]));
    assert!(lines(&done.expect_status(0)).contains(&"hello"));
    bench.check_clean();
}

#[test]
fn a_hostile_guest_that_greets_wrongly_is_not_listened_to() {
    let bench = bench();
    let mut attempts = Attempts::of("greetings");
    for (name, wanted) in [
        ("nonce", "unexpected VM"),
        ("protocol", "protocol 65535"),
        ("garbage", "not a frame"),
        ("reply", "Reply"),
        ("long", "too long"),
    ] {
        let mut command = command(&bench, &format!("{STAGE}{}", step(&["say", "no"])), &[]);
        command.env("COFFERDAM_VM_IMAGE", greeting(&bench, name));
        note_end(&mut attempts, name, &bench, command, wanted);
    }
    honest(&bench);
    attempts.finish();
}

#[test]
fn a_hostile_guest_that_breaks_the_protocol_is_given_up() {
    let bench = bench();
    let mut attempts = Attempts::of("protocol");
    for (name, wanted) in some([
        ("garbage", "not a frame"),
        ("long", "too long"),
        ("kind", "unknown kind"),
        ("checksum", "checksum"),
        ("request", "Request frame"),
        ("unasked", "request 18446744073709551615"),
        ("other-reply", "the reply to Run is Exported"),
        ("twice", "request"),
        ("pong", "heartbeat"),
    ]) {
        let dockerfile = format!("{STAGE}{}", step(&["frame", name]));
        note_end(
            &mut attempts,
            name,
            &bench,
            command(&bench, &dockerfile, &[]),
            wanted,
        );
    }
    for (order, name) in some([("c", "panic"), ("b", "reboot"), ("o", "power-off")]) {
        let dockerfile = format!("{STAGE}{}", step(&["order", order]));
        note_end(
            &mut attempts,
            name,
            &bench,
            command(&bench, &dockerfile, &[]),
            "VM",
        );
    }
    honest(&bench);
    attempts.finish();
}

#[test]
fn a_hostile_guest_that_breaks_transfers_or_flows_is_given_up() {
    let bench = bench();
    let mut attempts = Attempts::of("transfers");
    for (what, name, wanted) in some([
        ("attach", "nonce", "nonce"),
        ("attach", "unknown", "transfer"),
        ("attach", "control", "Reply"),
        ("break-flows", "reuse", "flow"),
        ("break-flows", "backwards", "flow"),
        ("break-flows", "unknown", "flow"),
        ("break-flows", "early", "flow"),
        ("break-flows", "flood", "flow"),
        ("break-flows", "misplaced", "Ping"),
        ("break-flows", "garbage", "not a frame"),
    ]) {
        let dockerfile = format!("{STAGE}{}", step(&[what, name]));
        let name = format!("{what}-{name}");
        note_end(
            &mut attempts,
            &name,
            &bench,
            command(&bench, &dockerfile, &[]),
            wanted,
        );
    }
    // A second connection for what has one is shut, and disturbs nobody.
    let twice = format!("{STAGE}{}", step(&["attach", "twice"]));
    let done = run(command(&bench, &twice, &[]));
    let shut = lines(&done).contains(&"attached, then 0 bytes");
    attempts.note(
        "attach-twice",
        shut,
        done.status == Some(0),
        &format!("{done:?}"),
    );
    honest(&bench);
    attempts.finish();
}

#[test]
fn a_hostile_guest_gets_no_layer_out_that_is_none() {
    let bench = bench();
    let mut attempts = Attempts::of("layers");
    let escaped = Path::new("/tmp/cofferdam-escaped");
    for name in some([
        "escape",
        "through",
        "hard-link",
        "garbage",
        "endless",
        "short",
        "cut",
        "checksum",
        "root",
    ]) {
        let dockerfile = format!("{STAGE}{}", step(&["lie", name]));
        let out = bench.out().join(name);
        let output = format!("type=local,dest={}", out.display());
        let command = command(&bench, &dockerfile, &["-o", &output, "--step-disk", "64m"]);
        let begin = Instant::now();
        let done = run(command);
        let clean = run(bench.cofferdam(["store", "check"])).status == Some(0);
        let ended = matches!(done.status, Some(1 | 124 | 125)) && !out.exists();
        // A hard link may name a file of another layer, so it is no lie before it is exported.
        let nowhere = name == "hard-link" && !out.join("shadow").exists();
        let kept = clean && !escaped.exists() && begin.elapsed() < BOUND;
        let contained = (ended || nowhere) && kept && !done.stderr.contains("panicked");
        attempts.note(name, contained, true, &format!("{done:?}"));
    }
    // The control: an honest layer of the same guest is kept.
    let out = bench.out().join("honest");
    let forged = step(&["make", "etc/made", "by the guest"]);
    let output = format!("type=local,dest={}", out.display());
    let done = run(command(
        &bench,
        &format!("{STAGE}{forged}"),
        &["-o", &output],
    ));
    let _done = done.expect_status(0);
    assert_eq!(
        fs::read_to_string(out.join("etc/made")).unwrap(),
        "by the guest"
    );
    bench.check_clean();
    attempts.finish();
}

#[test]
fn a_hostile_guest_leaves_nothing_to_other_builds() {
    let bench = bench();
    let mut attempts = Attempts::of("other-builds");
    // The disk of a VM is no other's.
    let mark = [
        step(&["mark", "a mark of the guest"]),
        step(&["find", "a mark of the guest"]),
    ]
    .concat();
    let marked = run(command(&bench, &format!("{STAGE}{mark}"), &["--no-cache"]));
    let later = format!("{STAGE}{}", step(&["find", "a mark of the guest"]));
    let searched = run(command(&bench, &later, &["--no-cache"]));
    let contained = lines(&searched).contains(&"0 marks found");
    let control = lines(&marked).contains(&"64 marks found");
    attempts.note(
        "disk",
        contained,
        control,
        &format!("{marked:?} {searched:?}"),
    );

    // What it forged under the key of an innocent step is believed where its build is trusted, and only
    // there.
    let begin = "FROM scratch\nCOPY busybox /bin/busybox\n";
    let touch = "RUN [\"/bin/busybox\", \"touch\", \"/innocent\"]\n";
    let innocent = format!("{begin}{touch}");
    // The attack is in a stage of its own, so that what runs after it has the key of an innocent step.
    let attack = [step(&["forge", "poison", "x"]), step(&["say", "forged"])].concat();
    let forged = format!(
        "FROM scratch AS evil\nCOPY seed /seed\n{attack}FROM scratch AS good\n\
         COPY busybox /bin/busybox\n{touch}FROM scratch\n\
         COPY --from=evil /poison /evil\nCOPY --from=good /poison /good\n"
    );
    let poisoned = run(command(
        &bench,
        &forged,
        &["--trust-domain", "owned", "--jobs", "1"],
    ));
    let _poisoned = poisoned.expect_status(0);
    let tree = |domain: &str| {
        let out = bench.out().join(domain);
        let output = format!("type=local,dest={}", out.display());
        let done = bench.build(&innocent, &["-o", &output, "--trust-domain", domain]);
        let _done = done.expect_status(0);
        (out.join("poison").exists(), out.join("innocent").exists())
    };
    let (trusting, elsewhere) = (tree("owned"), tree("innocent"));
    attempts.note(
        "cache",
        elsewhere == (false, true),
        trusting == (true, false),
        &format!("elsewhere: {elsewhere:?}, in the same domain: {trusting:?}"),
    );
    bench.check_clean();
    attempts.finish();
}

#[test]
fn a_hostile_guest_costs_no_more_than_a_limit() {
    let bench = bench();
    let mut attempts = Attempts::of("limits");
    let steps = [
        step(&["escapes"]),
        step(&["console", "4"]),
        step(&["connections", "2000"]),
        step(&["say", "still served"]),
    ];
    let done = run(command(&bench, &format!("{STAGE}{}", steps.concat()), &[]));
    let served = lines(&done).contains(&"still served") && done.status == Some(0);
    let raw = [
        '\u{1b}', '\u{7}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{8}', '\r',
    ];
    let visible = !done.stderr.contains(raw) && done.stderr.contains("seen");
    attempts.note("escapes-in-output", visible, served, &done.stderr);
    let size: u64 = size_of(&bench.store());
    attempts.note(
        "console",
        size < 64 << 20,
        served,
        &format!("{size} bytes: {}", done.stderr),
    );
    attempts.note(
        "connections",
        served,
        done.stderr.contains("of 2000 connections"),
        &done.stderr,
    );

    for status in ["-5", "2147483647", "-2147483648"] {
        let done = run(command(
            &bench,
            &format!("{STAGE}{}", step(&["exit", status])),
            &[],
        ));
        let contained = done.status == Some(1) && !done.stderr.contains("panicked");
        attempts.note(
            &format!("exit-{status}"),
            contained,
            served,
            &format!("{done:?}"),
        );
    }
    let begin = Instant::now();
    let ignored = format!("{STAGE}{}", step(&["ignore"]));
    let done = run(command(&bench, &ignored, &["--step-timeout", "3s"]));
    let in_time = begin.elapsed() < BOUND && done.status == Some(124);
    attempts.note("ignores-its-end", in_time, served, &format!("{done:?}"));
    bench.check_clean();
    attempts.finish();
}

/// Bytes of all files below a directory.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let facts = entry.metadata().unwrap();
            if facts.is_dir() {
                size_of(&entry.path())
            } else {
                facts.len()
            }
        })
        .sum()
}

/// Addresses that are no guest's business, all of them of this machine here: in a network of its own, in
/// which a server listens on each of them. `{}` is the port.
const ADDRESSES: &[&str] = &[
    "tcp:127.0.0.1:{}",
    "tcp:127.9.8.7:{}",
    "tcp:10.0.2.2:{}",
    "tcp:0.0.0.0:{}",
    "tcp:169.254.169.254:{}",
    "tcp:169.254.7.7:{}",
    "tcp:10.9.9.9:{}",
    "tcp:[::1]:{}",
    "tcp:[::]:{}",
    "tcp:[::ffff:127.0.0.1]:{}",
    "tcp:[fd00:ec2::254]:{}",
    "tcp:[fd77::7]:{}",
    "udp:127.0.0.1:{}",
    "udp:[::1]:{}",
    "udp:169.254.169.254:{}",
    "udp:224.0.0.1:{}",
    "udp:255.255.255.255:{}",
    "udp:[ff02::1]:{}",
];

/// Addresses of [`ADDRESSES`] that no option opens: nothing is there that a step could mean.
const NEVER: &[&str] = &["224.0.0.1", "255.255.255.255", "[ff02::1]"];

/// Runs this in a network of its own, in which a server counts who connects. Gives it the port.
fn in_a_network<T: Send>(work: impl FnOnce(u16, &AtomicUsize) -> T + Send) -> T {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let addresses = ["169.254.169.254/32", "169.254.7.7/32", "10.9.9.9/32"];
        let more = ["fd00:ec2::254/128", "fd77::7/128"];
        let ip = |words: &[&str]| {
            let done = Command::new("busybox").arg("ip").args(words).status();
            assert!(done.unwrap().success(), "{words:?}");
        };
        ip(&["link", "set", "lo", "up"]);
        for address in addresses.iter().chain(&more) {
            ip(&["addr", "add", address, "dev", "lo"]);
        }
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        work(port, &asked)
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
#[ignore = "needs root"]
fn as_root_a_hostile_guest_reaches_nothing_of_the_host() {
    let bench = bench();
    let attempts = Mutex::new(Attempts::of("network"));
    in_a_network(|port, asked| {
        let targets: Vec<String> = ADDRESSES
            .iter()
            .map(|target| target.replace("{}", &port.to_string()))
            .collect();
        let mut words = vec!["flows"];
        words.extend(targets.iter().map(String::as_str));
        let flows = format!("{STAGE}{}", step(&words));
        let denied = run(command(&bench, &flows, &["--no-cache"]));
        let reached = asked.load(Ordering::SeqCst);
        let mut options = Vec::new();
        for target in &targets {
            let (_, place) = target.split_once(':').unwrap();
            options.extend(["--allow-net", place]);
        }
        options.push("--no-cache");
        let allowed = run(command(&bench, &flows, &options));
        let mut attempts = attempts.lock().unwrap();
        for target in &targets {
            let is = |done: &Done, word: &str| {
                lines(done)
                    .iter()
                    .any(|line| line.starts_with(&format!("{target} {word}")))
            };
            let never = NEVER
                .iter()
                .any(|address| target.contains(&format!(":{address}:")));
            let contained = is(&denied, "shut (Denied)") && reached == 0;
            let control = is(&allowed, if never { "shut" } else { "open" });
            let details = format!(
                "{reached} connections\n{}\n{}",
                denied.stderr, allowed.stderr
            );
            attempts.note(target, contained, control, &details);
        }
    });
    bench.check_clean();
    attempts.into_inner().unwrap().finish();
}

#[test]
fn a_hostile_guest_finds_no_way_out_but_one() {
    let bench = bench();
    let mut attempts = Attempts::of("ways-out");
    let ports = [
        "1",
        "22",
        "53",
        "80",
        "111",
        "1024",
        "2049",
        "3324",
        "3326",
        "9999",
        "4294967294",
    ];
    let contexts = ["0", "1", "2", "3", "4", "4294967294"];
    let with = |word: &'static str, rest: &[&'static str]| step(&[&[word], rest].concat());
    let steps = [
        with("ports", &ports),
        step(&["ports", "3325"]),
        with("contexts", &contexts),
        step(&["devices"]),
    ];
    // Without network, a step is offered no flows.
    let done = run(command(
        &bench,
        &format!("{STAGE}{}", steps.concat()),
        &["--network", "none"],
    ));
    let has = |line: &str| lines(&done).iter().any(|is| is.starts_with(line));
    for port in ports {
        attempts.note(
            &format!("port-{port}"),
            has(&format!("{port} shut")),
            has("3325 open"),
            &done.stderr,
        );
    }
    for context in contexts.into_iter().filter(|context| *context != "2") {
        let shut = has(&format!("{context} shut"));
        attempts.note(
            &format!("context-{context}"),
            shut,
            has("2 open"),
            &done.stderr,
        );
    }
    note_devices(&mut attempts, &done);
    let _done = done.expect_status(0);
    bench.check_clean();
    attempts.finish();
}

/// The VM has no device but those that a build needs.
fn note_devices(attempts: &mut Attempts, done: &Done) {
    let has = |line: &str| lines(done).iter().any(|is| is.starts_with(line));
    let network = has("network: lo") && !has("network: lo ");
    attempts.note("network-device", network, has("disks: "), &done.stderr);
    attempts.note(
        "second-disk",
        has("disks: vda") && !has("disks: vda "),
        true,
        &done.stderr,
    );
    // 0x02 is a network controller, 0x03 a display, 0x0c03 USB.
    let none = ["0x02", "0x03", "0x0c03"]
        .iter()
        .all(|class| !done.stderr.contains(class));
    attempts.note("needless-devices", none, has("classes: 0x"), &done.stderr);
}
