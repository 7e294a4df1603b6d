//! What a confined process cannot do, and what the kernel says about it. Each wall is also torn down
//! once, to show that its test would see that.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use exec::Cancel;
use nix::unistd::geteuid;

use super::detect::FIRST_ID;
use super::*;
use crate::Accel;
use crate::monitor::process::{Monitor, Spec};
use crate::monitor::qemu::Qemu;
use crate::vm::tests::{PlainRegistry, options, real_image, trampoline};
use crate::vm::{BootContext, boot};

const SOON: Duration = Duration::from_secs(30);
const FILE_SIZE: u64 = 1 << 40;

/// The walls of this host for a shell in place of QEMU.
pub(crate) fn walls() -> Walls {
    let shell = Qemu {
        program: "/bin/sh".into(),
        version: "1.0".into(),
        number: (1, 0),
        sandbox: true,
    };
    detect(&shell, &[])
}

/// Runs a script as a monitor.
fn start(dir: &Path, script: &str, walls: Walls, inherited: Vec<Inherited>) -> Monitor {
    let spec = Spec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        dir: dir.into(),
        lock: File::create(dir.join("lock")).unwrap(),
        confinement: Confinement {
            walls,
            inherited,
            devices: Vec::new(),
            file_size: FILE_SIZE,
        },
    };
    Monitor::start(spec, &trampoline()).unwrap()
}

/// Everything that a script prints as a monitor.
fn said(dir: &Path, script: &str, walls: Walls, inherited: Vec<Inherited>) -> String {
    let monitor = start(dir, script, walls, inherited);
    let ended = monitor.wait(SOON).unwrap();
    monitor.kill(SOON).unwrap().unwrap();
    assert!(
        ended.is_some_and(|end| end.success()),
        "{}",
        monitor.last_words()
    );
    monitor.console.last_lines(100).join("\n")
}

/// Whether the kernel shows that a process is behind this wall.
fn shows(wall: Wall, pid: u32) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let observed = Observed::of(pid).unwrap();
    let limit = |name: &str, value: u64| {
        let value = value.to_string();
        let limits = read("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap().split_whitespace();
        words.take(2).all(|word| word == value)
    };
    match wall {
        Wall::Seccomp => observed.seccomp,
        Wall::User => {
            let status = read("status");
            let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
            observed.user == FIRST_ID + pid && groups.unwrap().trim().is_empty()
        }
        Wall::Capabilities if geteuid().is_root() => {
            (observed.capabilities, observed.bounding) == (0, 0)
        }
        Wall::Capabilities => observed.capabilities == 0,
        Wall::NoNewPrivileges => observed.no_new_privileges,
        Wall::Descriptors => {
            // `trampoline` leaves one open on this program.
            let this = std::env::current_exe().unwrap();
            let mut open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            !open.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|file| file == this))
        }
        // A shell adds some of its own.
        Wall::Environment => !read("environ").contains("PATH="),
        Wall::Limits => {
            limit("Max core file size", 0)
                && limit("Max open files", 4096)
                && read("coredump_filter").trim() == "00000000"
        }
        Wall::Landlock => panic!("the kernel does not show it"),
    }
}

#[track_caller]
fn check_shown(walls: &[Wall]) {
    let dir = tempfile::tempdir().unwrap();
    let observe = |torn_down: &[Wall]| {
        let all = self::walls().without(torn_down);
        let monitor = start(dir.path(), "echo ready; exec sleep 600", all, Vec::new());
        while monitor.console.total() < 6 && monitor.wait(Duration::ZERO).unwrap().is_none() {
            thread::yield_now();
        }
        let shown: Vec<bool> = walls
            .iter()
            .map(|wall| shows(*wall, monitor.id()))
            .collect();
        assert!(monitor.kill(SOON).unwrap().is_some());
        shown
    };
    assert_eq!(observe(&[]), vec![true; walls.len()], "{walls:?}");
    for (place, wall) in walls.iter().enumerate() {
        // Landlock refuses new privileges too.
        let shown = observe(&[*wall, Wall::Landlock]);
        let others = shown
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != place);
        assert!(!shown[place], "{wall:?} is not seen to be missing");
        assert!(others.into_iter().all(|(_, shown)| *shown), "{wall:?}");
    }
}

#[test]
fn the_kernel_shows_the_walls_and_misses_one_that_is_torn_down() {
    check_shown(&[
        Wall::NoNewPrivileges,
        Wall::Descriptors,
        Wall::Environment,
        Wall::Limits,
    ]);
}

