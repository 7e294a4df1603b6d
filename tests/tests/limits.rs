//! What steps and contexts may make, up to the limits of a layer and beyond them; and what builds may use.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::programs::set_xattr;
use tests::{BUSYBOX, Bench, finish};

/// Makes directories until the path of the last has this many bytes, and goes there.
fn deep(last: usize) -> String {
    // 4 + 16 · 251 + 1 + last
    let long = "d".repeat(250);
    let dirs = format!("for _ in $(seq 16); do mkdir {long} && cd {long}; done");
    format!(
        "mkdir /deep && cd /deep && {dirs} && mkdir {}",
        "e".repeat(last)
    )
}

/// The length of an extended attribute in an archive.
fn attribute(archive: &Path, file: &str, name: &str) -> Option<usize> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries.find(|entry| entry.path().unwrap().ends_with(file))?;
    let mut records = entry.pax_extensions().unwrap()?.map(Result::unwrap);
    let record = records.find(|record| record.key() == Ok(name))?;
    Some(record.value_bytes().len())
}

#[test]
fn steps_at_the_limits_of_a_layer_are_kept_or_fail_once_in_their_own_words() {
    let bench = Bench::new();
    let name = "n".repeat(255);
    bench.write(&name, "x");
    // More than a block of the guest's file system.
    bench.write(
        "attribute",
        set_xattr("/large", "user.large", &[b'v'; 60_000]),
    );
    bench.chmod("attribute", 0o755);
    let steps = [
        "COPY attribute /\nRUN touch /large && /attribute".to_owned(),
        format!("COPY {name} /copied/"),
        format!("RUN cd / && echo x >{name}"),
        format!("RUN rm /{name} /copied/{name}"),
        format!("RUN {} && touch f && for i in $(seq 200); do ln f $i; done", deep(74)),
        "RUN mkdir /odd && cd /odd && touch \"$(printf 'new\\nline')\" \"$(printf '\\377')\" \
         && mknod dev c 4095 1048575 && mkfifo pipe && touch -d 1950-01-01 old && chown 4294967294 old"
            .to_owned(),
        // Every layer below is read again.
        "RUN [ $(ls /odd | wc -l) -ge 5 ] && [ ! -e /copied/n* ] && cd / && rm -r deep".to_owned(),
    ];
    let out = bench.out().join("image.tar");
    let output = format!("type=tar,dest={}", out.display());
    let done = bench
        .build(
            &format!("{BUSYBOX}{}\n", steps.join("\n")),
            &["-o", &output],
        )
        .expect_status(0);
    assert!(!done.stderr.contains("lost"), "{done:?}");
    assert_eq!(
        attribute(&out, "large", "SCHILY.xattr.user.large"),
        Some(60_000)
    );

    let refused = |step: &str, status, said: &[&str]| {
        let done = bench.build(&format!("{BUSYBOX}RUN {step}\n"), &[]);
        let done = done.expect_status(status);
        done.says(&["Dockerfile:4"]).says(said);
        // Nobody takes it for a fault of the VM and runs it again.
        for word in ["lost", "rerunning"] {
            assert!(!done.stderr.contains(word), "{done:?}");
        }
    };
    let sparse = "dd if=/dev/null of=/sparse bs=1M seek=8388608";
    refused(sparse, 124, &["/sparse", "8 TiB", "sparse file"]);
    let said = [
        "cannot keep what",
        "4096 bytes",
        "at most 4095",
        "shorter names",
    ];
    refused(&deep(75), 1, &said);
    bench.check_clean();
}

#[test]
fn files_of_the_context_that_no_layer_can_hold_are_said_to_be_that() {
    let bench = Bench::new();
    bench.write("sparse", "");
    let file = fs::File::options()
        .write(true)
        .open(bench.context().join("sparse"))
        .unwrap();
    // As long as the file system allows, which is more than a layer.
    let longest = [8_u64 << 40, 2 << 40]
        .into_iter()
        .find(|length| file.set_len(*length).is_ok());
    if longest.is_some() {
        let done = bench.build("FROM scratch\nCOPY sparse /\n", &[]);
        let done = done.expect_status(124);
        done.says(&["/sparse", " TiB long", "at most 1 TiB"]);
    }
    let name = "n".repeat(255);
    let dest = vec![name; 16].join("/");
    let done = bench.build(&format!("FROM scratch\nCOPY busybox /{dest}\n"), &[]);
    let _kept = done.expect_status(0);
    let done = bench.build(&format!("FROM scratch\nCOPY busybox /{dest}/\n"), &[]);
    let done = done.expect_status(1);
    done.says(&["4103 bytes", "at most 4095"]);
    bench.check_clean();
}

#[test]
fn steps_together_add_no_more_than_the_build_may() {
    let bench = Bench::new();
    let write = |file: &str| format!("RUN dd if=/dev/zero of=/{file} bs=1M count=6\n");
    let dockerfile = format!("{BUSYBOX}{}{}", write("a"), write("b"));
    let done = bench.build(&dockerfile, &["--build-disk", "12m"]);
    let done = done.expect_status(124);
    done.says(&[
        "--build-disk",
        "the 12.0 MiB that it may add",
        "Dockerfile:5",
    ]);
    assert!(!done.stderr.contains("lost"), "{done:?}");
    // What was whole is cached, and counts for the build that made it.
    let again = bench.build(&dockerfile, &["--build-disk", "12m"]);
    again.expect_status(0).says(&["CACHED"]);
    bench.check_clean();
}

/// Starts a build whose progress goes to a file.
fn start(bench: &Bench, name: &str, step: &str) -> (Child, Command, impl Fn() -> String) {
    bench.write(name, format!("{BUSYBOX}RUN {step}\n"));
    let log = bench.out().join(name);
    let memory = ["--memory", "512m", "--total-memory", "700m"];
    let mut command = bench.build_command(&[&["-f", name], &memory[..]].concat());
    command
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap());
    let child = command.spawn().unwrap();
    (child, command, move || fs::read_to_string(&log).unwrap())
}

#[test]
fn a_build_waits_for_memory_until_the_one_that_has_it_is_killed() {
    let bench = Bench::new();
    let endless = "echo running-now; while true; do sleep 1; done";
    let (mut first, _, said) = start(&bench, "first", endless);
    bench.until("the step runs", || {
        said().lines().any(|line| line.ends_with(" running-now"))
    });
    let (second, command, said) = start(&bench, "second", "echo fine");
    bench.until("the second build waits", || {
        said().contains("waiting for memory")
    });
    let holder = format!("(process {})", first.id());
    assert!(said().contains(&holder), "{}", said());
    assert_eq!(bench.monitors().len(), 1);
    first.kill().unwrap();
    first.wait().unwrap();
    let done = finish(second, &command);
    assert_eq!(done.status, Some(0), "{}", said());
    bench.check_clean();
}
