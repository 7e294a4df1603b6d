//! Bad input: a message with file and line or path, the right exit status, nothing lost.

use std::fs;
use std::process::Stdio;

use tests::{Bench, run};

#[track_caller]
fn refused(dockerfile: &str, args: &[&str], status: i32, says: &[&str]) {
    let bench = Bench::new();
    let done = bench.build(dockerfile, args).expect_status(status);
    done.says(says);
    bench.check_clean();
}

#[test]
fn an_unknown_instruction_names_its_line_and_a_similar_one() {
    refused(
        "FROM scratch\nRNU true\n",
        &[],
        1,
        &["Dockerfile:2", "RNU", "RUN", ">>> RNU true"],
    );
}

#[test]
fn a_missing_source_names_the_line_and_a_similar_file() {
    refused(
        "FROM scratch\nCOPY busibox /\n",
        &[],
        1,
        &["Dockerfile:2", "busibox", "busybox"],
    );
}

#[test]
fn an_ignored_source_names_the_line_that_ignores_it() {
    let bench = Bench::new();
    bench.write(".dockerignore", "# nothing\nbusy*\n");
    let done = bench
        .build("FROM scratch\nCOPY busybox /\n", &[])
        .expect_status(1);
    done.says(&["Dockerfile:2", ".dockerignore", "line 2"]);
    bench.check_clean();
}

#[test]
fn a_base_image_that_does_not_exist_names_it_and_the_line() {
    // A registry that refuses connections: nothing listens on this port.
    refused(
        "FROM 127.0.0.1:1/no/such:tag\n",
        &["--allow-host", "127.0.0.1:1"],
        125,
        &["Dockerfile:1", "127.0.0.1:1/no/such:tag"],
    );
}

#[test]
fn a_server_on_this_machine_is_refused_with_the_option_that_allows_it() {
    for dockerfile in [
        "FROM localhost:1/app\n",
        "FROM scratch\nADD http://localhost:1/f /\n",
    ] {
        let says = ["Dockerfile:", "localhost:1", "--allow-host localhost:1"];
        refused(dockerfile, &[], 1, &says);
    }
}

#[test]
fn an_unknown_target_lists_a_similar_stage() {
    refused(
        "FROM scratch AS build\n",
        &["--target", "biuld"],
        1,
        &["biuld", "build"],
    );
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    refused(
        "FROM scratch\n",
        &["--no-such-option"],
        2,
        &["--no-such-option"],
    );
}

#[test]
fn a_missing_dockerfile_and_a_missing_context_name_the_path() {
    let bench = Bench::new();
    let done = run(bench.build_command(&[])).expect_status(1);
    done.says(&["Dockerfile", "--file"]);
    let done = run(bench.cofferdam(["build", "/no/such/context"])).expect_status(1);
    done.says(&["/no/such/context"]);
}

#[test]
fn a_program_that_is_not_in_the_image_is_named() {
    let bench = Bench::new();
    let done = bench
        .build("FROM scratch\nCOPY busybox /busybox\nRUN true\n", &[])
        .expect_status(1);
    done.says(&["Dockerfile:3", "/bin/sh"]);
    bench.check_clean();
}

#[test]
fn a_missing_monitor_says_what_to_install() {
    let bench = Bench::new();
    bench.write(
        "Dockerfile",
        "FROM scratch\nCOPY busybox /bin/sh\nRUN true\n",
    );
    let mut build = bench.build_command(&[]);
    build.env("PATH", "/nonexistent");
    let done = run(build).expect_status(125);
    done.says(&["qemu-system-x86_64", "qemu-system-x86", "install"]);
    bench.check_clean();
}

#[test]
fn a_corrupted_layout_is_refused_and_nothing_of_it_is_kept() {
    let bench = Bench::new();
    let layout = bench.out().join("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let _built = bench
        .build(
            "FROM scratch\nCOPY busybox /b\n",
            &["-t", "x:1", "-o", &output],
        )
        .expect_status(0);
    let blobs = layout.join("blobs/sha256");
    let layer = fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes).unwrap();

    let other = Bench::new();
    let context = format!("base=oci-layout://{}:1", layout.display());
    let done = other
        .build("FROM base\n", &["--build-context", &context])
        .expect_status(1);
    done.says(&["Dockerfile:1", "sha256:"]);
    other.check_clean();
}

#[test]
fn destinations_are_checked_before_the_build() {
    let bench = Bench::new();
    bench.write("Dockerfile", "FROM scratch\nCOPY busybox /b\n");
    let twice = ["-o", "type=tar,dest=same", "-o", "type=oci,dest=same"];
    let refused = run(bench.build_command(&twice)).expect_status(2);
    refused.says(&["two outputs write to same"]);
    for option in ["--iidfile", "--metadata-file"] {
        let refused = run(bench.build_command(&[option, "/no/such/dir/file"])).expect_status(1);
        refused.says(&["/no/such/dir"]);
        assert!(!refused.stderr.contains("COPY"), "{refused:?}");
    }
    bench.check_clean();
}

/// The directory exists and the disk has free space, but a result cannot be written: exit status,
/// history and the metadata file agree that the build failed.
#[test]
fn a_result_that_cannot_be_written_is_a_failure_everywhere() {
    let bench = Bench::new();
    bench.write("Dockerfile", "FROM scratch\nCOPY busybox /b\n");
    // The temporary file beside it would have a name that is too long.
    let long = bench.out().join("i".repeat(255)).display().to_string();
    let (iid, described) = (bench.out().join("iid"), bench.out().join("described"));
    let (iid_file, metadata) = (iid.display().to_string(), described.display().to_string());
    let check_history = |reason: &str| {
        let last = run(bench.cofferdam(["history", "inspect"])).expect_status(0);
        assert!(last.stdout.contains("\"exit_status\": 125"), "{last:?}");
        assert!(last.stdout.contains(reason), "{last:?}");
        assert!(!iid.exists(), "a failed build left an image id");
    };
    let reason = format!("cannot write {long}");
    let options = ["--iidfile", &long, "--metadata-file", &metadata];
    let failed = run(bench.build_command(&options)).expect_status(125);
    failed.says(&[&reason]);
    check_history(&reason);
    let text = fs::read_to_string(&described).expect("the metadata file");
    assert!(text.contains("\"exit\": 125"), "{text}");
    let options = ["--iidfile", &iid_file, "--metadata-file", &long];
    let failed = run(bench.build_command(&options)).expect_status(125);
    failed.says(&[&reason]);
    check_history(&reason);
    let mut quiet = bench.build_command(&["-q", "--iidfile", &iid_file]);
    let full = fs::File::options().write(true).open("/dev/full");
    let quiet = quiet.stdout(full.expect("/dev/full"));
    let ended = quiet.stderr(Stdio::piped()).spawn().expect("a build");
    let ended = ended.wait_with_output().expect("its end");
    assert_eq!(ended.status.code(), Some(125));
    // The disk of the store is not full.
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("o space left"), "{said}");
    assert!(!said.contains("prune"), "{said}");
    check_history("cannot write standard output");
    bench.check_clean();
}
