//! Boots: refused ones with stand-in monitors, and real ones.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use exec::Cancel;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::registry::{Record, Registry, RegistryError, Resource};
use super::{BootContext, BootError, boot};
use crate::GuestImage;
use crate::accel::Accel;
use crate::guest_image;
use crate::monitor::confine::Wall;
use crate::monitor::machine::descriptor::VSOCK;
use crate::monitor::trampoline::{Trampoline, become_monitor};
use crate::notice::{Notice, Watcher};
use crate::options::Options;

/// A registry that is a plain directory, and remembers what was recorded.
#[derive(Debug)]
pub(crate) struct PlainRegistry {
    dir: tempfile::TempDir,
    scratch: PathBuf,
    records: Arc<Mutex<Vec<Resource>>>,
}

impl PlainRegistry {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        Self {
            dir,
            scratch,
            records: Arc::default(),
        }
    }

    /// What is recorded now.
    pub(crate) fn records(&self) -> Vec<Resource> {
        self.records.lock().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn check_clean(&self) {
        assert_eq!(self.records(), []);
        assert_eq!(fs::read_dir(&self.scratch).unwrap().count(), 0);
    }
}

struct PlainRecord(Arc<Mutex<Vec<Resource>>>, Resource);

impl Record for PlainRecord {
    fn remove(self: Box<Self>) -> Result<(), RegistryError> {
        match &self.1 {
            // It was replaced by one that knows the process.
            Resource::Monitor { pid: 0, .. } => {}
            Resource::Monitor { lock, .. } => {
                // Free, if it still exists: nobody holds it any more.
                if let Ok(file) = fs::File::open(lock) {
                    file.try_lock()?;
                }
            }
            Resource::Directory(path) => assert!(!path.exists(), "{path:?} is still there"),
        }
        self.0
            .lock()
            .unwrap()
            .retain(|resource| *resource != self.1);
        Ok(())
    }
}

impl Registry for PlainRegistry {
    fn scratch(&self) -> &Path {
        &self.scratch
    }

    fn record(&self, resource: &Resource) -> Result<Box<dyn Record>, RegistryError> {
        if let Resource::Monitor { lock: path, pid: 0 } | Resource::Directory(path) = resource {
            assert!(!path.exists(), "recorded before it is made");
        }
        self.records.lock().unwrap().push(resource.clone());
        Ok(Box::new(PlainRecord(
            Arc::clone(&self.records),
            resource.clone(),
        )))
    }

    fn load(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.path().join(name)).ok()
    }

    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        Ok(fs::write(self.dir.path().join(name), bytes)?)
    }
}

/// How tests become monitors: through this program, as the product does. The test harness prints lines
/// of its own, which must not get to the guest's console: so standard output is put aside meanwhile.
/// Another descriptor is open on the harness itself, as if somebody had left it so.
pub(crate) fn trampoline() -> Trampoline {
    let script = "exec 8<\"$0\" 9>&1 >/dev/null; export RUST_BACKTRACE=0; \
        exec \"$0\" --exact vm::tests::helper_trampoline --ignored --nocapture -- \"$@\"";
    let this = std::env::current_exe().unwrap();
    Trampoline {
        program: "sh".into(),
        args: vec!["-c".into(), script.into(), this.into()],
    }
}

/// Not a test of its own: the program that becomes a monitor in other tests.
#[test]
#[ignore = "a process of other tests"]
fn helper_trampoline() {
    let output = fs::File::options().write(true).open("/proc/self/fd/9");
    rustix::stdio::dup2_stdout(output.unwrap()).unwrap();
    let args = std::env::args_os().skip_while(|arg| arg != "--").skip(1);
    panic!("{}", become_monitor(args).unwrap_err());
}

/// A QEMU of a few lines of shell: it prints a version, and otherwise runs `script`.
pub(crate) fn fake_qemu(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("qemu");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--version) echo 'QEMU emulator version 9.9.9'; exit;; esac\n{script}\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub(crate) fn options(
    image: &Path,
    qemu: PathBuf,
    accel: Accel,
    torn_down: &[Wall],
) -> (Options, Arc<Mutex<Vec<Notice>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let options = Options {
        qemu,
        accel,
        memory_mib: Some(512),
        cpus: Some(1),
        disk_size: 1 << 30,
        trampoline: trampoline(),
        torn_down: torn_down.into(),
        watcher: Watcher::new(move |notice| heard.lock().unwrap().push(notice.clone())),
        ..Options::new(GuestImage::open(image).unwrap())
    };
    (options, notices)
}

#[track_caller]
fn check_refused(script: &str, stop: &Cancel) -> BootError {
    let dir = tempfile::tempdir().unwrap();
    guest_image::tests::write(dir.path(), wire::PROTOCOL);
    let registry = PlainRegistry::new();
    let (options, _) = options(
        dir.path(),
        fake_qemu(dir.path(), script),
        Accel::Tcg,
        &Wall::ALL,
    );
    let context = BootContext::new(&options, &registry).unwrap();
    let refused = boot(&context, stop).unwrap_err();
    registry.check_clean();
    refused
}

