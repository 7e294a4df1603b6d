//! Two builds that want the same step at the same time: one runs it, the other one shows what is
//! printed there, and takes over how it ends.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use engine::build::BuildError;
use engine::event::Outcome;
use exec::{Cancel, StepError};
use store::LogReader;

use crate::bench::{Bench, Built, Watch, wait_for};

/// Two builds of one Dockerfile, whose step waits for a file.
struct Two {
    bench: Bench,
    dockerfile: String,
    gate: PathBuf,
}

impl Two {
    fn new(end: &str) -> Self {
        Self::over(Bench::new(), end)
    }

    fn over(bench: Bench, end: &str) -> Self {
        let gate = bench.context().with_extension("gate");
        let dockerfile = format!("FROM scratch\nRUN hold {}{end}\n", gate.display());
        Self {
            bench,
            dockerfile,
            gate,
        }
    }

    /// Starts the first build, lets the second one wait for it until it has shown what the first has
    /// printed, does something, and gives both back.
    fn run(&self, meanwhile: impl FnOnce(&Cancel, &Watch)) -> (Built, Built, Watch) {
        let request = self.bench.request(&self.dockerfile);
        let (first_cancel, second_cancel) = (Cancel::new(), Cancel::new());
        let (first_watch, second_watch) = (Watch::default(), Watch::default());
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| {
                self.bench
                    .build_seen_by(&first_watch, &request, &first_cancel)
            });
            wait_for("the first build's step", || {
                first_watch.printed().contains("hold")
            });
            let second = scope.spawn(|| {
                self.bench
                    .build_seen_by(&second_watch, &request, &second_cancel)
            });
            wait_for("its output in the second", || {
                second_watch.printed().contains("hold")
            });
            meanwhile(&first_cancel, &second_watch);
            (first.join().unwrap(), second.join().unwrap())
        });
        (first, second, second_watch)
    }

    fn open_gate(&self) {
        std::fs::write(&self.gate, "").unwrap();
    }

    /// What the logs of the second build hold.
    fn second_log(&self) -> String {
        let store = self.bench.open();
        let builds = store.builds(10).unwrap();
        let second = builds.iter().map(|build| build.id).max().unwrap();
        let logs = store.step_logs(second).unwrap();
        let mut text = Vec::new();
        for (_, path) in logs {
            let mut reader = LogReader::open(&path).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                if frame.stream != store::StepLog::NAME {
                    text.extend(frame.data);
                }
            }
        }
        store.close().unwrap();
        String::from_utf8(text).unwrap()
    }
}

#[test]
fn who_waits_shows_the_output_and_takes_over_the_result() {
    let two = Two::new("");
    let (first, second, watch) = two.run(|_, _| two.open_gate());
    assert_eq!(
        first.result.unwrap().image,
        second.result.as_ref().unwrap().image
    );
    assert_eq!(first.ran.len(), 1);
    assert_eq!(second.commands(), [""; 0]);
    assert_eq!(*second.outcome("RUN"), Outcome::Done);
    let all = format!("hold {} and released", two.gate.display());
    assert_eq!(watch.printed(), all);
    assert_eq!(two.second_log(), all);
}

#[test]
fn who_waits_takes_over_that_the_command_failed() {
    let two = Two::new(" fail");
    let (first, second, watch) = two.run(|_, _| two.open_gate());
    for result in [&first.result, &second.result] {
        let Err(BuildError::Step { source, .. }) = result else {
            panic!("{result:?}")
        };
        assert!(
            matches!(source, StepError::Failed { status: 3, .. }),
            "{source:?}"
        );
    }
    assert_eq!(second.commands(), [""; 0]);
    assert!(watch.printed().ends_with(" and released"));
    assert!(two.second_log().ends_with(" and released"));
    let warnings = watch.warnings.lock().unwrap();
    assert_eq!(
        *warnings,
        ["the step already failed in build 1, which ran it at the same time"]
    );
    // Nothing is remembered for those who come later.
    let later = two.bench.build(&two.dockerfile);
    assert_eq!(later.ran.len(), 1);
}

