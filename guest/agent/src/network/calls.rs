//! The system calls of the process `net`. All others fail.

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter};

use crate::sandbox::bpf::{ARCHITECTURE, NUMBER, SECOND_ARGUMENT, Test, answer, branch, load};

/// What it needs to move bytes, and what threads, memory and time need in either C library.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The same for calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_arch_prctl];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// The architecture of this program, as the kernel names it.
#[cfg(target_arch = "x86_64")]
const HERE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const HERE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// The filter.
pub(super) fn filter() -> Vec<sock_filter> {
    let refuse = || vec![answer(SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned())];
    let allow = || vec![answer(SECCOMP_RET_ALLOW)];
    let number = |call: libc::c_long| Test::Equal(u32::try_from(call).unwrap_or(u32::MAX));
    // Makes a socket one on which nobody waits.
    let request = u32::try_from(libc::FIONBIO).unwrap_or(u32::MAX);
    let nonblocking = branch(Test::Equal(request), allow(), refuse());
    let ioctl = [vec![load(SECOND_ARGUMENT)], nonblocking].concat();
    let calls = branch(number(libc::SYS_ioctl), ioctl, refuse());
    let calls = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .fold(calls, |rest, call| branch(number(*call), allow(), rest));
    let calls = [vec![load(NUMBER)], calls].concat();
    let other = vec![answer(SECCOMP_RET_KILL_PROCESS)];
    [
        vec![load(ARCHITECTURE)],
        branch(Test::Equal(HERE), calls, other),
    ]
    .concat()
}
