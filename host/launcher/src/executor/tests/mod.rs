//! Steps in real VMs. All of them but `admission` need the guest image; `cargo xtask test` makes it and runs
//! them.
//!
//! Here is what steps do in a VM that works. `owner_killed` is about the process that owns a VM, the
//! others about faults between the host and a VM (`docs/faults.md`).

mod admission;
mod cut_connections;
mod damaged_frames;
mod long_streams;
mod owner_killed;
mod pressure;
mod stopped_monitor;
mod support;

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, Output, StepError, StepNetwork, StepScript, StepSpec, Stream};
use store::{DiffId, Layer, OpenOptions, Store};

use super::VmExecutor;
use crate::vm::tests::{real_image, trampoline};
use crate::{Accel, GuestImage, Notice, Options, Watcher};

/// A build: a store with a base layer, and an executor.
struct Build {
    executor: VmExecutor,
    store: Store,
    base: DiffId,
    notices: Arc<Mutex<Vec<Notice>>>,
    dir: Option<tempfile::TempDir>,
}

/// A build in a real VM, with a store of its own.
fn build() -> Build {
    build_with(|_| {})
}

/// The same with other options.
fn build_with(change: impl FnOnce(&mut Options)) -> Build {
    let dir = tempfile::tempdir().unwrap();
    let build = build_at(dir.path(), change);
    Build {
        dir: Some(dir),
        ..build
    }
}

/// The same with the store in this directory.
fn build_in(dir: &Path) -> Build {
    build_at(dir, |_| {})
}

fn build_at(dir: &Path, change: impl FnOnce(&mut Options)) -> Build {
    let options = OpenOptions {
        command: "a test".into(),
        read_only: false,
    };
    let store = Store::open(&dir.join("store"), &options).unwrap();
    let base = busybox(&store).diff_id;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let mut options = Options {
        accel: Accel::Tcg,
        memory_mib: Some(1024),
        disk_size: 8 << 30,
        trampoline: trampoline(),
        watcher: Watcher::new(move |notice| heard.lock().unwrap().push(notice.clone())),
        ..Options::new(GuestImage::open(&real_image()).unwrap())
    };
    change(&mut options);
    let executor = VmExecutor::new(store.clone(), options);
    Build {
        executor,
        store,
        base,
        notices,
        dir: None,
    }
}

