//! Builds that wait for the host's memory before their VM starts. A QEMU of a few lines of shell stands in
//! for the VM, so none of these needs one.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, StepError};
use store::{OpenOptions, Store};

use super::support::{BOUND, within};
use super::{Heard, VmExecutor, step};
use crate::vm::tests::{fake_qemu, options};
use crate::{Accel, Notice, guest_image};

const NOW: Duration = Duration::ZERO;

/// What Ctrl-C may take at most.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A host with memory for one VM of 512 MiB.
struct Host(tempfile::TempDir);

/// A process with its own handle of the store.
struct Process {
    executor: VmExecutor,
    store: Store,
    notices: Arc<Mutex<Vec<Notice>>>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        guest_image::tests::write(dir.path(), wire::PROTOCOL);
        Self(dir)
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn process(&self, command: &str) -> Process {
        self.process_on(command, 1000 << 20)
    }

    fn process_on(&self, command: &str, total: u64) -> Process {
        let open = OpenOptions {
            command: command.into(),
            read_only: false,
        };
        let store = Store::open(&self.dir().join("store"), &open).unwrap();
        let qemu = fake_qemu(self.dir(), "exec sleep 600");
        let (mut options, notices) = options(self.dir(), qemu, Accel::Tcg, &[]);
        options.total_memory = Some(total);
        Process {
            executor: VmExecutor::new(store.clone(), options),
            store,
            notices,
        }
    }

    /// Nothing is left over.
    #[track_caller]
    fn check_clean(&self) {
        let store = Store::open(&self.dir().join("store"), &OpenOptions::default()).unwrap();
        let report = store.check(false).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        let share = store.ask_for_memory(1, 1).unwrap();
        assert_eq!(share.poll().unwrap(), None);
        store.close().unwrap();
    }
}

impl Process {
    fn said(&self) -> Vec<String> {
        let notices = self.notices.lock().unwrap();
        notices.iter().map(ToString::to_string).collect()
    }

    fn has_booted(&self) -> bool {
        self.said().iter().any(|text| text.starts_with("booting"))
    }

    /// Waits until it has told what it waits for.
    #[track_caller]
    fn until_it_waits(&self) -> String {
        let deadline = Instant::now() + BOUND;
        loop {
            let said = self.said();
            if let Some(text) = said.iter().find(|text| text.starts_with("waiting")) {
                return text.clone();
            }
            assert!(Instant::now() < deadline, "it does not wait: {said:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn end(self) {
        assert_eq!(self.executor.finish(), [""; 0]);
        drop(self.executor);
        self.store.close().unwrap();
    }
}

#[test]
fn a_vm_starts_when_there_is_memory_for_it_and_says_who_has_it() {
    let host = Host::new();
    let (first, second) = (host.process("make one"), host.process("make two"));
    assert!(!first.executor.is_admitted(NOW), "nobody has asked yet");
    first.executor.prepare();
    assert!(first.executor.is_admitted(BOUND));
    second.executor.prepare();
    let text = second.until_it_waits();
    let holder = format!("512 MiB by `make one` (process {})", std::process::id());
    for part in ["needs 512 MiB", "of 1000 MiB", "512 are used", &holder] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(!second.executor.is_admitted(Duration::from_millis(300)));
    assert!(!second.has_booted());
    first.end();
    assert!(second.executor.is_admitted(BOUND));
    // It was told once, and not each time that it looked.
    let told = second.said().into_iter();
    assert_eq!(told.filter(|text| text.starts_with("waiting")).count(), 1);
    second.end();
    host.check_clean();
}

#[test]
fn a_build_that_waits_for_memory_ends_at_once_when_it_is_told_to() {
    let host = Host::new();
    let (first, second) = (host.process("one"), host.process("two"));
    first.executor.prepare();
    assert!(first.executor.is_admitted(BOUND));
    let cancel = Cancel::new();
    let run = step(&[], "true");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| second.executor.run(&run, &mut Heard::default(), &cancel));
        second.until_it_waits();
        within(AT_ONCE, || {
            cancel.cancel();
            let ended = run.join().unwrap();
            assert!(matches!(ended, Err(StepError::Cancelled)), "{ended:?}");
            assert_eq!(second.executor.finish(), [""; 0]);
        });
    });
    second.end();
    // It is in nobody's way.
    let third = host.process("three");
    third.executor.prepare();
    third.until_it_waits();
    first.end();
    assert!(third.executor.is_admitted(BOUND));
    third.end();
    host.check_clean();
}

#[test]
fn a_vm_larger_than_all_memory_for_vms_runs_alone_with_a_warning() {
    let host = Host::new();
    let (large, other) = (host.process_on("large", 300 << 20), host.process("other"));
    large.executor.prepare();
    assert!(large.executor.is_admitted(BOUND));
    let said = large.said().join("\n");
    for part in ["512 MiB", "the 300 MiB", "--memory", "--total-memory"] {
        assert!(said.contains(part), "no {part}: {said}");
    }
    other.executor.prepare();
    other.until_it_waits();
    large.end();
    assert!(other.executor.is_admitted(BOUND));
    other.end();
    host.check_clean();
}

#[test]
fn a_build_whose_vm_cannot_start_gives_its_memory_back() {
    let host = Host::new();
    let broken = host.process("broken");
    fake_qemu(host.dir(), "exit 1");
    let run = step(&[], "true");
    let failed = broken
        .executor
        .run(&run, &mut Heard::default(), &Cancel::new());
    assert!(matches!(failed, Err(StepError::Host(_))), "{failed:?}");
    broken.end();
    host.check_clean();
}
