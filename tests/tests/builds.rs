//! Whole builds in a real VM, checked by tools that share no code with us.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tests::{BUSYBOX, Bench, run, unpack};

#[test]
fn a_layer_has_exactly_the_changes_of_its_step() {
    let bench = Bench::new();
    let dockerfile = format!(
        "{BUSYBOX}\
RUN mkdir -p /etc /a/kept /a/gone /b && echo one >/a/file && echo two >/a/other && ln /a/file /a/hard \\
 && ln -s file /a/soft && mkfifo /a/pipe && chmod 4755 /a/file && chmod 1777 /b \\
 && chown 1000:1001 /a/other && touch -d '2001-02-03 04:05:06' /a/other && echo x >/a/gone/x
RUN rm -r /a/gone && rm /a/soft && rm -r /b && mkdir /b && echo new >/b/new && mv /a/other /a/renamed
RUN [\"/bin/busybox\", \"true\"]
"
    );
    let layout = bench.out().join("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let done = bench
        .build(&dockerfile, &["-t", "diff:1", "-o", &output])
        .expect_status(0);
    let tree = unpack(&layout, "1", &bench.out().join("bundle"));
    let facts = |path: &str| {
        tree.get(path)
            .cloned()
            .unwrap_or_else(|| panic!("{path}: {done:?}\n{tree:?}"))
    };
    let file = facts("a/file");
    assert!(file.starts_with("f 4755 0:0 4 "), "{file}");
    assert_eq!(file, facts("a/hard"));
    assert!(facts("a/pipe").starts_with("p 644 0:0 0 "));
    assert!(
        facts("a/renamed").starts_with("f 644 1000:1001 4 981173106.0"),
        "{}",
        facts("a/renamed")
    );
    assert!(facts("b").starts_with("d 755 0:0"));
    assert!(facts("b/new").starts_with("f 644 0:0 4 "));
    assert!(facts("bin/sh").ends_with(" /bin/busybox"));
    for absent in [
        "a/gone",
        "a/soft",
        "a/other",
        "proc",
        "sys",
        "dev",
        "etc/hosts",
        "etc/resolv.conf",
    ] {
        assert!(!tree.contains_key(absent), "{absent} is in the image");
    }
    bench.check_clean();
}

#[test]
fn a_build_with_nothing_new_is_all_hits_and_starts_no_process() {
    let bench = Bench::new();
    bench.write("src/main.txt", "hello");
    let dockerfile = format!(
        "{BUSYBOX}WORKDIR /work\nCOPY src .\nRUN cat main.txt >out && date >>out\nENV A=1\nRUN echo $A >>out\n"
    );
    let image_id = |done: &tests::Done| done.stdout.trim().to_owned();
    let first = bench
        .build(&dockerfile, &["-q", "-t", "cached"])
        .expect_status(0);
    // No search path: a build that needed QEMU could not find it.
    let mut again = bench.build_command(&["-t", "cached"]);
    again.env("PATH", "/nonexistent");
    let again = run(again).expect_status(0);
    for step in ["COPY busybox", "WORKDIR", "COPY src", "RUN cat", "RUN echo"] {
        let line = again
            .stderr
            .lines()
            .find(|l| l.contains(step))
            .unwrap_or_else(|| panic!("{step}: {again:?}"));
        let number = line.split(' ').next().unwrap();
        assert!(
            again.stderr.contains(&format!("{number} CACHED")),
            "{step}: {}",
            again.stderr
        );
    }
    let mut quiet = bench.build_command(&["-q", "-t", "cached"]);
    quiet.env("PATH", "/nonexistent");
    assert_eq!(
        image_id(&run(quiet).expect_status(0)),
        image_id(&first),
        "the image differs"
    );
    bench.check_clean();
}

#[test]
fn a_step_that_ran_again_with_equal_content_keeps_what_follows_cached() {
    let bench = Bench::new();
    let dockerfile = |tag: &str| {
        format!(
            "{BUSYBOX}ARG STAMP={tag}\nRUN echo same >/same\nFROM scratch\nCOPY --from=0 /same /same\n"
        )
    };
    let _first = bench.build(&dockerfile("1"), &[]).expect_status(0);
    let second = bench.build(&dockerfile("2"), &[]).expect_status(0);
    let line = second
        .stderr
        .lines()
        .find(|l| l.contains("COPY --from=0"))
        .unwrap();
    let number = line.split(' ').next().unwrap();
    assert!(
        second.stderr.contains(&format!("{number} CACHED")),
        "{}",
        second.stderr
    );
    bench.check_clean();
}

/// Only root may set the second attribute.
#[test]
#[ignore = "needs root"]
fn as_root_attributes_survive_a_change_in_the_vm() {
    let bench = Bench::new();
    bench.write("tree/noted", "text");
    let noted = bench.context().join("tree/noted");
    // A user attribute, and one that file systems treat specially: cap_net_bind_service, as setcap
    // writes it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let wanted = [
        ("user.note", &b"a\0b"[..]),
        ("security.capability", &capability),
    ];
    for (name, value) in wanted {
        xattr::set(&noted, name, value)
            .unwrap_or_else(|error| panic!("cannot set {name}: {error}"));
    }
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--xattrs",
        "--xattrs-include=*",
        "--file",
        "tree.tar",
        "tree",
    ]);
    let _made = run(tar.current_dir(bench.context())).expect_status(0);
    // The changed file is copied up, with all its attributes.
    let dockerfile =
        format!("{BUSYBOX}ADD tree.tar /\nRUN touch -d '2001-02-03 04:05:06' /tree/noted\n");
    let layout = bench.out().join("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let _built = bench
        .build(&dockerfile, &["-t", "attributes:1", "-o", &output])
        .expect_status(0);
    let bundle = bench.out().join("bundle");
    let tree = unpack(&layout, "1", &bundle);
    assert!(tree["tree/noted"].contains(" 981173106.0"), "{tree:?}");
    for (name, value) in wanted {
        let found = xattr::get(bundle.join("rootfs/tree/noted"), name).unwrap();
        assert_eq!(found.as_deref(), Some(value), "{name}");
    }
    bench.check_clean();
}