/// A layer with a static busybox and nothing else.
fn busybox(store: &Store) -> Layer {
    let mut program = Vec::new();
    let path = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    std::fs::File::open(path.expect("needs busybox-static"))
        .unwrap()
        .read_to_end(&mut program)
        .unwrap();
    let mut tar = tar::Builder::new(store.layer_writer("busybox").unwrap());
    let mut directory = tar::Header::new_ustar();
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_mode(0o755);
    directory.set_size(0);
    for name in ["bin/", "tmp/"] {
        tar.append_data(&mut directory, name, std::io::empty())
            .unwrap();
    }
    let mut file = tar::Header::new_ustar();
    file.set_mode(0o755);
    file.set_size(program.len() as u64);
    tar.append_data(&mut file, "bin/busybox", program.as_slice())
        .unwrap();
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    for name in [
        "sh", "echo", "cat", "sleep", "dd", "ls", "yes", "head", "seq", "md5sum", "awk", "tail",
        "wc", "cp",
    ] {
        tar.append_link(&mut link, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn step(layers: &[DiffId], script: &str) -> StepSpec {
    StepSpec {
        name: format!("RUN {script}"),
        key: store::StepKey(store::sha256(script.as_bytes())),
        layers: layers.to_vec(),
        args: ["/bin/sh", "-c", script].map(Into::into).into(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: vec![],
        hostname: "build".into(),
        hosts: vec![],
        network: StepNetwork::None,
        script: None,
    }
}

#[derive(Debug, Default, Clone)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Output for Heard {
    fn write(&mut self, _: Stream, data: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(data);
    }
}

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Build {
    fn run(&self, layers: &[DiffId], script: &str) -> Result<(Layer, String), StepError> {
        let mut heard = Heard::default();
        let done = self
            .executor
            .run(&step(layers, script), &mut heard, &Cancel::new())?;
        Ok((done.layer, heard.text()))
    }

    /// Its VM, which runs.
    fn guest(&self) -> Arc<super::Guest> {
        let state = self.executor.shared.lock();
        let super::Phase::Ready(guest) = &state.phase else {
            panic!("{:?}", state.phase)
        };
        Arc::clone(guest)
    }

    /// Ends it; nothing may be left.
    fn end(self) {
        assert_eq!(self.executor.finish(), [""; 0]);
        assert_eq!(std::fs::read_dir(self.store.scratch()).unwrap().count(), 0);
        let report = self.store.check(false).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        drop(self.executor);
        self.store.close().unwrap();
        drop(self.dir);
    }
}

#[test]
#[ignore = "needs a VM"]
fn steps_build_upon_each_other_in_one_vm() {
    let build = build();
    let (one, said) = build
        .run(&[build.base], "echo hello; echo one > /file")
        .unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(said, "hello\n");
    assert_eq!(one.entries, 1);
    let (two, said) = build
        .run(&[build.base, one.diff_id], "cat /file; echo two >> /file")
        .unwrap();
    assert_eq!(said, "one\n");
    let chain = [build.base, one.diff_id, two.diff_id];
    let (_, said) = build.run(&chain, "cat /file").unwrap();
    assert_eq!(said, "one\ntwo\n");
    let failed = build.run(&chain, "echo no >&2; exit 7").unwrap_err();
    assert!(
        matches!(failed, StepError::Failed { status: 7, .. }),
        "{failed:?}"
    );
    let report = {
        build.executor.finish();
        build.executor.report().unwrap()
    };
    assert!(report.agent_memory_peak > 0);
    assert_eq!(build.notices.lock().unwrap().len(), 2);
    build.end();
}

/// What a step can do, in one VM, since none of it is about the VM.
#[test]
#[ignore = "needs a VM"]
fn steps_of_every_kind_in_one_vm() {
    let build = build();
    for scenario in [
        a_program_that_does_not_exist_is_a_setup_error_and_the_vm_is_kept,
        a_script_that_comes_with_a_step_is_a_program_and_leaves_no_trace,
        steps_run_at_the_same_time_and_a_cancelled_one_is_killed,
        much_output_and_a_large_layer_arrive_whole_in_bounded_memory,
    ] {
        scenario(&build);
    }
    build.end();
}

fn a_program_that_does_not_exist_is_a_setup_error_and_the_vm_is_kept(build: &Build) {
    let spec = StepSpec {
        args: vec!["/bin/nothing".into()],
        ..step(&[build.base], "")
    };
    let failed = build
        .executor
        .run(&spec, &mut Heard::default(), &Cancel::new())
        .unwrap_err();
    assert!(matches!(failed, StepError::Setup(_)), "{failed:?}");
    build.run(&[build.base], "echo fine").unwrap();
}

fn a_script_that_comes_with_a_step_is_a_program_and_leaves_no_trace(build: &Build) {
    let script = StepScript {
        name: "E".into(),
        data: "#!/bin/sh -e\necho \"$0 and $#\"; echo >>$0 || cat $0\n".into(),
    };
    let spec = StepSpec {
        args: vec![script.path(), "one".into()],
        script: Some(script),
        ..step(&[build.base], "")
    };
    let heard = Heard::default();
    let done = build
        .executor
        .run(&spec, &mut heard.clone(), &Cancel::new());
    let layer = done.unwrap().layer;
    assert_eq!(layer.entries, 0, "{}", heard.text());
    let text = heard.text();
    assert!(text.contains("/dev/pipes/E and 1\n"), "{text}");
    assert!(text.contains("#!/bin/sh -e"), "{text}");
}

fn steps_run_at_the_same_time_and_a_cancelled_one_is_killed(build: &Build) {
    build.run(&[build.base], "echo ready").unwrap();
    let cancel = Cancel::new();
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let spec = step(&[build.base], "sleep 600");
            build.executor.run(&spec, &mut Heard::default(), &cancel)
        });
        for n in 0..3 {
            let (_, said) = build.run(&[build.base], &format!("echo {n}")).unwrap();
            assert_eq!(said, format!("{n}\n"));
        }
        let began = Instant::now();
        cancel.cancel();
        assert!(matches!(slow.join().unwrap(), Err(StepError::Cancelled)));
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{:?}",
            began.elapsed()
        );
    });
    build.run(&[build.base], "echo still here").unwrap();
}

