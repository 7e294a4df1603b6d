//! What some tests need from the machine, by the beginning of their names.
//!
//! A test that needs more than cargo is `#[ignore]`d with its reason, so that plain `cargo test` counts
//! it as ignored. `cargo xtask test` provides what it can and runs the ignored tests too. What it
//! cannot provide is in this table: such tests are left out, and the output says so.

use std::fs;
use std::net::ToSocketAddrs as _;

use anyhow::Result;

use crate::setup;
use crate::shell::{self, say};

/// A beginning of names of tests, and what these tests need.
struct Requirement {
    prefix: &'static str,
    needs: &'static str,
    is_met: fn() -> bool,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        prefix: "as_root_",
        needs: "root",
        is_met: setup::is_root,
    },
    Requirement {
        prefix: "with_dev_kvm_",
        needs: "/dev/kvm",
        is_met: || {
            let mut device = fs::File::options();
            device.read(true).write(true).open("/dev/kvm").is_ok()
        },
    },
    Requirement {
        prefix: "with_af_vsock_",
        needs: "a kernel with AF_VSOCK",
        is_met: || {
            fs::read_to_string("/proc/net/protocols").is_ok_and(|known| known.contains("AF_VSOCK"))
        },
    },
    Requirement {
        prefix: "with_host_address_",
        needs: "an address for the name of this machine",
        is_met: || {
            let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let addresses = (name.trim(), 0).to_socket_addrs();
            addresses.is_ok_and(|mut addresses| addresses.next().is_some())
        },
    },
    Requirement {
        prefix: "with_immutable_files_",
        needs: "root and a file system with immutable files",
        is_met: || can_make_immutable_files().unwrap_or(false),
    },
    Requirement {
        prefix: "with_mke2fs_1_47_0_",
        needs: "mke2fs 1.47.0",
        is_met: || mke2fs_version().is_some_and(|version| version == "1.47.0"),
    },
];

/// Tests that are never part of a run: they take minutes or measure something, or they are processes
/// that other tests start.
const NEVER: &[&str] = &["by_hand_", "helper_"];

/// The arguments of the test harness that run everything this machine can run.
pub(crate) fn harness_arguments() -> Vec<&'static str> {
    let mut words = vec!["--include-ignored"];
    words.extend(NEVER.iter().flat_map(|prefix| ["--skip", *prefix]));
    for requirement in REQUIREMENTS.iter().filter(|it| !(it.is_met)()) {
        let Requirement { prefix, needs, .. } = requirement;
        say(format!(
            "leaving out the tests named `{prefix}…`, which need {needs}"
        ));
        words.extend(["--skip", prefix]);
    }
    words
}

/// Tries it where tests have their files.
fn can_make_immutable_files() -> Result<bool> {
    let file = tempfile::NamedTempFile::new()?;
    let change = |flag: &str| {
        let mut command = shell::command("chattr", [flag]);
        shell::output(command.arg(file.path())).is_ok()
    };
    Ok(change("+i") && change("-i"))
}

fn mke2fs_version() -> Option<String> {
    let output = shell::command("mke2fs", ["-V"]).output().ok()?;
    let text = String::from_utf8(output.stderr).ok()?;
    Some(text.split_whitespace().nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tests_run_except_those_that_never_do() {
        let words = harness_arguments();
        assert_eq!(
            words[..5],
            [
                "--include-ignored",
                "--skip",
                "by_hand_",
                "--skip",
                "helper_"
            ]
        );
    }
}
