//! Seccomp: the system calls that a step may make.
//!
//! A step runs with the capabilities that other builders grant, so the kernel itself refuses most of
//! what is dangerous. The filter leaves out the rest: interfaces with a history of vulnerabilities,
//! ways into other namespaces, and the sockets with which a step could talk to the host as the agent
//! does. What is allowed is a table ([`calls`]), the same as in Docker.
//!
//! Programs for i386 and x32 have numbers of their own. A program of an architecture that is not in
//! the table cannot exist on this machine, and would be killed.
//!
//! The numbers of an architecture become ranges with one verdict each, and the ranges a search tree:
//! the kernel evaluates a filter for every number when it is loaded, and again for each call whose
//! verdict depends on arguments.

pub(crate) mod bpf;
mod calls;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter};

use bpf::{ARCHITECTURE, Code, FIRST_ARGUMENT, NUMBER, Test, answer, branch, load, mask};
use calls::{CALLS, Verdict};

/// `AUDIT_ARCH_X86_64`, which x32 shares, and `AUDIT_ARCH_I386`.
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;

/// The bit that marks the numbers of x32.
const X32: u32 = 0x4000_0000;

const EPERM: u32 = SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
const ENOSYS: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// Flags of `clone` that create a namespace: all of `CLONE_NEW*` but `CLONE_NEWTIME`, which it lacks.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// Allowed arguments of `personality`: Linux, with or without its quirks for old programs, and the
/// query for the current value.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families of which sockets are allowed: all but a few obsolete ones, the kernel's
/// cryptography (`AF_ALG`), and vsock, through which the host can be reached.
const FAMILIES: [u32; 37] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30,
    31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45,
];

/// Operations of `socketcall` that make sockets.
const MAKES_SOCKET: [u32; 2] = [1, 8]; // SYS_SOCKET, SYS_SOCKETPAIR

/// The filter, for a kernel that has vsock or not.
pub(super) fn filter(kernel_has_vsock: bool) -> Result<Vec<sock_filter>> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "there is no table of system calls for this architecture"
    );
    let native = CALLS.iter().map(|call| (call.x86_64, call.verdict));
    let x32 = CALLS.iter().map(|call| (call.x32, call.verdict));
    let i386 = CALLS.iter().map(|call| (call.i386, call.verdict));
    let mut native = ranges(native, 0);
    native.extend(ranges(x32, X32));
    let by_number =
        |ranges: &[(u32, Verdict)]| [vec![load(NUMBER)], search(ranges, kernel_has_vsock)].concat();
    let mut code = vec![load(ARCHITECTURE)];
    code.extend(branch(
        Test::Equal(ARCH_X86_64),
        by_number(&native),
        branch(
            Test::Equal(ARCH_I386),
            by_number(&ranges(i386, 0)),
            vec![answer(SECCOMP_RET_KILL_PROCESS)],
        ),
    ));
    Ok(code)
}

/// The verdict for every number from `base` on, as ranges: where each begins.
fn ranges(calls: impl Iterator<Item = (Option<u32>, Verdict)>, base: u32) -> Vec<(u32, Verdict)> {
    let known: BTreeMap<u32, Verdict> = calls
        .filter_map(|(number, verdict)| Some((number? | base, verdict)))
        .collect();
    let mut of_profile = known.iter().rev().filter(|row| *row.1 != Verdict::Deny);
    let newest = of_profile.next().map_or(base, |(number, _)| *number);
    let verdict = |number| match known.get(&number) {
        _ if number > newest => Verdict::Missing,
        Some(verdict) => *verdict,
        None => Verdict::Deny,
    };
    let mut ranges: Vec<(u32, Verdict)> = (base..=newest + 1)
        .map(|number| (number, verdict(number)))
        .collect();
    ranges.dedup_by_key(|(_, verdict)| *verdict);
    ranges
}

/// Finds the range of the number that was loaded.
fn search(ranges: &[(u32, Verdict)], kernel_has_vsock: bool) -> Code {
    match ranges {
        [] => vec![answer(EPERM)],
        [(_, verdict)] => decide(*verdict, kernel_has_vsock),
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            let from = above.first().map_or(0, |(from, _)| *from);
            branch(
                Test::AtLeast(from),
                search(above, kernel_has_vsock),
                search(below, kernel_has_vsock),
            )
        }
    }
}

/// Carries out a verdict.
fn decide(verdict: Verdict, kernel_has_vsock: bool) -> Code {
    let allow = || vec![answer(SECCOMP_RET_ALLOW)];
    let deny = || vec![answer(EPERM)];
    let [low, _] = FIRST_ARGUMENT;
    match verdict {
        Verdict::Allow => allow(),
        Verdict::Deny => deny(),
        Verdict::Missing => vec![answer(ENOSYS)],
        Verdict::Namespaces => {
            let code = branch(Test::Equal(0), allow(), deny());
            [vec![load(low), mask(NAMESPACES)], code].concat()
        }
        Verdict::Family => one_of(&FAMILIES),
        Verdict::Persona => one_of(&PERSONALITIES),
        Verdict::Multiplexed if kernel_has_vsock => {
            let code = MAKES_SOCKET.iter().fold(allow(), |code, operation| {
                branch(Test::Equal(*operation), deny(), code)
            });
            [vec![load(low)], code].concat()
        }
        Verdict::Multiplexed => allow(),
    }
}

/// Allows a call if all of its first argument, not only the half that the kernel looks at, is one of
/// these numbers.
fn one_of(values: &[u32]) -> Code {
    let [low, high] = FIRST_ARGUMENT;
    let deny = vec![answer(EPERM)];
    let code = values.iter().rev().fold(deny.clone(), |code, value| {
        branch(Test::Equal(*value), vec![answer(SECCOMP_RET_ALLOW)], code)
    });
    let same = [vec![load(low)], code].concat();
    let code = branch(Test::Equal(0), same, deny);
    [vec![load(high)], code].concat()
}

#[cfg(test)]
mod tests;
