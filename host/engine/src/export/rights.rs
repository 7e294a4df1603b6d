//! What of a result gives rights on the machine that it is exported to.
//!
//! The law: an image chooses no rights here. Devices, programs that run as somebody else and attributes
//! that the kernel takes orders from are made only if the user asked for them, and root exports.
//! Whatever is left out is told, in a few lines however much it is.

use std::io;
use std::path::{Path, PathBuf};

/// Mode bits by which a program runs as its owner or group.
const SET_ID: u32 = 0o6000;
/// Attributes that only root can set, since the kernel acts on them: file capabilities, labels of
/// security modules, the bookkeeping of file systems.
const PRIVILEGED: [&[u8]; 2] = [b"security.", b"trusted."];

/// Which rights an export to a directory may give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalRights {
    /// Devices.
    pub devices: bool,
    /// Bits and attributes by which programs get the rights of others.
    pub setuid: bool,
}

/// The rights of one export, and what was left out.
#[derive(Debug)]
pub(super) struct Rights {
    allowed: LocalRights,
    is_root: bool,
    devices: LeftOut,
    refused_devices: LeftOut,
    programs: LeftOut,
    attributes: LeftOut,
}

/// How many of something, and the first.
#[derive(Debug, Default)]
struct LeftOut {
    first: Option<String>,
    count: u64,
}

impl LeftOut {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.first.get_or_insert_with(what);
        self.count += 1;
    }

    fn told(self, one: &str, many: &str, why: &str) -> Option<String> {
        let first = self.first?;
        Some(match self.count {
            1 => format!("{first}: {one}; {why}"),
            count => format!("{first} and {} more: {many}; {why}", count - 1),
        })
    }
}

impl Rights {
    pub(super) fn new(allowed: LocalRights, is_root: bool) -> Self {
        Self {
            allowed,
            is_root,
            devices: LeftOut::default(),
            refused_devices: LeftOut::default(),
            programs: LeftOut::default(),
            attributes: LeftOut::default(),
        }
    }

    /// Whether the device at `path` is to be made.
    pub(super) fn device(&mut self, path: impl FnOnce() -> PathBuf) -> bool {
        if !self.allowed.devices {
            self.devices.add(|| path().display().to_string());
        }
        self.allowed.devices
    }

    /// The kernel did not let a device be made.
    pub(super) fn refused_device(&mut self, path: &Path) {
        self.refused_devices.add(|| path.display().to_string());
    }

    /// The mode that a file or directory gets.
    pub(super) fn mode(&mut self, path: &Path, mode: u32, is_directory: bool) -> u32 {
        let kept = if self.is_root {
            // Set on a directory, they give nobody the rights of somebody else.
            self.allowed.setuid || is_directory
        } else {
            // The caller owns the file, so it would run as the caller.
            false
        };
        if kept || mode & SET_ID == 0 {
            return mode;
        }
        if !is_directory {
            self.left_program(path);
        }
        mode & !SET_ID
    }

    /// Whether a file gets an attribute.
    pub(super) fn attribute(&mut self, path: &Path, name: &[u8]) -> bool {
        let is_privileged = PRIVILEGED.iter().any(|prefix| name.starts_with(prefix));
        if !is_privileged || (self.is_root && self.allowed.setuid) {
            return true;
        }
        self.left_program(path);
        false
    }

    /// An attribute could not be set.
    pub(super) fn refused_attribute(&mut self, path: &Path, name: &[u8], error: &io::Error) {
        self.attributes.add(|| {
            let name = String::from_utf8_lossy(name);
            format!("{}: attribute {name} ({error})", path.display())
        });
    }

    fn left_program(&mut self, path: &Path) {
        // Nobody but root expects them to be kept.
        if self.is_root || self.allowed.setuid {
            self.programs.add(|| path.display().to_string());
        }
    }

    /// What was left out.
    pub(super) fn warnings(self) -> Vec<String> {
        let ask = "to create devices, add devices=true to --output";
        let root = "only root can create devices";
        let keep = if self.is_root {
            "to keep them, add setuid=true to --output"
        } else {
            "only root can keep them"
        };
        let bits = "left without set-user-ID and set-group-ID bits and privileged attributes";
        [
            self.devices
                .told("device left out", "devices left out", ask),
            self.refused_devices
                .told("device left out", "devices left out", root),
            self.programs.told(bits, bits, keep),
            self.attributes.told(
                "not set",
                "not set",
                "the file system or the kernel refused",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: LocalRights = LocalRights {
        devices: true,
        setuid: true,
    };

    /// The modes of a program and of a directory with all bits, whether a capability, a label and
    /// a plain attribute are set, and whether a device is made.
    fn given(allowed: LocalRights, is_root: bool) -> (u32, u32, [bool; 3], bool, usize) {
        let mut rights = Rights::new(allowed, is_root);
        let path = Path::new("out/x");
        let program = rights.mode(path, 0o6755, false);
        let directory = rights.mode(path, 0o6755, true);
        let attributes = ["security.capability", "trusted.x", "user.x"];
        let attributes = attributes.map(|name| rights.attribute(path, name.as_bytes()));
        let device = rights.device(|| path.to_owned());
        (
            program,
            directory,
            attributes,
            device,
            rights.warnings().len(),
        )
    }

    #[test]
    fn rights_are_given_by_root_and_on_request_only() {
        let none = LocalRights::default();
        let plain = [false, false, true];
        assert_eq!(given(none, true), (0o755, 0o6755, plain, false, 2));
        assert_eq!(given(ALL, true), (0o6755, 0o6755, [true; 3], true, 0));
        assert_eq!(given(none, false), (0o755, 0o755, plain, false, 1));
        // Whether a device can be made is up to the kernel.
        assert_eq!(given(ALL, false), (0o755, 0o755, plain, true, 1));
    }

    #[test]
    fn however_much_is_left_out_a_line_tells_it() {
        let mut rights = Rights::new(LocalRights::default(), true);
        for n in 0..1_000_000 {
            rights.device(|| PathBuf::from(format!("out/dev/{n}")));
        }
        assert_eq!(
            rights.warnings(),
            [
                "out/dev/0 and 999999 more: devices left out; to create devices, add devices=true to \
                 --output"
            ]
        );
    }
}
