//! What a step can and cannot do, compared with a container of Docker: many small attempts in one VM, and
//! the same in a VM whose guest has no walls.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tests::attempts::Attempts;
use tests::programs::{Abi, set_xattr, syscall};
use tests::{BUSYBOX, Bench, Done, run};

use crate::hostile_image;

/// A line of the table: commands of a shell.
enum Row {
    /// An attempt. The first must fail in a step and succeed where no walls are; the second shows that the
    /// first fails for no other reason, and must succeed in a step.
    Refused(&'static str, &'static str, &'static str),
    /// It works as in Docker.
    Works(&'static str, &'static str),
}

use Row::{Refused, Works};

/// Programs that make one system call. They exit with its error number, or with 250 and more if they
/// got a descriptor.
const PROGRAMS: &[(&str, Abi, u32, &[u32])] = &[
    ("getuid-32", Abi::I386, 199, &[]),
    ("geteuid", Abi::X86_64, 107, &[]),
    ("geteuid-setuid", Abi::X86_64, 107, &[]),
    ("socket-unix", Abi::X86_64, 41, &[1, 1]),
    ("socket-ping", Abi::X86_64, 41, &[2, 2, 1]),
    ("socket-inet", Abi::X86_64, 41, &[2, 1]),
    ("socket-vsock", Abi::X86_64, 41, &[40, 1]),
    ("socket-alg", Abi::X86_64, 41, &[38, 5]),
    ("socket-unix-32", Abi::I386, 359, &[1, 1]),
    ("socket-vsock-32", Abi::I386, 359, &[40, 1]),
    ("socket-vsock-x32", Abi::X32, 41, &[40, 1]),
    ("socketcall-32", Abi::I386, 102, &[99, 0]),
    ("mount-32", Abi::I386, 21, &[]),
    ("mount-x32", Abi::X32, 165, &[]),
    ("unshare-user", Abi::X86_64, 272, &[0x1000_0000]),
    ("unshare-user-32", Abi::I386, 310, &[0x1000_0000]),
    ("clone-user", Abi::X86_64, 56, &[0x1000_0011]),
    ("clone3", Abi::X86_64, 435, &[]),
    ("unknown", Abi::X86_64, 600, &[]),
    ("keyctl", Abi::X86_64, 250, &[0, 0xffff_fffd, 1]),
    ("add-key", Abi::X86_64, 248, &[]),
    ("bpf", Abi::X86_64, 321, &[]),
    ("bpf-32", Abi::I386, 357, &[]),
    ("io-uring", Abi::X86_64, 425, &[8]),
    ("userfaultfd", Abi::X86_64, 323, &[1]),
    ("perf", Abi::X86_64, 298, &[]),
    ("init-module", Abi::X86_64, 175, &[]),
    ("reboot", Abi::X86_64, 169, &[0xfee1_dead, 672_274_793, 0]),
    ("kexec", Abi::X86_64, 246, &[]),
    ("open-by-handle", Abi::X86_64, 304, &[]),
    ("iopl", Abi::X86_64, 172, &[3]),
    ("personality-random", Abi::X86_64, 135, &[0x004_0000]),
    ("personality-linux32", Abi::X86_64, 135, &[8]),
    ("priority-up", Abi::X86_64, 141, &[0, 0, 0xffff_fffb]),
    ("priority-down", Abi::X86_64, 141, &[0, 0, 5]),
    ("ptrace-me", Abi::X86_64, 101, &[0]),
];

/// Programs that set this extended attribute of `/attributes`.
const XATTRS: &[(&str, &str, &[u8])] = &[
    ("xattr-user", "user.anything", b"1"),
    ("xattr-security", "security.anything", b"1"),
    ("xattr-ima", "security.ima", b"1"),
    ("xattr-trusted", "trusted.anything", b"1"),
    ("xattr-overlay", "trusted.overlay.opaque", b"y"),
    ("xattr-capability", "security.capability", CAPABILITY),
];

/// `cap_net_raw=ep`.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

const TABLE: &[Row] = &[
    // The agent's program, and what a step gets from it.
    Works("pid-1-is-the-step", "test /proc/1/exe -ef /bin/busybox"),
    Works(
        "pid-1-sees-its-own-root",
        "test /proc/1/root/bin/busybox -ef /bin/busybox",
    ),
    Works(
        "pid-1-has-a-working-directory-of-the-step",
        "test /proc/1/cwd -ef /",
    ),
    Refused(
        "a-descriptor-besides-the-standard-ones",
        "ls -l /proc/1/fd | grep -- '->' | grep -vE ' (0 -> /dev/null|[12] -> pipe:.*|10 -> /run)$'",
        "ls -l /proc/1/fd | grep -- ' 0 -> /dev/null'",
    ),
    Works(
        "stdin-is-the-null-device-of-the-step",
        "test /proc/1/fd/0 -ef /dev/null",
    ),
    Refused(
        "environment-of-the-agent",
        "tr '\\0' '\\n' </proc/1/environ | grep -vE '^(PATH|HOME|PWD|SHLVL)='",
        "grep -q PATH= /proc/1/environ",
    ),
    Refused(
        "processes-of-the-agent",
        "ls /proc | grep -x 2 && grep kthreadd /proc/2/comm",
        "ls /proc | grep -x 1",
    ),
    Refused(
        "mounts-of-the-agent",
        "grep -E ' /(disk|mnt|sysroot)' /proc/1/mountinfo",
        "grep ' / / ' /proc/1/mountinfo",
    ),
    // What is masked.
    Refused("acpi", "ls /proc/acpi/*", "ls /proc/self"),
    Refused(
        "interrupts",
        "cat /proc/interrupts | grep .",
        "cat /proc/stat | grep .",
    ),
    Refused(
        "kernel-memory",
        "head -c 1 /proc/kcore | grep .",
        "ls /proc/kcore",
    ),
    Refused("keys", "cat /proc/keys | grep .", "ls /proc/keys"),
    Refused(
        "timers",
        "cat /proc/timer_list | grep .",
        "ls /proc/timer_list",
    ),
    Refused(
        "command-line-of-the-kernel",
        "cat /proc/cmdline | grep .",
        "ls /proc/cmdline",
    ),
    Refused(
        "symbols",
        "cat /proc/kallsyms | head -n 1 | grep .",
        "ls /proc/kallsyms",
    ),
    Refused("dynamic-debug", "ls /proc/dynamic_debug/*", "ls /proc/self"),
    Refused(
        "registers-of-devices-in-proc",
        "ls /proc/bus/pci/*",
        "ls /proc/bus",
    ),
    Refused(
        "registers-of-devices-in-sys",
        "ls /sys/bus/pci/* || ls /sys/devices/pci0000:00/*",
        "ls /sys/bus/*",
    ),
    Refused("firmware", "ls /sys/firmware/*", "ls /sys/kernel/*"),
    Works("power", "! ls /sys/devices/virtual/powercap/*"),
    Refused(
        "debugging",
        "ls /sys/kernel/debug/* || ls /sys/kernel/tracing/* || ls /sys/kernel/security/*",
        "ls /sys/kernel/mm",
    ),
    Refused(
        "allocations",
        "head -n 1 /proc/vmallocinfo | grep .",
        "head -n 1 /proc/slabinfo | grep .",
    ),
    Refused(
        "kernel-log",
        "dmesg || head -c 1 /dev/kmsg || timeout 1 head -c 1 /proc/kmsg",
        "ls /proc/kmsg",
    ),
    // What is read-only.
    Refused(
        "settings",
        "echo 1 >/proc/sys/kernel/panic",
        "cat /proc/sys/kernel/panic",
    ),
    Refused(
        "settings-of-the-network",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
        "cat /proc/sys/net/ipv4/ip_forward",
    ),
    Refused(
        "core-pattern",
        "echo '|/x' >/proc/sys/kernel/core_pattern",
        "cat /proc/sys/kernel/core_pattern",
    ),
    Refused(
        "program-that-loads-modules",
        "echo /x >/proc/sys/kernel/modprobe",
        "cat /proc/sys/kernel/modprobe",
    ),
    Refused(
        "sysrq",
        "echo h >/proc/sysrq-trigger",
        "ls /proc/sysrq-trigger",
    ),
    Refused(
        "interrupt-settings",
        "echo 1 >/proc/irq/default_smp_affinity",
        "cat /proc/irq/default_smp_affinity",
    ),
    Refused(
        "sys",
        "echo 0 >/sys/kernel/mm/ksm/run || echo add >/sys/class/mem/null/uevent",
        "cat /sys/class/mem/null/uevent",
    ),
    Refused(
        "limits-of-the-control-group",
        "echo max >/sys/fs/cgroup/memory.max || mkdir /sys/fs/cgroup/x",
        "cat /sys/fs/cgroup/memory.max",
    ),
    Works(
        "control-group-is-a-root",
        "test \"$(cat /proc/self/cgroup)\" = 0::/",
    ),
    Works(
        "the-kernel-starts-no-program",
        "test -z \"$(cat /proc/sys/kernel/modprobe)\"",
    ),
    Works(
        "links-of-other-users-are-not-followed",
        "cd /proc/sys/fs && test \"$(cat protected_symlinks protected_hardlinks | tr -d '\\n')\" = 11",
    ),
    // Devices.
    Works(
        "devices",
        "test \"$(echo $(ls /dev))\" = 'core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero'",
    ),
    Works(
        "devices-work",
        "echo >/dev/null && head -c 1 /dev/zero >/x && rm /x && ! echo 2>/dev/null >/dev/full",
    ),
    Works("shared-memory", "echo x >/dev/shm/x && rm /dev/shm/x"),
    Refused(
        "memory-device",
        "mknod /mem c 1 1 && head -c 1 /mem >/x",
        "mknod /mem2 c 1 1",
    ),
    Refused(
        "guest-disk",
        "mknod /disk1 b 254 0 && head -c 1 /disk1 >/x",
        "mknod /disk2 b 254 0",
    ),
    Refused("whiteout", "mknod /white c 0 0", "mknod /null2 c 1 3"),
    Works("terminal", "! echo >/dev/tty && ls /dev/tty"),
    // Capabilities and what follows from them.
    Works(
        "capabilities",
        "grep -x 'CapEff:.00000000a80425fb' /proc/self/status && grep -x 'CapBnd:.00000000a80425fb' /proc/self/status",
    ),
    Works(
        "no-ambient-capabilities",
        "grep -x 'CapAmb:.0000000000000000' /proc/self/status && grep -x 'CapInh:.0000000000000000' /proc/self/status",
    ),
    Works(
        "no-new-privileges-is-off",
        "grep -x 'NoNewPrivs:.0' /proc/self/status",
    ),
    Works(
        "setuid-programs-work",
        "su -s /bin/sh nobody -c /t/geteuid-setuid && ! su -s /bin/sh nobody -c /t/geteuid",
    ),
    Works(
        "root-changes-owners",
        "touch /o && chown 5:6 /o && chmod 2755 /o && rm /o",
    ),
    Works("root-changes-its-root", "chroot / /bin/true"),
    Works("root-may-ping", "ping -c 1 -w 5 127.0.0.1"),
    Works(
        "everybody-may-ping",
        "su -s /bin/sh nobody -c /t/socket-ping || test $? -ge 250",
    ),
    Works(
        "everybody-may-listen-on-any-port",
        "test \"$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)\" = 0",
    ),
    Refused(
        "mount",
        "mkdir -p /m && mount -t tmpfs none /m",
        "mount | grep ' / '",
    ),
    Refused(
        "remount",
        "mount -o remount,rw /sys || mount -o remount,rw /proc/sys",
        "grep ' /proc/sys ' /proc/mounts",
    ),
    Refused(
        "unmount",
        "umount /etc/hosts || umount /proc/kcore || umount /dev/shm",
        "grep ' /proc/kcore ' /proc/mounts",
    ),
    Refused("host-name", "hostname other", "hostname"),
    Refused("clock", "date -s 2001-01-01 && date | grep 2001", "date"),
    Refused(
        "addresses",
        "ip link set lo down || ip addr add 10.9.9.9/32 dev lo",
        "ip addr show dev lo",
    ),
    Works(
        "priority",
        "t priority-up && test $r = 13 && t priority-down && test $r = 0",
    ),
    Refused(
        "protection-from-lack-of-memory",
        "echo -1 >/proc/self/oom_score_adj",
        "echo 500 >/proc/self/oom_score_adj",
    ),
    Works("no-core-files", "test \"$(ulimit -c)\" = 0"),
    Works(
        "open-files",
        "test \"$(ulimit -Sn) $(ulimit -Hn)\" = '1024 1048576'",
    ),
    Works(
        "more-open-files",
        "! ulimit -Hn 1048577 && ulimit -Hn 1048575",
    ),
    Works("mode-mask", "test \"$(umask)\" = 0022"),
    Works(
        "session-without-a-terminal",
        "test \"$(cut -d' ' -f6,7 /proc/1/stat)\" = '1 0'",
    ),
    Works(
        "attributes-that-the-layer-keeps",
        "touch /attributes && t xattr-user && test $r = 0 && t xattr-capability && test $r = 0",
    ),
    // System calls.
    Works("programs-of-32-bits", "t getuid-32 && test $r = 0"),
    Works(
        "sockets",
        "t socket-unix && test $r -ge 250 && t socket-inet && test $r -ge 250",
    ),
    Works("sockets-of-32-bits", "t socket-unix-32 && test $r -ge 250"),
    Works("socketcall", "t socketcall-32 && test $r = 22"),
    Works("personalities", "t personality-linux32 && test $r = 0"),
    Works("tracing", "t ptrace-me && test $r = 0"),
    // Files of the step's own.
    Works(
        "hosts-can-be-written",
        "echo '10.9.9.9 written' >>/etc/hosts && grep written /etc/hosts",
    ),
    Works(
        "name-servers-can-be-written",
        "echo 'search written' >>/etc/resolv.conf && grep written /etc/resolv.conf",
    ),
    Works(
        "hosts-can-be-rewritten",
        "grep -v written /etc/hosts >/h && cat /h >/etc/hosts && rm /h && chmod 600 /etc/hosts",
    ),
    Works(
        "hosts-cannot-be-removed",
        "! rm /etc/hosts && ! mv /etc/resolv.conf /x && touch /etc/x && rm /etc/x",
    ),
    Works(
        "host-name-is-a-file-of-the-image",
        "echo image >/etc/hostname && grep image /etc/hostname",
    ),
];

/// Programs whose call is an attempt, with the error that a step gets.
const CALLS: &[(&str, u8)] = &[
    ("socket-vsock", 1),
    ("socket-vsock-32", 1),
    ("socket-vsock-x32", 1),
    ("socket-alg", 1),
    ("mount-32", 1),
    ("mount-x32", 1),
    ("unshare-user", 1),
    ("unshare-user-32", 1),
    ("clone-user", 1),
    ("clone3", 38),
    ("keyctl", 1),
    ("add-key", 1),
    ("bpf", 1),
    ("bpf-32", 1),
    ("io-uring", 1),
    ("userfaultfd", 1),
    ("perf", 1),
    ("init-module", 1),
    ("reboot", 1),
    ("kexec", 1),
    ("open-by-handle", 1),
    ("iopl", 1),
    ("personality-random", 1),
    ("xattr-security", 1),
    ("xattr-ima", 1),
    ("xattr-trusted", 1),
    ("xattr-overlay", 1),
];

/// Runs each row and says how it went.
const RUN: &str = "t() { r=0; /t/$1 >/dev/null 2>&1 || r=$?; }
for row in /rows/*; do
  verdict=
  for part in $row/*; do
    if (. $part) >/tmp/log 2>&1; then verdict=\"$verdict yes\"; else verdict=\"$verdict no\"; fi
    sed 's/^/  /' /tmp/log
  done
  echo \"row ${row#/rows/}:$verdict\"
done
";

/// How a row went, part by part: whether each command succeeded.
type Verdicts = BTreeMap<String, String>;

/// Writes the commands of each row into the context. Returns how each shall go in a step.
fn write_rows(bench: &Bench) -> Verdicts {
    let mut wanted = BTreeMap::new();
    let mut write = |name: &str, parts: &[&str], want: &str| {
        for (number, part) in parts.iter().enumerate() {
            bench.write(&format!("rows/{name}/{number}"), format!("{part}\n"));
        }
        let before = wanted.insert(name.to_owned(), want.to_owned());
        assert!(before.is_none(), "{name} stands there twice");
    };
    for row in TABLE {
        match row {
            Refused(name, attempt, control) => write(name, &[attempt, control], ATTEMPT),
            Works(name, command) => write(name, &[command], " yes"),
        }
    }
    for (call, error) in CALLS {
        let says = |relation| format!("touch /attributes; t {call}; test $r {relation} {error}");
        write(call, &[&says("!="), &says("=")], ATTEMPT);
    }
    wanted
}

/// How an attempt shall go in a step.
const ATTEMPT: &str = " no yes";

/// Writes the programs that the rows use.
fn write_programs(bench: &Bench) {
    let write = |name: &str, program: Vec<u8>| {
        bench.write(&format!("t/{name}"), program);
        let setuid = if name.ends_with("-setuid") { 0o4000 } else { 0 };
        bench.chmod(&format!("t/{name}"), 0o755 | setuid);
    };
    for (name, abi, number, arguments) in PROGRAMS {
        write(name, syscall(*abi, *number, arguments));
    }
    for (name, attribute, value) in XATTRS {
        write(name, set_xattr("/attributes", attribute, value));
    }
}

/// Runs the rows. What is copied to `/etc` has no files of the agent's there yet.
const ROWS: &str = "COPY etc /etc/
COPY t /t/
COPY rows /rows/
COPY run /run
RUN mkdir -p -m 1777 /tmp
RUN sh /run
";

/// What the steps after the rows find of them.
const AFTER: &str =
    "RUN ! grep -E '^Sig(Blk|Ign|Pnd):' /proc/self/status | grep -v 0000000000000000
RUN ! grep written /etc/hosts /etc/resolv.conf && stat -c %a /etc/hosts | grep 644
";

/// A context with the rows and all that they need, and how they shall go in a step.
fn set_up() -> (Bench, Verdicts) {
    let bench = Bench::new();
    bench.write("run", RUN);
    let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
    bench.write("etc/passwd", users);
    bench.write("etc/group", "root:x:0:\nnobody:x:65534:\n");
    write_programs(&bench);
    let wanted = write_rows(&bench);
    (bench, wanted)
}

/// How each row went.
fn verdicts(done: &Done) -> Verdicts {
    let lines = done.stderr.lines();
    let rows = lines.filter_map(|line| line.split_once(" row ")?.1.split_once(':'));
    rows.map(|(name, verdict)| (name.to_owned(), verdict.to_owned()))
        .collect()
}

/// How each row goes in a VM without walls.
fn without_walls() -> Verdicts {
    let (bench, _) = set_up();
    bench.write("Dockerfile", format!("{BUSYBOX}{ROWS}"));
    let mut command = bench.build_command(&[]);
    command.env("COFFERDAM_VM_IMAGE", hostile_image());
    let done = run(command).expect_status(0);
    bench.check_clean();
    verdicts(&done)
}

#[test]
fn a_hostile_step_is_confined_as_a_container_of_docker() {
    let (bench, wanted) = set_up();
    let out = bench.out().join("tree");
    let output = format!("type=local,dest={},setuid=true", out.display());
    let dockerfile = format!("{BUSYBOX}{ROWS}{AFTER}");
    let done = bench.build(&dockerfile, &["-o", &output]);
    let done = done.expect_status(0);
    let got = verdicts(&done);
    let bare = without_walls();
    let mut attempts = Attempts::of("steps");
    for (name, want) in wanted {
        let verdict = got.get(&name);
        if want == ATTEMPT {
            let control = bare.get(&name);
            let succeeds = control.is_some_and(|parts| parts.starts_with(" yes"));
            let contained = verdict == Some(&want);
            let details = format!("in a step:{verdict:?}, without walls:{control:?}");
            attempts.note(&name, contained, succeeds, &details);
        } else {
            assert_eq!(verdict, Some(&want), "{name}\n{}", done.stderr);
        }
    }
    check_what_is_left(&out);
    bench.check_clean();
    attempts.finish();
}

/// What the rows left in the image.
fn check_what_is_left(out: &Path) {
    let attributes = out.join("attributes");
    let kept: Vec<_> = xattr::list(&attributes).unwrap().collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let capability = xattr::get(&attributes, "security.capability").unwrap();
    assert_eq!(capability.as_deref(), Some(CAPABILITY));
    // Mount points leave no trace, and neither does what was written to the files of a step.
    let mut left: Vec<_> = fs::read_dir(out.join("etc"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["group", "hostname", "passwd"]);
    for name in ["proc", "sys", "dev"] {
        assert!(!out.join(name).exists(), "{name}");
    }
}

#[test]
fn a_hostile_step_cannot_start_the_agents_program() {
    let bench = Bench::new();
    bench.write("script", "#!/proc/self/exe\n");
    bench.chmod("script", 0o755);
    let text = format!("{BUSYBOX}COPY script /script\n");
    for command in ["/proc/self/exe", "/script"] {
        let done = bench.build(&format!("{text}RUN [\"{command}\"]\n"), &[]);
        let done = done.expect_status(1);
        done.says(&["Permission denied"]);
    }
    // A descriptor of the agent would be a way out of the step's root.
    for number in [4, 6] {
        let text = format!("{text}WORKDIR /proc/self/fd/{number}\nRUN [\"/bin/ls\"]\n");
        let done = bench.build(&text, &[]);
        let _refused = done.expect_status(1);
    }
    bench.check_clean();
}
