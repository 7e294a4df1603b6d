//! `cofferdam doctor`: checks that this machine can run builds.

use std::fmt::{self, Display};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use exec::Cancel;
use launcher::monitor::confine::{self, Wall, Walls};
use launcher::monitor::qemu::{PROGRAM, Qemu, QemuError};
use launcher::{BootError, GuestImage, Options, VmReport};
use serde_json::{Value, json};

use super::common::Common;
use crate::exit::{Class, Failure, chain};
use crate::output::{message, print};
use crate::sanitize::{self, sanitize_lines};
use crate::{directories, signals};

const EXAMPLES: &str = "\
Examples:
  cofferdam doctor                  check the store, the guest image, QEMU, its confinement and KVM
  cofferdam doctor --boot           also boot the VM and measure how long it takes
  cofferdam doctor --boot --json    the same as JSON

Exit status: 0 if builds can run, 125 if a requirement is missing.";

/// Check that this machine can run builds
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also boot the VM
    #[arg(long)]
    boot: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Directory of the guest image
    #[arg(
        long,
        value_name = "DIR",
        env = "COFFERDAM_VM_IMAGE",
        hide_env_values = true
    )]
    vm_image: Option<PathBuf>,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything is fine.
    Good,
    /// Builds run, but not as well as they could.
    Poor,
    /// Builds cannot run, except fully cached ones.
    Bad,
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "ok",
            Self::Poor => "WARN",
            Self::Bad => "FAIL",
        })
    }
}