#[test]
#[ignore = "needs root"]
fn as_root_a_monitor_is_another_user_without_capabilities() {
    assert!(walls().have(Wall::User), "{:?}", walls().missing);
    check_shown(&[Wall::User, Wall::Capabilities]);
}

#[test]
fn no_file_of_others_is_read_or_written_behind_landlock() {
    if !walls().have(Wall::Landlock) {
        let missing = walls().missing;
        assert!(missing.iter().any(|(wall, _)| *wall == Wall::Landlock));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), open).unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "leaked\n").unwrap();
    let new = dir.path().join("new");
    let script = format!(
        "cat {}; echo x >{} && echo written; cat /proc/1/comm /etc/passwd && echo read; \
         echo done",
        secret.display(),
        new.display()
    );
    assert_eq!(said(dir.path(), &script, walls(), vec![]), "done");
    assert!(!new.exists());
    let without = said(
        dir.path(),
        &script,
        walls().without(&[Wall::Landlock]),
        vec![],
    );
    assert!(without.starts_with("leaked\nwritten\n"), "{without}");
    assert!(without.ends_with("read\ndone"), "{without}");
}

#[test]
fn files_that_are_handed_over_are_read_whoever_owns_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    for mode in [0o600, 0o644] {
        let path = dir.path().join(format!("{mode:o}"));
        fs::write(&path, "whole\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let source = Source::Read(path);
        let inherited = vec![Inherited {
            number: 101,
            source,
        }];
        let read = "cat /proc/self/fd/101";
        assert_eq!(said(dir.path(), read, walls(), inherited), "whole");
    }
}

#[test]
fn a_file_that_cannot_be_handed_over_is_named_and_nothing_starts() {
    let dir = tempfile::tempdir().unwrap();
    for source in [
        Source::Read("/missing/file".into()),
        Source::ReadWrite("/missing/file".into()),
        Source::Connect("/missing/file".into()),
    ] {
        let inherited = vec![Inherited {
            number: 101,
            source,
        }];
        let monitor = start(dir.path(), "echo started", walls(), inherited);
        assert!(!monitor.wait(SOON).unwrap().unwrap().success());
        monitor.kill(SOON).unwrap().unwrap();
        let words = monitor.last_words();
        assert!(words.contains("`/missing/file`"), "{words}");
        assert!(!words.contains("started"), "{words}");
    }
}

/// Boots a real VM, and says which of the walls the kernel shows around its QEMU.
fn boot_and_look(torn_down: &[Wall]) -> Vec<Wall> {
    let registry = PlainRegistry::new();
    let (options, _) = options(
        &real_image(),
        "qemu-system-x86_64".into(),
        Accel::Tcg,
        torn_down,
    );
    let context = BootContext::new(&options, &registry).unwrap();
    let vm = boot(&context, &Cancel::new()).unwrap_or_else(|err| panic!("{err}"));
    let pid = vm.monitor_pid();
    assert_eq!(Observed::of(pid).ok(), vm.report().confinement);
    let visible = Wall::ALL.into_iter().filter(|wall| *wall != Wall::Landlock);
    let shown = visible.filter(|wall| shows(*wall, pid)).collect();
    vm.session().stat().expect("the guest works");
    let problems = vm.end();
    assert!(problems.is_empty(), "{problems:?}");
    registry.check_clean();
    shown
}

#[test]
#[ignore = "needs a VM"]
fn a_running_qemu_is_behind_every_wall_and_behind_none_without_them() {
    let is_root = geteuid().is_root();
    let visible = Wall::ALL.into_iter();
    let visible = visible.filter(|wall| *wall != Wall::Landlock);
    let expected: Vec<Wall> = visible
        .filter(|wall| *wall != Wall::User || is_root)
        .collect();
    assert_eq!(boot_and_look(&[]), expected);
    // Without root there are no capabilities anyway.
    let rest: &[Wall] = if is_root { &[] } else { &[Wall::Capabilities] };
    assert_eq!(boot_and_look(&Wall::ALL), rest);
}

/// If this fails at once, user 65534 may not execute this program or read the guest image where it is.
#[test]
#[ignore = "needs a VM"]
fn as_root_the_qemu_of_another_user_is_behind_every_wall_that_needs_no_root() {
    let this = std::env::current_exe().unwrap();
    let test = "monitor::confine::tests::\
                a_running_qemu_is_behind_every_wall_and_behind_none_without_them";
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(this)
        .args(["--exact", test, "--ignored"])
        .env("COFFERDAM_VM_IMAGE", real_image())
        .env_remove("TMPDIR")
        .current_dir("/");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
}