#[test]
fn events_are_one_json_object_a_line() {
    let bench = Bench::new();
    bench.write("Dockerfile", format!("{BUSYBOX}RUN echo told\n"));
    let mut command = bench.cofferdam(["build", "--progress", "rawjson", "."]);
    let done = run(command.current_dir(bench.context())).expect_status(0);
    let events: Vec<serde_json::Value> = done
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}: {done:?}")))
        .collect();
    assert!(
        events.len() > 4 && events.iter().all(serde_json::Value::is_object),
        "{done:?}"
    );
    bench.check_clean();
}

/// As another user, every other test shows this.
#[test]
#[ignore = "needs root"]
fn as_root_a_build_needs_no_privilege() {
    let bench = Bench::new();
    let nobody = 65_534;
    let mut chown = Command::new("chown");
    chown.args(["--recursive", &format!("{nobody}:{nobody}")]);
    let _given = run(chown.arg(bench.context().parent().unwrap())).expect_status(0);
    bench.write(
        "Dockerfile",
        format!("{BUSYBOX}RUN id -u; chown 1:2 /bin/busybox\n"),
    );
    let as_nobody = |mut command: Command| {
        command.uid(nobody).gid(nobody).env("HOME", "/nonexistent");
        command
    };
    // If this fails, user 65534 may not execute the binary where it is.
    let _version = run(as_nobody(bench.cofferdam(["version"]))).expect_status(0);
    let output = format!("type=tar,dest={}", bench.out().join("tree.tar").display());
    let done = run(as_nobody(bench.build_command(&["-o", &output]))).expect_status(0);
    assert!(
        done.stderr.lines().any(|line| line.ends_with(" 0")),
        "{done:?}"
    );
    let mut tar = Command::new("tar");
    tar.args(["--list", "--verbose", "--numeric-owner", "--file"]);
    let listing = run(tar.arg(bench.out().join("tree.tar"))).expect_status(0);
    let busybox = listing
        .stdout
        .lines()
        .find(|line| line.ends_with(" bin/busybox"));
    assert!(
        busybox.is_some_and(|line| line.contains(" 1/2 ")),
        "{listing:?}"
    );
    let check = run(as_nobody(bench.cofferdam(["store", "check"])));
    assert_eq!(check.status, Some(0), "{check:?}");
}
