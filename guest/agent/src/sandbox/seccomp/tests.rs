//! The filter as the kernel applies it, against the table and against what is known of it.
#![expect(
    unsafe_code,
    reason = "system calls by number, in a child that may do nothing else"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "registers are numbers of the same width"
)]

use std::arch::asm;
use std::os::fd::AsRawFd as _;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe, read};

use super::*;

/// The filter that is loaded before: it answers every call that carries [`PASS`], so that nothing
/// that is allowed happens.
const ALLOWED: u16 = 999;

/// Sixth argument of the calls that the child makes for itself.
const PASS: u32 = 0x5061_7373;

/// Offset of the low half of the sixth argument.
const SIXTH_ARGUMENT: u32 = 56;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abi {
    X86_64,
    I386,
    X32,
}

const ABIS: [Abi; 3] = [Abi::X86_64, Abi::I386, Abi::X32];

/// A system call of the child: its number and its first argument.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    abi: Abi,
    number: u32,
    argument: u64,
}

fn attempt(abi: Abi, name: &str, argument: u64) -> Attempt {
    let call = CALLS.iter().find(|call| call.name == name).unwrap();
    Attempt {
        abi,
        number: number(call, abi).unwrap(),
        argument,
    }
}

fn number(call: &calls::Call, abi: Abi) -> Option<u32> {
    match abi {
        Abi::X86_64 => call.x86_64,
        Abi::I386 => call.i386,
        Abi::X32 => call.x32,
    }
}

