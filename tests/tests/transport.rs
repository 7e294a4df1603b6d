//! Builds under adverse conditions: a slow guest, a closed terminal, a suspended machine, large inputs;
//! with either driver of the guest where that can matter.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::qemu::OtherQemu;
use tests::{BUSYBOX, Bench, finish, run};

/// The drivers that a guest may have.
const DRIVERS: [&str; 2] = ["ring", "kernel"];

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Redirects standard error to a file, so that the child never waits for the test.
fn to_file(bench: &Bench, command: &mut Command, name: &str) -> std::path::PathBuf {
    let path = bench.out().join(name);
    command
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&path).unwrap());
    path
}

/// The peak private memory of a process, in MiB. The mapped memory of its guest does not count.
fn watch_memory(child: &Child) -> thread::JoinHandle<u64> {
    let path = format!("/proc/{}/status", child.id());
    thread::spawn(move || {
        let mut peak = 0;
        while let Ok(status) = fs::read_to_string(&path) {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"));
            let Some(kib) = line else { break }; // it has ended
            let kib = kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            peak = peak.max(kib >> 10);
            thread::sleep(Duration::from_millis(10));
        }
        peak
    })
}

/// A QEMU whose guest disk accepts so many writes per second (not bytes, because discards of a new
/// disk would count as bytes). Returns a search path with it.
fn slow_disk(bench: &Bench, writes: u64) -> String {
    let change = "driver=raw,node-name=disk,*) \
                  word=\"driver=raw,node-name=plain,${word#driver=raw,node-name=disk,}\"";
    let more = format!(
        "-object throttle-group,id=slow,x-iops-write={writes} \
         -blockdev driver=throttle,node-name=disk,throttle-group=slow,file=plain"
    );
    let other = OtherQemu {
        change,
        more: &more,
        ..OtherQemu::default()
    };
    other.install(bench)
}

/// The host could send a thousand times faster than the guest's disk writes. It waits, and needs no
/// more memory for a large layer than for a small one.
#[test]
fn a_slow_disk_in_the_guest_costs_the_host_time_and_no_memory() {
    const MIB: usize = 160;
    thread::scope(|scope| {
        for path in DRIVERS {
            scope.spawn(move || {
                let bench = Bench::new();
                bench.write("big", vec![7; MIB << 20]);
                let dockerfile = format!(
                    "{BUSYBOX}COPY big /big\nRUN test $(wc -c </big) = {}\n",
                    MIB << 20
                );
                bench.write("Dockerfile", &dockerfile);
                let mut command = bench.build_command(&["--memory", "512m"]);
                command
                    .env("PATH", slow_disk(&bench, 60))
                    .env("COFFERDAM_TRANSPORT", path);
                let log = to_file(&bench, &mut command, "progress");
                let child = command.spawn().unwrap();
                let memory = watch_memory(&child);
                let done = finish(child, &command);
                let said = fs::read_to_string(log).unwrap();
                assert_eq!(done.status, Some(0), "{path}: {said}");
                let peak = memory.join().unwrap();
                assert!(peak < 96, "{path}: {peak} MiB");
                bench.check_clean();
            });
        }
    });
}

/// Longer than the limits for an unanswered heartbeat and an unprocessed packet.
#[test]
fn a_builder_that_is_stopped_for_long_continues() {
    const ASLEEP: Duration = Duration::from_secs(62);
    thread::scope(|scope| {
        for path in DRIVERS {
            scope.spawn(move || {
                let bench = Bench::new();
                let step =
                    "i=0; while [ $i -lt 700 ]; do i=$((i+1)); echo line $i; usleep 100000; done";
                bench.write("Dockerfile", format!("{BUSYBOX}RUN {step}\n"));
                let mut command = bench.build_command(&[]);
                command.env("COFFERDAM_TRANSPORT", path);
                let log = to_file(&bench, &mut command, "progress");
                let child = command.spawn().unwrap();
                let said = || fs::read_to_string(&log).unwrap();
                bench.until("the step prints", || said().contains(" line 5\n"));
                kill(pid(&child), Signal::SIGSTOP).unwrap();
                thread::sleep(ASLEEP);
                kill(pid(&child), Signal::SIGCONT).unwrap();
                let done = finish(child, &command);
                let said = said();
                assert_eq!(done.status, Some(0), "{path}: {said}");
                assert!(!said.contains("lost"), "{path}: {said}");
                let lines = said.lines().filter_map(|line| line.split_once(" line "));
                let numbers = lines.filter_map(|(_, number)| number.parse::<u32>().ok());
                assert!(numbers.eq(1..=700), "{path}: {said}");
                bench.check_clean();
            });
        }
    });
}

/// The lines that a step prints: five mebibytes, which is more than the longest frame.
const LINES: std::ops::RangeInclusive<u64> = 1_000_000..=1_655_359;

/// A step that prints them. Making them would take an emulated guest much longer.
const PRINTS: &str = "COPY lines /lines\nRUN cat /lines";