#[test]
fn a_monitor_that_ends_at_once_is_reported_with_its_messages() {
    let refused = check_refused("echo 'failed to set MSR' >&2; exit 1", &Cancel::new());
    assert!(matches!(refused, BootError::Ended { .. }));
    let text = refused.to_string();
    assert!(
        text.contains("failed to set MSR") && text.contains("exit status: 1"),
        "{text}"
    );
}

#[test]
fn a_monitor_that_crashes_is_started_once_more_and_one_that_refuses_is_not() {
    let count = tempfile::NamedTempFile::new().unwrap();
    for (end, starts) in [("kill -ABRT $$", 2), ("exit 1", 1), ("kill -TERM $$", 1)] {
        fs::write(count.path(), "").unwrap();
        let script = format!("echo started >>{}; {end}", count.path().display());
        let refused = check_refused(&script, &Cancel::new());
        assert!(matches!(refused, BootError::Ended { .. }), "{refused}");
        let started = fs::read_to_string(count.path()).unwrap().lines().count();
        assert_eq!(started, starts, "{end}");
    }
}

#[test]
fn the_last_lines_of_the_console_are_in_the_report() {
    let refused = check_refused("echo 'Kernel panic - not syncing'; exit 0", &Cancel::new());
    assert!(
        refused.to_string().contains("console: Kernel panic"),
        "{refused}"
    );
}

/// Not a test of its own: a monitor that sends nonsense to our device and does not end.
#[test]
#[ignore = "a process of other tests"]
fn helper_nonsense() {
    // Inherited, as in a real monitor.
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let device = pidfd_getfd(this, VSOCK, PidfdGetfdFlags::empty()).unwrap();
    let mut device = UnixStream::from(device);
    device.write_all(&[0xff; 4096]).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[test]
fn a_device_that_gave_up_on_its_vm_says_why() {
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "exec {} --exact vm::tests::helper_nonsense --ignored",
        this.display()
    );
    let refused = check_refused(&script, &Cancel::new());
    let BootError::Agent { source, .. } = &refused else {
        panic!("{refused:?}")
    };
    let text = source.to_string();
    assert!(
        text.contains("the vsock device disconnected") && text.contains("vhost-user"),
        "{text}"
    );
}

#[test]
fn a_boot_that_is_cancelled_ends_and_leaves_nothing() {
    let stop = Cancel::new();
    let later = stop.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        later.cancel();
    });
    assert!(matches!(
        check_refused("exec sleep 600", &stop),
        BootError::Cancelled
    ));
    thread.join().unwrap();
}

#[test]
fn a_host_without_qemu_is_told_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    guest_image::tests::write(dir.path(), wire::PROTOCOL);
    let registry = PlainRegistry::new();
    let (options, _) = options(dir.path(), "/nonexistent/qemu".into(), Accel::Tcg, &[]);
    let Err(refused) = BootContext::new(&options, &registry) else {
        panic!("there is none")
    };
    assert!(refused.to_string().contains("apt install"), "{refused}");
}

/// The guest image for real boots: the directory that `cargo xtask image` fills.
pub(crate) fn real_image() -> PathBuf {
    std::env::var_os("COFFERDAM_VM_IMAGE")
        .expect("COFFERDAM_VM_IMAGE is not set: run `cargo xtask test`")
        .into()
}

#[test]
#[ignore = "needs a VM"]
fn a_real_vm_boots_answers_and_ends_with_its_disk() {
    let image = real_image();
    let registry = PlainRegistry::new();
    let (options, notices) = options(&image, "qemu-system-x86_64".into(), Accel::Tcg, &[]);
    let context = BootContext::new(&options, &registry).unwrap();
    let vm = boot(&context, &Cancel::new()).unwrap_or_else(|err| panic!("{err}"));
    assert_eq!(registry.records().len(), 2);
    vm.session().stat().unwrap();
    let problems = vm.end();
    assert!(problems.is_empty(), "{problems:?}");
    registry.check_clean();
    let notices = notices.lock().unwrap();
    assert!(matches!(
        notices[..],
        [Notice::Booting { emulated: true }, Notice::Ready { .. }]
    ));
}

/// Whether KVM works or not does not matter: the verdict does.
#[test]
#[ignore = "needs a VM and /dev/kvm"]
fn with_dev_kvm_a_vm_boots_and_the_verdict_is_remembered() {
    let image = real_image();
    let registry = PlainRegistry::new();
    let (options, notices) = options(&image, "qemu-system-x86_64".into(), Accel::Auto, &[]);
    for round in 0..2 {
        let context = BootContext::new(&options, &registry).unwrap();
        let vm = boot(&context, &Cancel::new()).unwrap_or_else(|err| panic!("{err}"));
        vm.end();
        registry.check_clean();
        let heard = std::mem::take(&mut *notices.lock().unwrap());
        let tried = heard.contains(&Notice::Booting { emulated: false });
        let emulated = heard.contains(&Notice::Booting { emulated: true });
        // Where KVM does not work, only the first round finds out.
        assert_eq!(tried, !emulated || round == 0, "{heard:?}");
    }
}
