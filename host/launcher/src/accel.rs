//! The choice of the accelerator: KVM or emulation.
//!
//! Only a boot shows whether KVM works. A `/dev/kvm` that can be opened proves nothing: on some
//! nested hosts QEMU aborts at once, on others the guest never starts. So a boot under KVM whose
//! guest stays silent for a while is killed and repeated by emulation, and the verdict is remembered
//! for this boot of the host, this QEMU and this kernel, since each of them may change it. The
//! verdict is a hint: if it is lost, the next boot tries KVM again.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::monitor::machine::Accelerator;

/// The accelerator that the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM if it works here, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation: slow, but works everywhere.
    Tcg,
}

/// Text that names no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown accelerator `{0}`; use auto, kvm or tcg")]
pub struct UnknownAccel(pub String);

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(text: &str) -> Result<Self, UnknownAccel> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(UnknownAccel(other.into())),
        }
    }
}

/// The device of KVM.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// Name of the verdicts among the store's cache files.
pub(crate) const CACHE: &str = "accelerator";

/// Verdicts that are kept: a developer's machine has a few kernels and versions side by side.
const KEPT: usize = 8;

/// All that a verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conditions {
    /// Boot id of the host.
    pub(crate) boot: String,
    /// Version of QEMU.
    pub(crate) qemu: String,
    /// sha256 of the guest's kernel.
    pub(crate) kernel: String,
}

/// Whether KVM works: `None`, or the reason why it does not.
pub(crate) type Verdict = Option<String>;

/// What earlier boots found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdicts(Vec<(Conditions, Verdict)>);

impl Verdicts {
    /// Reads what [`Self::to_bytes`] wrote. Anything else counts as no verdicts.
    pub(crate) fn from_bytes(bytes: Option<&[u8]>) -> Self {
        bytes
            .and_then(|bytes| serde_json::from_slice(bytes).ok())
            .unwrap_or_default()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// The verdict under these conditions.
    pub(crate) fn get(&self, conditions: &Conditions) -> Option<&Verdict> {
        self.0
            .iter()
            .find(|(known, _)| known == conditions)
            .map(|(_, verdict)| verdict)
    }

    /// Remembers a verdict in front of the others.
    pub(crate) fn set(&mut self, conditions: Conditions, verdict: Verdict) {
        self.0.retain(|(known, _)| *known != conditions);
        self.0.insert(0, (conditions, verdict));
        self.0.truncate(KEPT);
    }
}

/// How to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// With this accelerator, for this reason if the user did not choose it; a failure is final.
    Only(Accelerator, Option<String>),
    /// With KVM first; if that fails, by emulation, and remember the verdict.
    TryKvm,
}

/// Decides, from what the user wants, what is known, and whether the device can be opened.
pub(crate) fn choose(
    wanted: Accel,
    known: Option<&Verdict>,
    device: impl FnOnce() -> io::Result<()>,
) -> Choice {
    match (wanted, known) {
        (Accel::Kvm, _) => Choice::Only(Accelerator::Kvm, None),
        (Accel::Tcg, _) => Choice::Only(Accelerator::Tcg, None),
        (Accel::Auto, Some(Some(problem))) => Choice::Only(Accelerator::Tcg, Some(problem.clone())),
        (Accel::Auto, Some(None) | None) => match device() {
            // Only tried, even where it worked before: then a host that was suspended and moved
            // does not fail the build.
            Ok(()) => Choice::TryKvm,
            Err(err) => Choice::Only(Accelerator::Tcg, Some(unusable(&err))),
        },
    }
}

/// Opens the device as QEMU will.
pub(crate) fn open_device() -> io::Result<()> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(DEVICE))
        .map(drop)
}

/// Why the device cannot be opened, with what to do about it.
pub(crate) fn unusable(err: &io::Error) -> String {
    let kind = err.kind();
    if kind == io::ErrorKind::NotFound {
        format!(
            "{DEVICE} does not exist; enable virtualization in the firmware or the outer VM, and load \
             the kvm module"
        )
    } else if kind == io::ErrorKind::PermissionDenied {
        format!("no permission to open {DEVICE}; add yourself to the group `kvm`")
    } else {
        format!("cannot open {DEVICE}: {err}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(boot: &str) -> Conditions {
        Conditions {
            boot: boot.into(),
            qemu: "7.2".into(),
            kernel: "ab".into(),
        }
    }

    #[track_caller]
    fn check(wanted: Accel, known: Option<Verdict>, device: io::Result<()>, want: &Choice) {
        assert_eq!(choose(wanted, known.as_ref(), || device), *want);
    }

    #[test]
    fn the_choice_of_the_user_is_final() {
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        check(
            Accel::Kvm,
            Some(Some("bad".into())),
            denied(),
            &Choice::Only(Accelerator::Kvm, None),
        );
        check(
            Accel::Tcg,
            Some(None),
            Ok(()),
            &Choice::Only(Accelerator::Tcg, None),
        );
    }

    #[test]
    fn kvm_is_tried_unless_it_is_known_to_fail() {
        check(Accel::Auto, None, Ok(()), &Choice::TryKvm);
        check(Accel::Auto, Some(None), Ok(()), &Choice::TryKvm);
    }

    #[test]
    fn a_bad_verdict_saves_the_next_try() {
        let want = Choice::Only(Accelerator::Tcg, Some("silent".into()));
        check(Accel::Auto, Some(Some("silent".into())), Ok(()), &want);
    }

    #[test]
    fn the_reason_for_a_device_that_cannot_be_opened_says_what_to_do() {
        let device = || Err(io::ErrorKind::PermissionDenied.into());
        let Choice::Only(Accelerator::Tcg, Some(why)) = choose(Accel::Auto, None, device) else {
            panic!("emulation is left");
        };
        assert!(why.contains("group `kvm`"), "{why}");
    }

    #[test]
    fn a_verdict_holds_only_under_its_own_conditions() {
        let mut verdicts = Verdicts::default();
        verdicts.set(conditions("one"), Some("silent".into()));
        let mut read = Verdicts::from_bytes(Some(&verdicts.to_bytes()));
        assert_eq!(read.get(&conditions("one")), Some(&Some("silent".into())));
        assert_eq!(read.get(&conditions("two")), None);
        let newer = Conditions {
            qemu: "8.0".into(),
            ..conditions("one")
        };
        assert_eq!(read.get(&newer), None);
        read.set(conditions("one"), None);
        assert_eq!(read.get(&conditions("one")), Some(&None));
    }

    #[test]
    fn damaged_verdicts_count_as_none_and_old_ones_are_dropped() {
        assert_eq!(
            Verdicts::from_bytes(Some(b"{nonsense")),
            Verdicts::default()
        );
        assert_eq!(Verdicts::from_bytes(None), Verdicts::default());
        let mut verdicts = Verdicts::default();
        for n in 0..100 {
            verdicts.set(conditions(&n.to_string()), None);
        }
        assert_eq!(verdicts.0.len(), KEPT);
        assert!(verdicts.get(&conditions("99")).is_some());
    }

    #[test]
    fn names_of_accelerators_are_read() {
        assert_eq!("kvm".parse(), Ok(Accel::Kvm));
        assert_eq!("auto".parse(), Ok(Accel::Auto));
        assert!(
            "hvf"
                .parse::<Accel>()
                .unwrap_err()
                .to_string()
                .contains("auto, kvm or tcg")
        );
    }
}