/// Makes a system call of x86-64, with the sixth argument [`PASS`] or not.
fn call_64(number: u64, arguments: [u64; 3], pass: bool) -> i64 {
    let result;
    // SAFETY: the arguments are numbers or come from references that outlive the call.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") arguments[0],
            in("rsi") arguments[1], in("rdx") arguments[2], in("r10") 0, in("r8") 0,
            in("r9") if pass { u64::from(PASS) } else { 0 }, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Makes a system call of i386.
fn call_32(number: u32, argument: u32) -> i32 {
    let result;
    // SAFETY: the filter below answers, so the kernel does nothing. LLVM keeps rbx and rbp to itself.
    unsafe {
        asm!("push rbp", "xchg rbx, {arg}", "xor ebp, ebp", "int 0x80", "xchg rbx, {arg}", "pop rbp",
            arg = inout(reg) u64::from(argument) => _, inlateout("eax") number => result,
            in("ecx") 0, in("edx") 0, in("esi") 0, in("edi") 0,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    result
}

fn make(attempt: Attempt) -> u16 {
    let number = u64::from(attempt.number);
    let errno = match attempt.abi {
        Abi::X86_64 => call_64(number, [attempt.argument, 0, 0], false),
        Abi::X32 => call_64(number | u64::from(X32), [attempt.argument, 0, 0], false),
        Abi::I386 => i64::from(call_32(attempt.number, attempt.argument as u32)),
    };
    u16::try_from(-errno).unwrap_or(0)
}

fn load_in_child(filter: &[sock_filter]) -> i64 {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    call_64(
        libc::SYS_seccomp as u64,
        [mode, 0, &raw const program as u64],
        true,
    )
}

/// What each attempt gets from the kernel: [`ALLOWED`] or an error number.
fn outcomes(kernel_has_vsock: bool, attempts: &[Attempt]) -> Vec<u16> {
    let filter = filter(kernel_has_vsock).unwrap();
    let pass = branch(
        Test::Equal(PASS),
        vec![answer(SECCOMP_RET_ALLOW)],
        vec![answer(SECCOMP_RET_ERRNO | u32::from(ALLOWED))],
    );
    let below = [vec![load(SIXTH_ARGUMENT)], pass].concat();
    let mut results = vec![0_u16; attempts.len()];
    let (reader, writer) = pipe().unwrap();
    // SAFETY: the child makes nothing but system calls: no allocation, no lock, no panic.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let privileges = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0];
            let ready = call_64(libc::SYS_prctl as u64, privileges, false) == 0
                && load_in_child(&below) == 0
                && load_in_child(&filter) == 0;
            for (result, attempt) in results.iter_mut().zip(attempts) {
                *result = make(*attempt);
            }
            let bytes = results.as_ptr() as u64;
            let writer = writer.as_raw_fd() as u64;
            call_64(
                libc::SYS_write as u64,
                [writer, bytes, 2 * results.len() as u64],
                true,
            );
            call_64(libc::SYS_exit_group as u64, [u64::from(!ready), 0, 0], true);
            unreachable!()
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut bytes = vec![0; 2 * attempts.len()];
            let mut filled = 0;
            while let Ok(more @ 1..) = read(&reader, &mut bytes[filled..]) {
                filled += more;
            }
            // A kernel that has no i386 kills the child.
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            assert_eq!(filled, bytes.len());
            bytes
                .chunks(2)
                .map(|pair| u16::from(pair[0]) | u16::from(pair[1]) << 8)
                .collect()
        }
    }
}

const EPERM: u16 = libc::EPERM as u16;
const ENOSYS: u16 = libc::ENOSYS as u16;

#[test]
fn every_number_of_every_architecture_gets_the_verdict_of_the_table() {
    let newest = |abi| match abi {
        Abi::X86_64 | Abi::I386 => 466, // removexattrat
        Abi::X32 => 547,                // pwritev2
    };
    let numbers = |abi| {
        let most = [0x3fff_ffff, 0x3fff_fffe];
        (0..700).chain(most).map(move |number| Attempt {
            abi,
            number,
            argument: 0,
        })
    };
    let mut attempts: Vec<Attempt> = ABIS.into_iter().flat_map(numbers).collect();
    // `uretprobe` and `uprobe`, which newer kernels let pass every filter, and which kill whoever is not
    // being probed.
    attempts.retain(|call| call.abi != Abi::X86_64 || !matches!(call.number, 335 | 336));
    for (attempt, outcome) in attempts.iter().zip(outcomes(false, &attempts)) {
        let Attempt { abi, number: n, .. } = *attempt;
        let call = CALLS.iter().find(|call| number(call, abi) == Some(n));
        let want = match call.map(|call| call.verdict) {
            _ if n > newest(abi) => ENOSYS,
            None | Some(Verdict::Deny) => EPERM,
            Some(Verdict::Missing) => ENOSYS,
            // Their rules allow a first argument of zero.
            Some(_) => ALLOWED,
        };
        assert_eq!(outcome, want, "{attempt:?} {call:?}");
    }
}

#[track_caller]
fn check(kernel_has_vsock: bool, table: &[(Abi, &str, u64, u16)]) {
    let attempts: Vec<Attempt> = table
        .iter()
        .map(|(abi, name, argument, _)| attempt(*abi, name, *argument))
        .collect();
    for (row, outcome) in table.iter().zip(outcomes(kernel_has_vsock, &attempts)) {
        assert_eq!(outcome, row.3, "{row:x?}");
    }
}

#[test]
fn what_is_dangerous_is_refused_in_every_architecture() {
    let names = [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "reboot",
        "userfaultfd",
        "io_uring_setup",
        "perf_event_open",
        "open_by_handle_at",
        "init_module",
        "kexec_load",
        "pivot_root",
        "swapon",
        "syslog",
        "fanotify_init",
        "acct",
        "fsopen",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "clock_settime",
        "settimeofday",
        "pidfd_getfd",
    ];
    for name in names {
        check(false, &ABIS.map(|abi| (abi, name, 0, EPERM)));
    }
    check(false, &ABIS.map(|abi| (abi, "clone3", 0, ENOSYS)));
    check(
        false,
        &[
            (Abi::X86_64, "iopl", 3, EPERM),
            (Abi::I386, "vm86", 0, EPERM),
        ],
    );
}

#[test]
fn what_programs_need_is_allowed_in_every_architecture() {
    for name in [
        "execve",
        "ptrace",
        "process_vm_readv",
        "chroot",
        "mknod",
        "setuid",
        "seccomp",
        "openat2",
        "io_submit",
        "capset",
        "arch_prctl",
        "modify_ldt",
        "name_to_handle_at",
        "landlock_add_rule",
    ] {
        check(false, &ABIS.map(|abi| (abi, name, 0, ALLOWED)));
    }
    check(
        false,
        &[
            (Abi::I386, "ipc", 0, ALLOWED),
            (Abi::I386, "waitpid", 0, ALLOWED),
            (Abi::I386, "setuid32", 0, ALLOWED),
            (Abi::I386, "clock_gettime64", 0, ALLOWED),
        ],
    );
}

#[test]
fn no_namespace_comes_of_clone() {
    for flag in 0..32 {
        let namespace = NAMESPACES & 1 << flag != 0;
        let want = if namespace { EPERM } else { ALLOWED };
        check(false, &ABIS.map(|abi| (abi, "clone", 1 << flag, want)));
    }
    assert_eq!(NAMESPACES, 0x7e02_0000);
}

#[test]
fn sockets_of_vsock_and_of_a_few_other_families_are_refused() {
    let refused = [
        12,
        19,
        20,
        23,
        25,
        34,
        37,
        38,
        40,
        46,
        1 << 32 | 2,
        u64::MAX,
    ];
    for family in (0..48).chain([1 << 32 | 2, u64::MAX]) {
        let want = if refused.contains(&family) || family > 45 {
            EPERM
        } else {
            ALLOWED
        };
        for abi in [Abi::X86_64, Abi::X32] {
            check(
                false,
                &[
                    (abi, "socket", family, want),
                    (abi, "socketpair", family, want),
                ],
            );
        }
        if family < 48 {
            check(false, &[(Abi::I386, "socket", family, want)]);
        }
    }
}

#[test]
fn old_programs_for_i386_make_sockets_unless_the_kernel_has_vsock() {
    for operation in 0..21 {
        let makes = matches!(operation, 1 | 8);
        let want = if makes { EPERM } else { ALLOWED };
        check(true, &[(Abi::I386, "socketcall", operation, want)]);
        check(false, &[(Abi::I386, "socketcall", operation, ALLOWED)]);
    }
}

#[test]
fn only_personalities_of_linux_are_allowed() {
    for (value, want) in [
        (0, ALLOWED),
        (8, ALLOWED),
        (0x2_0000, ALLOWED),
        (0x2_0008, ALLOWED),
        (0xffff_ffff, ALLOWED),
        (0x004_0000, EPERM), // ADDR_NO_RANDOMIZE
        (0x10_0000, EPERM),  // MMAP_PAGE_ZERO
        (0x040_0000, EPERM), // READ_IMPLIES_EXEC
        (1, EPERM),
    ] {
        check(false, &ABIS.map(|abi| (abi, "personality", value, want)));
    }
}

#[test]
fn no_number_stands_in_the_table_twice() {
    for abi in ABIS {
        let mut numbers: Vec<u32> = CALLS.iter().filter_map(|call| number(call, abi)).collect();
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{abi:?}");
    }
}

#[test]
fn the_filter_stays_below_the_kernels_limit() {
    for kernel_has_vsock in [false, true] {
        let length = filter(kernel_has_vsock).unwrap().len();
        assert!(length < 2048, "{length} instructions");
    }
}
