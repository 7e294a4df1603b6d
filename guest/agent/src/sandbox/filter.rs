//! Seccomp: the system calls that a step may not make.
//!
//! A step runs with the capabilities that other builders grant, so the kernel itself refuses most of
//! what is dangerous. The filter forbids the rest: interfaces with a history of vulnerabilities, ways
//! into other namespaces, and the sockets with which a step could talk to the host as the agent
//! does. It is a list of forbidden calls rather than of allowed ones: the kernel is that of the guest
//! image, so no call appears that nobody has reviewed. A program of another architecture, where
//! calls have other numbers, is killed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// System calls that are refused whatever their arguments.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// The same for calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[libc::c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[libc::c_long] = &[];

/// Flags of `clone` that create a namespace.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Allowed arguments of `personality`: Linux, with or without its quirks for old programs, and the
/// query for the current value.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filters, in the order in which they are loaded.
pub(super) fn filters() -> Result<Vec<BpfProgram>> {
    let errno = |errno: libc::c_int| SeccompAction::Errno(errno.unsigned_abs());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    // A filter cannot see the arguments of `clone3`, which are in memory. It reports that the call does
    // not exist, so that the C library falls back to `clone`.
    Ok(vec![
        filter(clone3, errno(libc::ENOSYS))?,
        filter(rules()?, errno(libc::EPERM))?,
    ])
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) -> Result<BpfProgram> {
    let architecture = std::env::consts::ARCH
        .try_into()
        .context("no seccomp filter for this architecture")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?;
    Ok(filter.try_into()?)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN
        .iter()
        .chain(FORBIDDEN_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    // The host can only be reached through vsock.
    let vsock = || equal(0, u64::from(libc::AF_VSOCK.unsigned_abs())).and_then(rule_of);
    rules.insert(libc::SYS_socket, vec![vsock()?]);
    rules.insert(libc::SYS_socketpair, vec![vsock()?]);
    let namespaces = NAMESPACES.iter().map(|flag| u64::from(flag.unsigned_abs()));
    let with_flag = |flag| {
        rule_of(SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        )?)
    };
    rules.insert(
        libc::SYS_clone,
        namespaces.map(with_flag).collect::<Result<_>>()?,
    );
    let others = PERSONALITIES
        .iter()
        .map(|known| {
            Ok(SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Ne,
                *known,
            )?)
        })
        .collect::<Result<_>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(others)?]);
    Ok(rules)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        value,
    )?)
}

fn rule_of(condition: SeccompCondition) -> Result<SeccompRule> {
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_stay_below_the_kernels_limit() {
        let filters = filters().unwrap();
        assert_eq!(filters.len(), 2);
        for filter in filters {
            assert!(filter.len() < 4096, "{} instructions", filter.len());
        }
    }
}