fn much_output_and_a_large_layer_arrive_whole_in_bounded_memory(build: &Build) {
    let (_, said) = build.run(&[build.base], "yes | head -c 5000000").unwrap();
    assert_eq!(said.len(), 5_000_000);
    let size = 64 << 20;
    let script = format!("dd if=/dev/zero of=/big bs=1048576 count={}", size >> 20);
    let (big, _) = build.run(&[build.base], &script).unwrap();
    assert!(big.size > size);
}

#[test]
#[ignore = "needs a VM"]
fn a_vm_whose_monitor_is_killed_is_replaced_once() {
    let build = build();
    build.run(&[build.base], "echo ready").unwrap();
    thread::scope(|scope| {
        let slow = scope.spawn(|| build.run(&[build.base], "sleep 5; echo done"));
        thread::sleep(Duration::from_secs(1));
        kill_monitor(&build);
        let (_, said) = slow.join().unwrap().unwrap_or_else(|err| panic!("{err:?}"));
        assert!(
            said.ends_with("rerunning the step in a new VM]\ndone\n"),
            "{said}"
        );
    });
    let heard = build.notices.lock().unwrap().clone();
    assert!(
        heard.iter().any(|notice| matches!(notice, Notice::Lost(_))),
        "{heard:?}"
    );
    kill_monitor(&build);
    let lost = build.run(&[build.base], "echo again").unwrap_err();
    assert!(matches!(lost, StepError::Host(_)), "{lost:?}");
    build.end();
}

fn kill_monitor(build: &Build) {
    build.guest().vm.kill_monitor();
}

/// A guest that was taken over could have changed the layers on its disk.
#[test]
#[ignore = "needs a VM"]
fn a_disk_serves_one_vm_and_goes_with_it() {
    let first = build();
    let disk = || {
        let dirs = std::fs::read_dir(first.store.scratch()).unwrap();
        let mut disks = dirs.map(|dir| dir.unwrap().path().join(crate::vm::DISK));
        disks.find(|disk| disk.exists())
    };
    first.run(&[first.base], "echo one").unwrap();
    let used = disk().unwrap();
    // Nothing can be mounted again that is not there any more.
    assert_eq!(first.executor.finish(), [""; 0]);
    assert!(!used.exists());
    assert_eq!(disk(), None);
    let options = Options {
        trampoline: trampoline(),
        ..first.executor.shared.options.clone()
    };
    let second = VmExecutor::new(first.store.clone(), options);
    let step = step(&[first.base], "echo two");
    let done = second.run(&step, &mut Heard::default(), &Cancel::new());
    done.unwrap();
    let imported = second.shared.lock();
    let super::Phase::Ready(guest) = &imported.phase else {
        panic!("{:?}", imported.phase)
    };
    // The base was sent again.
    assert!(guest.vm.report().transfers.imported.bytes > 0);
    drop(imported);
    assert_eq!(second.finish(), [""; 0]);
    first.end();
}

#[test]
#[ignore = "needs a VM"]
fn a_build_that_ends_while_its_vm_boots_leaves_nothing() {
    let build = build();
    build.executor.prepare();
    thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    build.executor.finish();
    assert!(began.elapsed() < Duration::from_secs(10));
    build.end();
}

#[test]
#[ignore = "needs a VM"]
fn a_build_without_steps_boots_nothing() {
    let build = build();
    assert_eq!(build.executor.report(), None);
    assert!(build.notices.lock().unwrap().is_empty());
    build.end();
}
