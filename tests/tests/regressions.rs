//! Bugs that users found, one test each.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tests::{BUSYBOX, Bench, finish, run};

/// In a layer the name is a whiteout, so it is an error of the step, not of the VM.
#[test]
fn a_file_that_is_named_like_a_whiteout_is_an_error_of_the_step() {
    let bench = Bench::new();
    let dockerfile = format!("{BUSYBOX}RUN mkdir /t && touch /t/.wh.foo\n");
    let done = bench.build(&dockerfile, &[]).expect_status(1);
    done.says(&["Dockerfile:4", "/t/.wh.foo"]);
    assert!(!done.stderr.contains("lost"), "{done:?}");
    bench.check_clean();
}

#[test]
fn an_archive_may_name_a_link_twice() {
    let bench = Bench::new();
    let tree = bench.context().join("tree");
    fs::create_dir(&tree).unwrap();
    std::os::unix::fs::symlink("/nowhere", tree.join("one")).unwrap();
    fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--create", "--file", "tree.tar", "tree"]);
    let _made = run(tar.current_dir(bench.context())).expect_status(0);
    let dest = bench.out().join("out");
    let output = ["-o", dest.to_str().unwrap()];
    let _built = bench
        .build("FROM scratch\nADD tree.tar /\n", &output)
        .expect_status(0);
    for name in ["one", "two"] {
        let target = fs::read_link(dest.join("tree").join(name)).unwrap();
        assert_eq!(target.to_str(), Some("/nowhere"));
    }
    bench.check_clean();
}

/// One signal is enough, whatever the build waits for.
#[test]
fn a_build_that_waits_for_a_pipe_can_be_interrupted() {
    let bench = Bench::new();
    let pipe = bench.out().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let pipe = pipe.display().to_string();
    bench.write("Dockerfile", "FROM scratch\nCOPY busybox /b\n");
    let output = format!("type=tar,dest={pipe}");
    for args in [["-f", pipe.as_str()], ["-o", output.as_str()]] {
        let mut command = bench.build_command(&args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        let _ended = finish(child, &command).expect_status(130);
    }
    bench.check_clean();
}
