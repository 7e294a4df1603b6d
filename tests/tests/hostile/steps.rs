//! What a step can and cannot do, compared with a container of Docker: many small attempts in one VM.

use std::collections::BTreeMap;
use std::fs;

use tests::programs::{Abi, set_xattr, syscall};
use tests::{BUSYBOX, Bench};

/// A line of the table: commands of a shell.
enum Row {
    /// The first must fail; the second shows that it fails for no other reason, and must succeed.
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
    Refused(
        "power",
        "ls /sys/devices/virtual/powercap/*",
        "ls /sys/devices/virtual/*",
    ),
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
        "echo b >/proc/sysrq-trigger",
        "ls /proc/sysrq-trigger",
    ),
    Refused(
        "interrupt-settings",
        "echo f >/proc/irq/default_smp_affinity",
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
        "mknod /mem c 1 1 && head -c 1 /mem",
        "mknod /mem2 c 1 1",
    ),
    Refused(
        "guest-disk",
        "mknod /disk b 254 0 && head -c 1 /disk",
        "mknod /disk2 b 254 0",
    ),
    Refused("whiteout", "mknod /white c 0 0", "mknod /null2 c 1 3"),
    Refused("terminal", "echo >/dev/tty", "ls /dev/tty"),
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
    Refused("mount", "mount -t tmpfs none /bin", "mount | grep ' / '"),
    Refused(
        "remount",
        "mount -o remount,rw /sys || mount -o remount,rw /proc/sys",
        "grep ' /proc/sys ' /proc/mounts",
    ),
    Refused(
        "unmount",
        "umount /etc/hosts || umount /proc/kcore",
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
    Refused(
        "more-open-files",
        "ulimit -Hn 1048577",
        "ulimit -Hn 1048575",
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
    Works(
        "attributes-of-the-kernel",
        "touch /attributes && t xattr-security && test $r = 1 && t xattr-ima && test $r = 1",
    ),
    Works(
        "attributes-of-the-builder",
        "touch /attributes && t xattr-trusted && test $r = 1 && t xattr-overlay && test $r = 1",
    ),
    // System calls.
    Works("programs-of-32-bits", "t getuid-32 && test $r = 0"),
    Works(
        "sockets",
        "t socket-unix && test $r -ge 250 && t socket-inet && test $r -ge 250",
    ),
    Works("sockets-of-32-bits", "t socket-unix-32 && test $r -ge 250"),
    Works("socketcall", "t socketcall-32 && test $r = 22"),
    Works(
        "vsock",
        "t socket-vsock && test $r = 1 && t socket-vsock-32 && test $r = 1 && t socket-vsock-x32 && test $r = 1",
    ),
    Works("kernel-cryptography", "t socket-alg && test $r = 1"),
    Works(
        "mount-of-other-abis",
        "t mount-32 && test $r = 1 && t mount-x32 && test $r = 1",
    ),
    Works(
        "user-namespaces",
        "t unshare-user && test $r = 1 && t unshare-user-32 && test $r = 1 && t clone-user && test $r = 1",
    ),
    Works(
        "newer-calls-are-unknown",
        "t clone3 && test $r = 38 && t unknown && test $r = 38",
    ),
    Works(
        "keys-are-refused",
        "t keyctl && test $r = 1 && t add-key && test $r = 1",
    ),
    Works(
        "bpf-is-refused",
        "t bpf && test $r = 1 && t bpf-32 && test $r = 1",
    ),
    Works("rings-are-refused", "t io-uring && test $r = 1"),
    Works("page-faults-are-refused", "t userfaultfd && test $r = 1"),
    Works("performance-events-are-refused", "t perf && test $r = 1"),
    Works("modules-are-refused", "t init-module && test $r = 1"),
    Works(
        "reboot-is-refused",
        "t reboot && test $r = 1 && t kexec && test $r = 1",
    ),
    Works("handles-are-refused", "t open-by-handle && test $r = 1"),
    Works("ports-are-refused", "t iopl && test $r = 1"),
    Works(
        "personalities",
        "t personality-random && test $r = 1 && t personality-linux32 && test $r = 0",
    ),
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
    Refused(
        "hosts-cannot-be-removed",
        "rm /etc/hosts || mv /etc/resolv.conf /x",
        "touch /etc/x && rm /etc/x",
    ),
    Works(
        "host-name-is-a-file-of-the-image",
        "echo image >/etc/hostname && grep image /etc/hostname",
    ),
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

/// Writes the commands of each row into the context. Returns how each shall go.
fn write_rows(bench: &Bench) -> BTreeMap<&'static str, &'static str> {
    let mut wanted = BTreeMap::new();
    for row in TABLE {
        let (name, parts, want) = match row {
            Refused(name, attempt, control) => (name, vec![attempt, control], " no yes"),
            Works(name, command) => (name, vec![command], " yes"),
        };
        for (number, part) in parts.into_iter().enumerate() {
            bench.write(&format!("rows/{name}/{number}"), format!("{part}\n"));
        }
        assert!(
            wanted.insert(*name, want).is_none(),
            "{name} stands there twice"
        );
    }
    wanted
}

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

/// Makes the rows, then looks at what the next steps find of them.
const STEPS: &str = "COPY etc /etc/
COPY t /t/
COPY rows /rows/
COPY run /run
RUN mkdir -m 1777 /tmp
RUN sh /run
RUN ! grep -E '^Sig(Blk|Ign|Pnd):' /proc/self/status | grep -v 0000000000000000
RUN ! grep written /etc/hosts /etc/resolv.conf && stat -c %a /etc/hosts | grep 644
";

#[test]
fn a_step_is_confined_as_a_container_of_docker() {
    let bench = Bench::new();
    bench.write("run", RUN);
    let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
    bench.write("etc/passwd", users);
    bench.write("etc/group", "root:x:0:\nnobody:x:65534:\n");
    write_programs(&bench);
    let mut wanted = write_rows(&bench);
    let out = bench.out().join("tree");
    let output = format!("type=local,dest={},setuid=true", out.display());
    let dockerfile = format!("{BUSYBOX}{STEPS}");
    let done = bench.build(&dockerfile, &["-o", &output]);
    let done = done.expect_status(0);
    let mut failed = Vec::new();
    let lines = done.stderr.lines();
    for line in lines.filter_map(|line| line.split_once(" row ").map(|(_, row)| row)) {
        let (name, verdict) = line.split_once(':').unwrap();
        if wanted.remove(name) != Some(verdict) {
            failed.push(line);
        }
    }
    assert!(
        failed.is_empty() && wanted.is_empty(),
        "{failed:#?}\nno word of {wanted:?}\n{}",
        done.stderr
    );
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
    bench.check_clean();
}

#[test]
fn a_step_cannot_start_the_agents_program() {
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
