//! `build --rebuild` and `--explain` with steps that run in a real VM.

use tests::{BUSYBOX, Bench};

#[test]
fn rebuild_accepts_a_step_that_makes_the_same_layer_again() {
    let bench = Bench::new();
    bench.write("file", "hello");
    let dockerfile = format!(
        "{BUSYBOX}COPY file /file\nRUN mkdir /d && cp /file /d/copy && ln -s copy /d/link\n"
    );
    let _first = bench.build(&dockerfile, &[]).expect_status(0);
    let done = bench.build(&dockerfile, &["--rebuild"]).expect_status(0);
    let same = done
        .stderr
        .matches("rebuilt: identical to the stored result")
        .count();
    assert_eq!(same, 4, "{}", done.stderr);
    assert!(!done.stderr.contains("CACHED"), "{}", done.stderr);
    bench.check_clean();
}

#[test]
fn rebuild_names_the_paths_that_differ_and_keeps_what_is_stored() {
    let bench = Bench::new();
    let dockerfile = format!(
        "{BUSYBOX}RUN cat /proc/sys/kernel/random/uuid >/x && mkdir /kept && echo same >/kept/y\n\
         RUN echo $(cat /x) >/z\n"
    );
    let first = bench.build(&dockerfile, &["-q"]).expect_status(0);
    let done = bench.build(&dockerfile, &["--rebuild"]).expect_status(3);
    done.says(&[
        "rebuilt: 1 path differs from the stored result",
        "\n/x changed (content)\n",
        "DIFFERS: 1 step is not reproducible",
    ]);
    // The next step ran on the stored /x, so it made the same layer again.
    assert!(!done.stderr.contains("/z changed"), "{}", done.stderr);
    assert!(!done.stderr.contains("/kept/y changed"), "{}", done.stderr);
    let again = bench.build(&dockerfile, &["-q"]).expect_status(0);
    assert_eq!(first.stdout, again.stdout, "the stored image was replaced");
    bench.check_clean();
}

#[test]
fn explain_names_the_file_and_the_step_below() {
    let bench = Bench::new();
    bench.write("src/main", "one");
    let dockerfile = format!("{BUSYBOX}COPY src /app\nARG V=1\nRUN cat /app/main >/out\n");
    let _first = bench.build(&dockerfile, &["--explain"]).expect_status(0);
    bench.write("src/main", "two");
    bench.write("src/new", "");
    let done = bench
        .build(&dockerfile, &["--explain", "--build-arg", "V=2"])
        .expect_status(0);
    done.says(&[
        "hit: same inputs",
        "miss: /app/main changed (content), /app/new added",
        "miss: ARG V changed from 1 to 2; a previous step changed: ",
    ]);
    bench.check_clean();
}
