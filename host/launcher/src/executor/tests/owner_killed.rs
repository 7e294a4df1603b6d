//! What happens to a real VM when its owner is killed or stopped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use store::{OpenOptions, Store};

use super::{build_in, busybox};

const DIR: &str = "COFFERDAM_TEST_OWNER_OF_A_VM";

/// Not a test of its own: a process with a VM, to be killed or stopped.
#[test]
#[ignore = "a process of other tests"]
#[expect(
    clippy::print_stdout,
    reason = "the other process is talked to through it"
)]
fn helper_owner() {
    let dir = std::env::var_os(DIR).unwrap();
    let build = build_in(Path::new(&dir));
    build.run(&[build.base], "echo ready").unwrap();
    println!("\nready {}", build.store.scratch().display());
    let (_, said) = build.run(&[build.base], "sleep 8; echo done").unwrap();
    println!("said {said}");
    build.end();
    println!("ended");
}

/// Starts the owner; returns it with its scratch directory when its VM runs.
fn start(dir: &Path) -> (Child, PathBuf, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "executor::tests::owner_killed::helper_owner",
            "--ignored",
            "--nocapture",
        ])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let scratch = lines
        .find_map(|line| line.strip_prefix("ready ").map(PathBuf::from))
        .unwrap();
    (child, scratch, lines)
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
#[ignore = "needs a VM"]
fn when_the_owner_is_killed_its_vm_ends_and_the_next_process_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut owner, scratch, _lines) = start(dir.path());
    let lock = scratch.join("vm-1/lock");
    assert!(
        File::open(&lock).unwrap().try_lock().is_err(),
        "the monitor lives"
    );
    signal(&owner, "KILL");
    owner.wait().unwrap();
    let began = Instant::now();
    while File::open(&lock).unwrap().try_lock().is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the monitor outlives its owner"
        );
        thread::sleep(Duration::from_millis(10));
    }
    let options = OpenOptions {
        command: "the next".into(),
        read_only: false,
    };
    let store = Store::open(&dir.path().join("store"), &options).unwrap();
    assert!(!scratch.exists(), "what it left was removed");
    let report = store.check(false).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    busybox(&store);
    store.close().unwrap();
    let build = build_in(dir.path());
    build.run(&[build.base], "echo again").unwrap();
    build.end();
}

#[test]
#[ignore = "needs a VM"]
fn an_owner_that_was_stopped_for_a_while_continues_with_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let (mut owner, _, mut lines) = start(dir.path());
    signal(&owner, "STOP");
    thread::sleep(Duration::from_secs(5));
    signal(&owner, "CONT");
    assert!(lines.any(|line| line == "said done"));
    assert!(lines.any(|line| line == "ended"));
    assert!(owner.wait().unwrap().success());
}
