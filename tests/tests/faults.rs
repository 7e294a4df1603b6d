//! Builds in which something fails: a clear error, the right exit status, nothing lost and nothing
//! left over.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::programs::{Abi, syscall};
use tests::{BUSYBOX, Bench, finish, run};

/// A Dockerfile whose last step never ends.
fn endless() -> String {
    format!("{BUSYBOX}RUN echo running-now; while true; do sleep 1; done\n")
}

/// Starts a build in a process group of its own and waits until its step runs.
fn start_endless(bench: &Bench) -> (std::process::Child, Command) {
    bench.write("Dockerfile", endless());
    let log = bench.out().join("progress");
    let mut command = bench.build_command(&[]);
    command
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap())
        .process_group(0);
    let child = command.spawn().unwrap();
    bench.until("the step runs", || {
        fs::read_to_string(&log)
            .unwrap()
            .lines()
            .any(|l| l.ends_with(" running-now"))
    });
    (child, command)
}

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

#[test]
fn killing_the_builder_leaves_no_vm_and_the_next_build_works() {
    let bench = Bench::new();
    let (mut child, _) = start_endless(&bench);
    assert_eq!(bench.monitors().len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.until("the VM is gone", || bench.monitors().is_empty());
    let list = run(bench.cofferdam(["history"])).expect_status(0);
    assert!(list.stdout.contains(" interrupted "), "{list:?}");
    let _next = bench
        .build(&format!("{BUSYBOX}RUN echo fine >/fine\n"), &[])
        .expect_status(0);
    bench.check_clean();
}

#[test]
fn an_interrupt_ends_the_build_with_130_and_leaves_nothing() {
    let bench = Bench::new();
    let (child, command) = start_endless(&bench);
    kill(pid(&child), Signal::SIGINT).unwrap();
    let done = finish(child, &command);
    assert_eq!(
        done.status,
        Some(130),
        "{}",
        fs::read_to_string(bench.out().join("progress")).unwrap()
    );
    bench.check_clean();
}

#[test]
fn two_signals_at_once_are_one_and_the_build_counts_as_cancelled() {
    let bench = Bench::new();
    let (child, command) = start_endless(&bench);
    // Both arrive before the build can react to the first, as those of `timeout` do.
    for signal in [
        Signal::SIGSTOP,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGCONT,
    ] {
        kill(pid(&child), signal).unwrap();
    }
    assert_eq!(finish(child, &command).status, Some(130));
    bench.until("the VM is gone", || bench.monitors().is_empty());
    let list = run(bench.cofferdam(["history"])).expect_status(0);
    assert!(list.stdout.contains(" cancelled "), "{list:?}");
    bench.check_clean();
}

#[test]
fn a_second_signal_ends_the_build_at_once_and_leaves_nothing() {
    let bench = Bench::new();
    let (mut child, command) = start_endless(&bench);
    // Until one of them comes after the first one was handled; or the build ends in order before.
    bench.until("the build ends", || {
        kill(pid(&child), Signal::SIGTERM).ok();
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(finish(child, &command).status, Some(130));
    bench.until("the VM is gone", || bench.monitors().is_empty());
    let list = run(bench.cofferdam(["history"])).expect_status(0);
    assert!(list.stdout.contains(" cancelled "), "{list:?}");
    // The next command cleans up, and waits a second for the end of the VM.
    bench.until("everything is cleaned up", || {
        run(bench.cofferdam(["store", "check"])).status == Some(0)
    });
    bench.check_clean();
}

#[test]
fn a_monitor_that_dies_is_the_hosts_failure_and_ends_the_build() {
    let bench = Bench::new();
    bench.write("Dockerfile", endless());
    let (child, command) = start_endless(&bench);
    // The step is tried once more in a new VM; that one dies too.
    for _ in 0..2 {
        bench.until("a VM runs", || !bench.monitors().is_empty());
        for monitor in bench.monitors() {
            kill(
                Pid::from_raw(i32::try_from(monitor).unwrap()),
                Signal::SIGKILL,
            )
            .ok();
            bench.until("that VM is gone", || !bench.monitors().contains(&monitor));
        }
    }
    let done = finish(child, &command);
    let progress = fs::read_to_string(bench.out().join("progress")).unwrap();
    assert_eq!(done.status, Some(125), "{progress}");
    assert!(progress.contains("VM"), "{progress}");
    bench.check_clean();
}

#[test]
fn a_failing_step_names_its_line_its_status_and_its_log() {
    let bench = Bench::new();
    let done = bench
        .build(
            &format!("{BUSYBOX}\nRUN echo about to fail && exit 7\n"),
            &[],
        )
        .expect_status(1);
    done.says(&[
        "Dockerfile:5",
        ">>> RUN echo about to fail && exit 7",
        "exit code: 7",
        "about to fail",
        ".log",
    ]);
    let logs = run(bench.cofferdam(["history", "logs"])).expect_status(0);
    for line in ["RUN echo about to fail && exit 7", " about to fail"] {
        assert!(
            logs.stdout.lines().any(|found| found.ends_with(line)),
            "{logs:?}"
        );
    }
    let list = run(bench.cofferdam(["history"])).expect_status(0);
    assert!(list.stdout.contains(" user "), "{list:?}");
    bench.check_clean();
}

#[test]
fn a_daemon_that_a_step_leaves_behind_is_dead_before_the_layer_is_exported() {
    let bench = Bench::new();
    let dockerfile = format!(
        "{BUSYBOX}RUN (setsid sh -c 'while true; do echo x >>/late; sleep 0.01; done' &) ; sleep 0.3; echo end\n\
RUN a=$(wc -c </late); sleep 1; b=$(wc -c </late); echo \"$a $b\"; test $a = $b\n"
    );
    let _built = bench.build(&dockerfile, &[]).expect_status(0);
    bench.check_clean();
}

#[test]
fn a_step_reaches_neither_devices_nor_vsock_nor_the_hosts_loopback() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let dockerfile = format!(
        "{BUSYBOX}RUN test ! -e /dev/vda && ! (mknod /disk b 254 0 && head -c 1 /disk) && ! ls /dev/vsock \\\n\
 && ! nc -w 5 10.0.2.2 {port} </dev/null && ! mount -t tmpfs none /bin && test -z \"$(head -c 1 /proc/kcore)\" \\\n\
 && test \"$(cat /proc/sys/kernel/hostname)\" = buildkitsandbox\n"
    );
    let _built = bench.build(&dockerfile, &[]).expect_status(0);
    assert!(
        listener.accept().is_err(),
        "a step connected to the host's loopback"
    );
    bench.check_clean();
}

#[test]
fn a_step_gets_no_socket_to_the_host_with_either_driver() {
    const SOCK_STREAM: u32 = 1;
    const AF_UNIX: u32 = 1;
    const AF_VSOCK: u32 = 40;
    // socket(2), and the call of i386 that makes all of them, with arguments that cannot be read.
    let socket = |family| syscall(Abi::X86_64, 41, &[family, SOCK_STREAM]);
    let socketcall = syscall(Abi::I386, 102, &[1, 0]);
    for transport in ["ring", "kernel"] {
        let bench = Bench::on(transport);
        bench.write("vsock", socket(AF_VSOCK));
        bench.write("unix", socket(AF_UNIX));
        bench.write("old", &socketcall);
        // The number of the error is EPERM, or EFAULT where the kernel has no vsock.
        let old = if transport == "ring" { 14 } else { 1 };
        let text = format!(
            "COPY --chmod=755 vsock unix old /\nRUN r() {{ $1; echo $?; }}; \\\n\
             test $(r /vsock) = 1 && test $(r /unix) -ge 250 && test $(r /old) = {old} && ! ls /dev/vsock\n"
        );
        let dockerfile = format!("{BUSYBOX}{text}");
        let _built = bench.build(&dockerfile, &[]).expect_status(0);
        bench.check_clean();
    }
}

#[test]
fn two_builds_of_the_same_steps_run_each_step_once() {
    let bench = Bench::new();
    let dockerfile = format!("{BUSYBOX}RUN sleep 3; cat /proc/sys/kernel/random/uuid >/once\n");
    bench.write("Dockerfile", &dockerfile);
    let spawn = |name: &str| {
        let dest = bench.out().join(name);
        let mut command = bench.build_command(&["-o", dest.to_str().unwrap()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        (command.spawn().unwrap(), command)
    };
    let (one, other) = (spawn("one"), spawn("other"));
    for (child, command) in [one, other] {
        let _built = finish(child, &command).expect_status(0);
    }
    let once = |name: &str| fs::read_to_string(bench.out().join(name).join("once")).unwrap();
    assert_eq!(once("one"), once("other"));
    bench.check_clean();
}

/// Puts the store on a file system of this size.
fn mount_small(bench: &Bench, size: &str) {
    fs::create_dir(bench.store()).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=700"),
            "none",
        ])
        .arg(bench.store());
    let _mounted = run(mount).expect_status(0);
}

fn unmount(bench: &Bench) {
    let mut umount = Command::new("umount");
    umount.arg(bench.store());
    let _unmounted = run(umount).expect_status(0);
}

#[test]
#[ignore = "needs root"]
fn as_root_a_full_disk_is_the_hosts_failure_and_loses_nothing() {
    let bench = Bench::new();
    mount_small(&bench, "40m");
    bench.write("big", vec![7_u8; 60 << 20]);
    let done = bench.build(
        "FROM scratch\nCOPY busybox /a\nCOPY big /big\n",
        &["--min-free-space", "0"],
    );
    fs::remove_file(bench.context().join("big")).unwrap();
    let after = bench.build("FROM scratch\nCOPY busybox /a\n", &[]);
    let check = run(bench.cofferdam(["store", "check"]));
    unmount(&bench);
    assert_eq!(done.status, Some(125), "{done:?}");
    done.says(&["no space", "in use", "cofferdam du"]);
    assert_eq!(after.status, Some(0), "{after:?}");
    assert_eq!(check.status, Some(0), "{check:?}");
}

#[test]
#[ignore = "needs root"]
fn as_root_on_a_full_disk_read_only_commands_work_and_a_prune_frees_space() {
    let bench = Bench::new();
    mount_small(&bench, "40m");
    let dockerfile = "FROM scratch\nCOPY busybox /kept\n";
    let built = bench.build(dockerfile, &["-t", "kept"]);
    let mut filler = fs::File::create(bench.store().join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    let read_only = [
        &["images"][..],
        &["du"],
        &["history"],
        &["history", "inspect", "^0"],
        &["history", "logs", "^0"],
        &["prune", "--dry-run"],
    ];
    let results = read_only.map(|args| run(bench.cofferdam(args)));
    let checked = run(bench.cofferdam(["store", "check"]));
    let removed = run(bench.cofferdam(["images", "rm", "kept"]));
    let pruned = run(bench.cofferdam(["prune", "--force"]));
    drop(filler);
    fs::remove_file(bench.store().join("filler")).unwrap();
    let again = bench.build(dockerfile, &[]);
    let clean = run(bench.cofferdam(["store", "check"]));
    unmount(&bench);
    let _built = built.expect_status(0);
    for done in results {
        let _ok = done.expect_status(0);
    }
    // The filler does not belong to the store.
    assert!(checked.stdout.contains("1 problem found"), "{checked:?}");
    for done in [removed, pruned, again, clean] {
        let _fine = done.expect_status(0);
    }
}

/// The disk of the VM is a file on the disk of the host, and a program need not check whether its
/// writes succeeded. Nothing of such a step is kept.
#[test]
#[ignore = "needs root"]
fn as_root_a_step_that_fills_the_disk_of_the_host_makes_no_layer_and_is_not_at_fault() {
    let bench = Bench::new();
    mount_small(&bench, "100m");
    let heedless = format!("{BUSYBOX}RUN dd if=/dev/zero of=/big bs=1M count=200\n");
    let unguarded = ["--min-free-space", "0"];
    let heedless = bench.build(&heedless, &unguarded);
    let careful = format!("{BUSYBOX}RUN dd if=/dev/zero of=/big bs=1M count=200 conv=fsync\n");
    let careful = bench.build(&careful, &unguarded);
    let after = bench.build("FROM scratch\nCOPY busybox /a\n", &[]);
    let check = run(bench.cofferdam(["store", "check"]));
    unmount(&bench);
    for done in [heedless, careful] {
        // The VM's disk fails, or what is free on the host's disk is the limit of the changes.
        assert!(matches!(done.status, Some(124 | 125)), "{done:?}");
    }
    assert_eq!(after.status, Some(0), "{after:?}");
    assert_eq!(check.status, Some(0), "{check:?}");
}

/// Neither in the VM nor on the host does a build write below the floor: it ends, and says why. Others
/// still use the store.
#[test]
#[ignore = "needs root"]
fn as_root_a_build_that_crosses_the_floor_of_free_space_ends_with_the_limit() {
    let bench = Bench::new();
    mount_small(&bench, "300m");
    let floor = ["--min-free-space", "150m"];
    let fills = format!("{BUSYBOX}RUN dd if=/dev/zero of=/big bs=1M count=2000\n");
    let in_the_vm = bench.build(&fills, &floor);
    bench.write("big", vec![7_u8; 400 << 20]);
    let copy = "FROM scratch\nCOPY busybox /a\nCOPY big /big\n";
    let on_the_host = bench.build(copy, &["--min-free-space", "250m"]);
    fs::remove_file(bench.context().join("big")).unwrap();
    let after = bench.build("FROM scratch\nCOPY busybox /a\n", &floor);
    let check = run(bench.cofferdam(["store", "check"]));
    unmount(&bench);
    for done in [in_the_vm, on_the_host] {
        assert_eq!(done.status, Some(124), "{done:?}");
        done.says(&["--min-free-space", "to be kept free"]);
    }
    assert_eq!(after.status, Some(0), "{after:?}");
    assert_eq!(check.status, Some(0), "{check:?}");
}

#[test]
fn a_sparse_file_beyond_the_limit_of_a_step_ends_it_and_keeps_nothing() {
    let bench = Bench::new();
    let sparse = format!("{BUSYBOX}RUN dd if=/dev/zero of=/big bs=1 count=1 seek=900G\n");
    let done = bench.build(&sparse, &["--step-disk", "1m"]);
    assert_eq!(done.status, Some(124), "{done:?}");
    done.says(&["at most 1 MiB", "--step-disk"]);
    let check = run(bench.cofferdam(["store", "check"]));
    assert_eq!(check.status, Some(0), "{check:?}");
}

#[test]
#[ignore = "needs root"]
fn as_root_a_build_prunes_when_free_space_is_low() {
    let bench = Bench::new();
    mount_small(&bench, "100m");
    let dockerfile = "FROM scratch\nCOPY big /big\n";
    let mut said = String::new();
    let mut statuses = Vec::new();
    // Twice as much as fits, and the first layer is the image `kept`.
    for number in 0..10_u8 {
        bench.write("big", vec![number; 20 << 20]);
        let tag = if number == 0 { "kept" } else { "other" };
        let marks: &[&str] = &["--min-free-space", "30m"];
        // Without the option a build prunes when a write fails.
        let marks = if number % 3 == 0 { &[] } else { marks };
        let done = bench.build(dockerfile, &[&["-t", tag], marks].concat());
        statuses.push(done.status);
        said.push_str(&done.stderr);
    }
    let again = bench.build(dockerfile, &["-t", "other"]);
    let images = run(bench.cofferdam(["images"]));
    let check = run(bench.cofferdam(["store", "check"]));
    unmount(&bench);
    assert_eq!(statuses, [Some(0); 10], "{said}");
    assert!(said.contains("of unused cache"), "{said}");
    assert!(again.stderr.contains("CACHED"), "{again:?}");
    for name in ["kept", "other"] {
        assert!(images.stdout.contains(name), "{images:?}");
    }
    assert_eq!(check.status, Some(0), "{check:?}");
}

#[test]
fn unused_layers_can_be_pruned_and_rebuilt() {
    let bench = Bench::new();
    let kept = format!("{BUSYBOX}RUN echo kept >/kept\n");
    let dropped = format!("{BUSYBOX}RUN head -c 9000000 /dev/urandom >/dropped\n");
    let _kept = bench.build(&kept, &["-t", "kept"]).expect_status(0);
    let _dropped = bench.build(&dropped, &[]).expect_status(0);
    let would = run(bench.cofferdam(["prune", "--dry-run"])).expect_status(0);
    let pruned = run(bench.cofferdam(["prune", "--force"])).expect_status(0);
    for done in [&would, &pruned] {
        assert!(done.stdout.contains("layer"), "{done:?}");
    }
    let total = |done: &tests::Done| {
        done.stdout
            .lines()
            .last()
            .unwrap_or_default()
            .replace("Would free", "Total")
    };
    assert_eq!(total(&would), total(&pruned));
    bench.check_clean();
    let again = bench.build(&kept, &["-t", "kept"]).expect_status(0);
    assert!(again.stderr.contains("CACHED"), "{again:?}");
    let _again = bench.build(&dropped, &[]).expect_status(0);
    bench.check_clean();
}

#[test]
fn a_damaged_database_is_rebuilt_from_the_layers() {
    let bench = Bench::new();
    let dockerfile = format!("{BUSYBOX}RUN echo made >/made\n");
    let _built = bench.build(&dockerfile, &[]).expect_status(0);
    for name in ["store.db", "store.db-wal"] {
        let path = bench.store().join(name);
        let length = fs::metadata(&path).map_or(0, |found| found.len());
        fs::write(&path, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    }
    let refused = bench.build(&dockerfile, &[]).expect_status(125);
    refused.says(&["damaged", "cofferdam store check --repair"]);
    let repaired = run(bench.cofferdam(["store", "check", "--repair"])).expect_status(0);
    repaired.says(&["recovered 3 layers"]);
    bench.check_clean();
    let _built = bench.build(&dockerfile, &[]).expect_status(0);
    bench.check_clean();
}

/// The pages of two tables are damaged, but none that is read when a store is opened.
#[test]
fn a_database_that_is_damaged_in_the_middle_is_rebuilt_too() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nCOPY busybox /b\n";
    let _built = bench.build(dockerfile, &[]).expect_status(0);
    let path = bench.store().join("store.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    let checkpoint = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    checkpoint.unwrap();
    let page = |table: &str| {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let found = database.query_row(sql, [table], |row| row.get::<_, u32>(0));
        found.unwrap() as usize
    };
    let (action, image) = (page("action"), page("image_layer"));
    drop(database);
    let mut bytes = fs::read(&path).unwrap();
    for page in [action, image] {
        bytes[(page - 1) * 4096..page * 4096].fill(0x5a);
    }
    fs::write(&path, bytes).unwrap();
    let found = run(bench.cofferdam(["store", "check"])).expect_status(125);
    found.says(&["store check --repair"]);
    let repaired = run(bench.cofferdam(["store", "check", "--repair"])).expect_status(0);
    repaired.says(&["recovered 1 layers"]);
    assert!(
        repaired.stdout.contains("no problems found"),
        "{repaired:?}"
    );
    let _built = bench.build(dockerfile, &[]).expect_status(0);
    bench.check_clean();
}
