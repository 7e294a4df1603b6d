//! The user and the privileges of a step's processes.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use wire::RunStep;

use super::seccomp;
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

/// Sets the resource limits of a step.
pub(super) fn set_limits() -> Result<()> {
    for (resource, soft, hard) in LIMITS {
        setrlimit(resource, soft, hard).context("cannot set a resource limit")?;
    }
    Ok(())
}

/// Switches to the step's user and gives up every privilege that a step must not have. The order
/// matters: loading the filter without `no_new_privs` needs a privilege, so it comes first.
/// `no_new_privs` would break set-user-ID programs.
pub(super) fn give_up(step: &RunStep) -> Result<()> {
    let filter = seccomp::filter(sys::has_vsock())?;
    sys::join_new_keyring().context("cannot create a keyring")?;
    drop_bounding(&KEPT)?;
    sys::load_filter(&filter).context("cannot load the seccomp filter")?;
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
    use std::fs;
    use std::process::Command;

    use wire::{Network, StepLimits};

    use super::*;

    #[test]
    fn the_capabilities_are_the_usual_fourteen() {
        // As `CapEff` shows it in a container of other builders.
        assert_eq!(mask(), 0x0000_0000_a804_25fb);
    }

    /// Runs a helper in a process of its own, which loses its privileges.
    fn run_helper(name: &str) {
        let output = Command::new("/proc/self/exe")
            .args(["--exact", "--ignored", "--nocapture"])
            .arg(format!("sandbox::privileges::tests::{name}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    fn step(uid: u32) -> RunStep {
        RunStep {
            step: 1,
            output: 2,
            layers: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: b"/".to_vec(),
            uid,
            gid: uid,
            groups: Vec::new(),
            hostname: String::new(),
            hosts: Vec::new(),
            network: Network::None,
            limits: StepLimits::default(),
            script: None,
        }
    }

    /// A field of this thread's status.
    fn status(field: &str) -> String {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    #[test]
    #[ignore = "needs root"]
    fn as_root_root_of_a_step_has_what_docker_grants_and_nothing_more() {
        run_helper("helper_gives_up_privileges_as_root");
    }

    #[test]
    #[ignore = "started by another test"]
    fn helper_gives_up_privileges_as_root() {
        give_up(&step(0)).unwrap();
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status(field), "00000000a80425fb", "{field}");
        }
        for field in ["CapInh", "CapAmb"] {
            assert_eq!(status(field), "0000000000000000", "{field}");
        }
        // Programs such as sudo need that.
        assert_eq!(status("NoNewPrivs"), "0");
        assert_eq!(status("Seccomp"), "2");
    }

    #[test]
    #[ignore = "needs root"]
    fn as_root_other_users_of_a_step_have_no_capabilities() {
        run_helper("helper_gives_up_privileges_as_a_user");
    }

    #[test]
    #[ignore = "started by another test"]
    fn helper_gives_up_privileges_as_a_user() {
        give_up(&step(1234)).unwrap();
        for field in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(status(field), "0000000000000000", "{field}");
        }
        assert_eq!(status("CapBnd"), "00000000a80425fb");
        assert_eq!(status("Uid"), "1234\t1234\t1234\t1234");
        assert_eq!(status("Groups"), "");
        assert_eq!(status("NoNewPrivs"), "0");
    }

    #[test]
    #[ignore = "needs root"]
    fn as_root_a_step_sets_the_extended_attributes_that_docker_allows() {
        run_helper("helper_sets_extended_attributes");
    }

    /// Version 2, with `CAP_NET_RAW` permitted and effective.
    const CAPABILITY: &[u8] = &[
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    #[ignore = "started by another test"]
    fn helper_sets_extended_attributes() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let set = |name: &str, value: &[u8]| {
            xattr::set(&file, name, value)
                .map_err(|err| Errno::from_raw(err.raw_os_error().unwrap()))
        };
        for name in [
            "security.anything",
            "trusted.anything",
            "trusted.overlay.opaque",
        ] {
            assert_eq!(set(name, b"y"), Ok(()), "{name}");
        }
        give_up(&step(0)).unwrap();
        for name in [
            "security.anything",
            "security.ima",
            "trusted.anything",
            "trusted.overlay.opaque",
        ] {
            assert_eq!(set(name, b"y"), Err(Errno::EPERM), "{name}");
        }
        assert_eq!(set("user.anything", b"y"), Ok(()));
        assert_eq!(set("security.capability", CAPABILITY), Ok(()));
    }
}