/// The numbers in the log of the last build, without the prefixes of its lines.
fn log_of(bench: &Bench) -> Vec<u64> {
    let logs = run(bench.cofferdam(["history", "logs"])).expect_status(0);
    let lines = logs.stdout.lines().filter(|line| !line.contains("cat"));
    let words = lines.filter_map(|line| line.split(' ').next_back());
    words.filter_map(|word| word.parse().ok()).collect()
}

#[track_caller]
fn check_log(bench: &Bench) {
    assert!(log_of(bench).into_iter().eq(LINES));
}

/// A display that fails changes neither the build nor its log.
#[test]
fn a_build_does_not_depend_on_the_reader_of_its_output() {
    DRIVERS.into_iter().for_each(check_readers);
}

fn check_readers(path: &'static str) {
    let bench = Bench::on(path);
    let lines: String = LINES.map(|number| format!("{number}\n")).collect();
    bench.write("lines", lines);
    bench.write("Dockerfile", format!("{BUSYBOX}{PRINTS}\n"));

    // Without progress output.
    let mut quiet = bench.cofferdam(["build", "--quiet", "."]);
    let done = run(&mut quiet).expect_status(0);
    assert!(!done.stderr.contains("1000000"), "{}", done.stderr);
    check_log(&bench);
    bench.check_clean();

    // The reader reads one line and closes the pipe.
    let mut gone = bench.build_command(&["--no-cache"]);
    gone.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = gone.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    drop(child.stdout.take());
    let _done = finish(child, &gone).expect_status(0);
    check_log(&bench);
    bench.check_clean();

    // The pipe stays open, but is never read.
    let mut deaf = bench.build_command(&["--no-cache"]);
    deaf.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = deaf.spawn().unwrap();
    let unread = child.stderr.take().unwrap();
    let _done = finish(child, &deaf).expect_status(0);
    drop(unread);
    check_log(&bench);
    bench.check_clean();
}

/// Sizes around those of a queue or a frame of 16 or 64 KiB.
#[test]
fn dockerfiles_and_arguments_of_any_size_work_or_name_their_limit() {
    DRIVERS.into_iter().for_each(check_sizes);
}

fn check_sizes(path: &'static str) {
    let bench = Bench::on(path);
    let comment = |kib: usize| format!("# {}\n", "x".repeat(1021)).repeat(kib);
    for kib in [15, 16, 17, 64, 1024] {
        let dockerfile = format!("{}FROM scratch\nCOPY busybox /b\n", comment(kib));
        let _built = bench.build(&dockerfile, &[]).expect_status(0);
        // As one instruction too, which is sent to the guest.
        if [17, 64].contains(&kib) {
            let script = format!("{BUSYBOX}RUN <<E\n{}echo size-{kib}\nE\n", comment(kib));
            let built = bench.build(&script, &[]).expect_status(0);
            built.says(&[&format!("size-{kib}")]);
        }
    }
    bench.check_clean();

    // A step gets a mebibyte of arguments; the kernel limits the length of a single one.
    let names: Vec<String> = (0..16).map(|n| format!("A{n}")).collect();
    let declared: String = names.iter().map(|name| format!("ARG {name}\n")).collect();
    let dockerfile = format!("{BUSYBOX}{declared}RUN echo ${{#A0}} ${{#A15}}\n");
    let value = "v".repeat(64 << 10);
    let args: Vec<String> = names
        .iter()
        .map(|name| format!("--build-arg={name}={value}"))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let built = bench.build(&dockerfile, &args).expect_status(0);
    built.says(&["65536 65536"]);
    bench.check_clean();

    // What is too long is refused with the limit.
    let line = format!("# {}\nFROM scratch\n", "x".repeat(65 << 10));
    bench.build(&line, &[]).expect_status(1).says(&["65535"]);
    let parts = format!("{}\\\n", "v".repeat(50 << 10)).repeat(4);
    let variable = format!("{BUSYBOX}ENV LARGE={parts}v\nRUN true\n");
    bench
        .build(&variable, &[])
        .expect_status(1)
        .says(&["131071"]);
    bench.check_clean();
}

/// Our own driver needs hugepages, and a module to access the device. A processor without large pages
/// has no hugepages, and a kernel may be without the module: then the kernel's driver keeps the device,
/// or gets it back, unless the user asked for `ring`.
#[test]
fn a_guest_that_cannot_use_the_ring_falls_back_to_the_kernels_driver() {
    for change in [
        "max,*) word=\"$word,-pse\"",
        "*no_timer_check*) word=\"$word module_blacklist=uio_pci_generic\"",
    ] {
        let bench = Bench::new();
        bench.write("Dockerfile", format!("{BUSYBOX}RUN echo fine >/fine\n"));
        let metadata = bench.out().join("metadata");
        let mut command = bench.build_command(&["--metadata-file", metadata.to_str().unwrap()]);
        let other = OtherQemu {
            change,
            ..OtherQemu::default()
        };
        command
            .env("PATH", other.install(&bench))
            .env_remove("COFFERDAM_TRANSPORT");
        let _built = run(command).expect_status(0);
        let said = fs::read_to_string(metadata).unwrap();
        assert!(
            said.contains("\"transport\": \"kernel\""),
            "{change}: {said}"
        );
        bench.check_clean();
    }
}