/// One check and its result.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    state: State,
    text: String,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Good,
            text: text.into(),
        }
    }

    fn poor(what: &'static str, text: impl Into<String>) -> Self {
        Self {
            what,
            state: State::Poor,
            text: text.into(),
        }
    }

    fn bad(what: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self {
            what,
            state: State::Bad,
            text: chain(&error.into()),
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, common: &Common) -> Result<ExitCode, Failure> {
    let dir = directories::guest_image(args.vm_image.as_deref());
    let found = Qemu::find(Path::new(PROGRAM));
    let device = Path::new("/dev/kvm");
    let kvm = kvm(device);
    let mut findings = vec![store(common)?, image(&dir)];
    if let Ok(qemu) = &found {
        let devices = (kvm.state == State::Good).then(|| device.to_owned());
        let devices: Vec<PathBuf> = devices.into_iter().collect();
        findings.push(confinement(&confine::detect(qemu, &devices)));
    }
    findings.insert(2, qemu(found));
    findings.push(kvm);
    let mut booted = None;
    if args.boot {
        let (more, report) = boot(&dir, common)?;
        findings.extend(more);
        booted = report;
    }
    let bad = findings.iter().any(|finding| finding.state == State::Bad);
    print(|out| {
        if args.json {
            return writeln!(out, "{}", sanitize::json(&object(&findings, bad, booted)));
        }
        findings.iter().try_for_each(|finding| {
            writeln!(
                out,
                "{:<5} {:<12} {}",
                finding.state,
                finding.what,
                sanitize_lines(&finding.text)
            )
        })
    })?;
    Ok(if bad {
        ExitCode::from(Class::Host.status())
    } else {
        ExitCode::SUCCESS
    })
}

fn store(common: &Common) -> Result<Finding, Failure> {
    let dir = common.store_dir()?;
    Ok(match common.open() {
        Ok(store) => {
            common.close(store);
            Finding::good("store", dir.display().to_string())
        }
        Err(failure) => Finding::bad("store", failure.error),
    })
}

/// Reads the whole image: a damaged one would fail later, with an obscure error.
fn image(dir: &Path) -> Finding {
    let checked = GuestImage::open(dir).and_then(|image| image.verify().map(|()| image));
    match checked {
        Ok(image) => {
            let manifest = image.manifest;
            let text = format!(
                "{}: Linux {}, agent {}, protocol {}",
                dir.display(),
                manifest.kernel_version,
                manifest.agent_version,
                manifest.protocol
            );
            Finding::good("guest image", text)
        }
        Err(error) => Finding::bad("guest image", error),
    }
}

fn qemu(found: Result<Qemu, QemuError>) -> Finding {
    match found {
        Ok(qemu) => Finding::good(
            "QEMU",
            format!("{} {}", qemu.program.display(), qemu.version),
        ),
        Err(error) => Finding::bad("QEMU", error),
    }
}

/// What a guest that takes over QEMU still finds in its way on this machine.
fn confinement(walls: &Walls) -> Finding {
    let name = |wall: &Wall| {
        if *wall == Wall::Landlock {
            format!("{wall} (version {})", confine::landlock_version())
        } else {
            wall.to_string()
        }
    };
    let present: Vec<String> = walls.present.iter().map(name).collect();
    let mut text = format!("QEMU is confined by {}", present.join(", "));
    if walls.missing.is_empty() {
        return Finding::good("confinement", text);
    }
    for (wall, why) in &walls.missing {
        text.push_str(&format!("; not by {wall}: {why}"));
    }
    Finding::poor("confinement", text)
}

/// What the kernel says about the QEMU that ran.
fn in_force(report: &VmReport) -> Finding {
    match report.confinement {
        Some(observed) if observed.seccomp && observed.no_new_privileges => {
            Finding::good("in force", observed.to_string())
        }
        Some(observed) => Finding::poor("in force", observed.to_string()),
        None => Finding::poor("in force", "the kernel did not say"),
    }
}

/// Opens the device. That does not prove that KVM works; only a boot does.
fn kvm(device: &Path) -> Finding {
    let slow = "RUN steps are emulated and about ten times slower";
    let name = device.display();
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Finding::good("KVM", format!("{name} is usable")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!(
                "{name} does not exist: {slow}; enable virtualization in the firmware or the outer \
                 VM, and load the kvm module"
            );
            Finding::poor("KVM", text)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::poor(
            "KVM",
            format!("no permission to open {name}: {slow}; add yourself to the group `kvm`"),
        ),
        Err(error) => Finding::poor("KVM", format!("{name}: {error}: {slow}")),
    }
}

/// Parses an environment variable like the option of `build` that it sets.
fn from_environment<T>(variable: &str) -> Result<Option<T>, Failure>
where
    T: FromStr<Err: Display>,
{
    let value = std::env::var_os(variable);
    let parsed = value.map(|value| value.to_string_lossy().parse());
    parsed
        .transpose()
        .map_err(|error: T::Err| Failure::usage(error.to_string()))
}

/// Boots the VM as a build with the same environment does, and shuts it down.
fn boot(dir: &Path, common: &Common) -> Result<(Vec<Finding>, Option<Booted>), Failure> {
    let image = match GuestImage::open(dir) {
        Ok(image) => image,
        Err(error) => return Ok((vec![Finding::bad("boot", error)], None)),
    };
    let cancel = Cancel::new();
    signals::watch(&cancel, || {
        message("cancelling; press Ctrl-C again to exit immediately");
    })?;
    let mut options = Options::new(image);
    if let Some(accel) = from_environment("COFFERDAM_ACCEL")? {
        options.accel = accel;
    }
    if let Some(transport) = from_environment("COFFERDAM_TRANSPORT")? {
        options.transport = transport;
    }
    if let Some(vsock) = from_environment("COFFERDAM_VSOCK")? {
        options.vsock = vsock;
    }
    let store = common.open()?;
    let booted = launcher::boot_once(&store, &options, &cancel);
    common.close(store);
    Ok(match booted {
        Ok(report) => {
            let took = u64::try_from(report.boot.as_millis()).unwrap_or(u64::MAX);
            let text = format!(
                "{} ready in {took} ms ({}, vsock driver: {})",
                report.agent, report.accelerator, report.transport
            );
            let booted = Booted {
                ms: took,
                accelerator: report.accelerator,
                transport: report.transport,
            };
            let findings = vec![Finding::good("boot", text), in_force(&report)];
            (findings, Some(booted))
        }
        Err(BootError::Cancelled) => {
            return Err(Failure::new(
                Class::Cancelled,
                anyhow::Error::msg("cancelled"),
            ));
        }
        Err(error) => (vec![Finding::bad("boot", error)], None),
    })
}

/// How the VM booted.
struct Booted {
    /// Time until the agent's hello, in milliseconds.
    ms: u64,
    accelerator: &'static str,
    transport: &'static str,
}

fn object(findings: &[Finding], bad: bool, booted: Option<Booted>) -> Value {
    let each = findings.iter().map(|finding| {
        let state = match finding.state {
            State::Good => "ok",
            State::Poor => "poor",
            State::Bad => "fail",
        };
        json!({"what": finding.what, "state": state, "text": finding.text})
    });
    let boot = booted.map(|booted| {
        json!({
            "boot_ms": booted.ms,
            "accelerator": booted.accelerator,
            "transport": booted.transport,
        })
    });
    json!({"ok": !bad, "boot": boot, "findings": each.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_fails_and_a_missing_device_is_poor() {
        assert_eq!(image(Path::new("/no/such/image")).state, State::Bad);
        let missing = kvm(Path::new("/no/such/device"));
        assert_eq!(missing.state, State::Poor);
        assert!(missing.text.contains("emulated"), "{}", missing.text);
    }

    #[test]
    fn a_wall_that_the_host_lacks_is_named_with_the_reason() {
        let mut walls = Walls {
            present: vec![Wall::Seccomp, Wall::Limits],
            ..Walls::default()
        };
        let all = confinement(&walls);
        assert_eq!(all.state, State::Good);
        assert!(
            all.text.ends_with("by seccomp, resource limits"),
            "{}",
            all.text
        );
        walls.missing = vec![(Wall::Landlock, "the kernel is old".into())];
        let less = confinement(&walls);
        assert_eq!(less.state, State::Poor);
        let want = "; not by Landlock: the kernel is old";
        assert!(less.text.ends_with(want), "{}", less.text);
    }

    #[test]
    fn json_output_is_one_object() {
        let findings = [Finding::good("store", "/s"), Finding::poor("KVM", "none")];
        let booted = Booted {
            ms: 3200,
            accelerator: "tcg",
            transport: "ring",
        };
        let value = object(&findings, false, Some(booted));
        assert_eq!(value["boot"]["boot_ms"], 3200);
        assert_eq!(value["boot"]["accelerator"], "tcg");
        assert_eq!(value["findings"][1]["state"], "poor");
    }
}
