//! The user and the privileges of a step's processes.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use wire::RunStep;

use super::filter;
use crate::sys;

/// Capabilities of a step's root user, by number: those that other builders grant.
const KEPT: [u32; 14] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    13, // CAP_NET_RAW
    18, // CAP_SYS_CHROOT
    27, // CAP_MKNOD
    29, // CAP_AUDIT_WRITE
    31, // CAP_SETFCAP
];

/// Resource limits, soft and hard. Many programs close every descriptor up to the soft limit, so that
/// is the usual one; a core dump would end up in the layer.
const LIMITS: [(Resource, u64, u64); 2] = [
    (Resource::RLIMIT_NOFILE, 1024, 1 << 20),
    (Resource::RLIMIT_CORE, 0, u64::MAX),
];

/// Switches to the step's user and gives up every privilege that a step must not have. The order
/// matters: loading the filter without `no_new_privs` needs a privilege, so it comes first.
/// `no_new_privs` would break set-user-ID programs.
pub(super) fn give_up(step: &RunStep) -> Result<()> {
    let filters = filter::filters()?;
    for (resource, soft, hard) in LIMITS {
        setrlimit(resource, soft, hard).context("cannot set a resource limit")?;
    }
    sys::join_new_keyring().context("cannot create a keyring")?;
    drop_bounding(&KEPT)?;
    for filter in &filters {
        sys::load_filter(filter).context("cannot load the seccomp filter")?;
    }
    let groups: Vec<Gid> = step
        .groups
        .iter()
        .map(|group| Gid::from_raw(*group))
        .collect();
    setgroups(&groups).context("cannot set the groups")?;
    let (uid, gid) = (Uid::from_raw(step.uid), Gid::from_raw(step.gid));
    setresgid(gid, gid, gid).context("cannot set the group")?;
    setresuid(uid, uid, uid).context("cannot set the user")?;
    // Other users than root have lost all capabilities with that.
    let mask = if step.uid == 0 { mask() } else { 0 };
    sys::set_capabilities(mask).context("cannot give up capabilities")
}

/// Gives up all capabilities but these, for all programs that this process will execute.
pub(crate) fn drop_bounding(kept: &[u32]) -> Result<()> {
    for capability in (0..64).filter(|number| !kept.contains(number)) {
        match sys::drop_bounding(capability) {
            // The kernel has no capability with this number or above.
            Err(Errno::EINVAL) => break,
            done => done.with_context(|| format!("cannot drop capability {capability}"))?,
        }
    }
    Ok(())
}

fn mask() -> u64 {
    KEPT.iter().fold(0, |mask, number| mask | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capabilities_are_the_usual_fourteen() {
        // As `CapEff` shows it in a container of other builders.
        assert_eq!(mask(), 0x0000_0000_a804_25fb);
    }
}