#[test]
fn who_waits_does_the_step_itself_if_the_other_build_is_cancelled() {
    let two = Two::new("");
    let (first, second, watch) = two.run(|first, watch| {
        first.cancel();
        wait_for("a word on it", || {
            !watch.warnings.lock().unwrap().is_empty()
        });
        two.open_gate();
    });
    assert!(matches!(
        first.result,
        Err(BuildError::Cancelled | BuildError::Step { .. })
    ));
    second.result.as_ref().unwrap();
    assert_eq!(second.ran.len(), 1);
    assert!(two.second_log().ends_with(" and released"));
    let warnings = watch.warnings.lock().unwrap();
    assert_eq!(
        *warnings,
        ["`test` ended without a result; running the step in this build"]
    );
}

#[test]
fn who_wants_it_afresh_takes_nothing_over() {
    let two = Two::new("");
    let mut afresh = two.bench.request(&two.dockerfile);
    afresh.no_cache = true;
    let (cancel, watch) = (Cancel::new(), Watch::default());
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let request = two.bench.request(&two.dockerfile);
            two.bench.build_seen_by(&watch, &request, &cancel)
        });
        wait_for("the first build's step", || {
            watch.printed().contains("hold")
        });
        let second = scope.spawn(|| two.bench.build_as(&afresh, &Cancel::new()));
        two.open_gate();
        (first.join().unwrap(), second.join().unwrap())
    });
    assert_eq!((first.ran.len(), second.ran.len()), (1, 1));
}

/// Where the process that is killed has its store, and what it builds.
const ROOT: &str = "COFFERDAM_TEST_FOLLOW_ROOT";

/// The process behind the next test: builds until it is killed, or has waited for that for too long.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let two = Two::over(Bench::over(root.into()), "");
    let request = two.bench.request(&two.dockerfile);
    let cancel = Cancel::new();
    let late = cancel.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(180));
        late.cancel();
    });
    let built = two.bench.build_as(&request, &cancel);
    panic!("not killed: {:?}", built.result);
}

/// The kernel drops the lock of who was killed, and who waits looks several times a second: nobody
/// waits for a time-out.
#[test]
fn who_waits_takes_over_from_a_process_that_was_killed() {
    /// A few looks, with much to spare.
    const SOON: Duration = Duration::from_secs(5);
    let two = Two::new("");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "follow::child", "--nocapture"])
        .env(ROOT, two.bench.root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = two.bench.request(&two.dockerfile);
    let (watch, cancel) = (Watch::default(), Cancel::new());
    // The other process has the step once its log can be followed.
    let store = two.bench.open();
    wait_for("the step of the other process", || {
        let builds = store.builds(1).unwrap();
        let logs = builds
            .first()
            .map(|build| store.step_logs(build.id).unwrap());
        logs.is_some_and(|logs| !logs.is_empty())
    });
    store.close().unwrap();
    let (built, took) = thread::scope(|scope| {
        let build = scope.spawn(|| two.bench.build_seen_by(&watch, &request, &cancel));
        wait_for("its output here", || watch.printed().contains("hold"));
        child.kill().unwrap();
        let killed = Instant::now();
        wait_for("a word on it", || {
            !watch.warnings.lock().unwrap().is_empty()
        });
        let took = killed.elapsed();
        two.open_gate();
        (build.join().unwrap(), took)
    });
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(took < SOON, "{took:?}");
    built.result.as_ref().unwrap();
    assert_eq!(built.ran.len(), 1);
    let warnings = watch.warnings.lock().unwrap();
    assert_eq!(
        *warnings,
        ["`test` ended without a result; running the step in this build"]
    );
    assert!(two.second_log().ends_with(" and released"));
}
