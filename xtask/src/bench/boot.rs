//! From the start of QEMU to the agent's greeting, against the same kernel with nothing but a
//! busybox: what the agent, its modules and its disk cost.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use vmimage_manifest::{KERNEL, MANIFEST, Manifest};

use super::table::{Report, Row};
use super::{Bench, Spread, ms};
use crate::shell;

/// What the bare system prints when its first program runs.
const READY: &str = "cofferdam-bench-ready";

/// No boot takes this long, not even an emulated one on a busy machine.
const BOUND: Duration = Duration::from_secs(120);

pub(super) fn run(bench: &Bench) -> Result<Report> {
    let rounds = if bench.quick { 3 } else { 8 };
    let bare = bare_initramfs(bench)?;
    let manifest = std::fs::read(bench.image.join(MANIFEST)).context(MANIFEST)?;
    let manifest = Manifest::from_json(&manifest)?;
    // The first boot may try an accelerator that does not work; the verdict is remembered.
    let (_, accelerator) = boot_agent(bench)?;
    let (mut agent, mut busybox) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        agent.push(boot_agent(bench)?.0);
        busybox.push(boot_bare(bench, &bare, &manifest.cmdline, &accelerator)?);
    }
    let (agent, busybox) = (Spread::of(agent)?, Spread::of(busybox)?);
    let mut report = Report::new("boot");
    let row = |what: &str, spread| {
        Row::new(what)
            .text("accelerator", &accelerator)
            .spread(spread)
    };
    report.row(row("agent, until its greeting", agent));
    report.row(row("bare busybox, until its first word", busybox));
    report.ratio("agent_vs_busybox", ms(agent.median) / ms(busybox.median));
    Ok(report)
}

/// Boots the builder VM once. Returns the time to the greeting, and the accelerator.
fn boot_agent(bench: &Bench) -> Result<(Duration, String)> {
    let said = shell::output(&mut bench.cofferdam(["doctor", "--boot", "--json"]))?;
    let report: Value = serde_json::from_slice(&said).context("report of `doctor --boot`")?;
    let time = report.pointer("/boot/boot_ms").and_then(Value::as_f64);
    let accelerator = report.pointer("/boot/accelerator").and_then(Value::as_str);
    match (time, accelerator) {
        (Some(time), Some(accelerator)) => {
            Ok((Duration::from_secs_f64(time / 1e3), accelerator.to_owned()))
        }
        _ => bail!("`doctor --boot --json` says nothing of a boot: {report}"),
    }
}

/// An initramfs whose first program is a busybox that says one word and powers off.
fn bare_initramfs(bench: &Bench) -> Result<PathBuf> {
    let busybox = std::fs::read("/bin/busybox").context("/bin/busybox: install busybox-static")?;
    let init = format!("#!/bin/busybox sh\necho {READY}\nexec /bin/busybox poweroff -f\n");
    let mut archive = vmimage::Archive::new();
    archive.directory("bin");
    archive.directory("dev");
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, init.as_bytes());
    let path = bench.scratch.path().join("bare.cpio");
    std::fs::write(&path, archive.finish()).context("bare initramfs")?;
    Ok(path)
}

/// Boots the bare system and returns the time until it says its word.
fn boot_bare(
    bench: &Bench,
    initramfs: &Path,
    cmdline: &str,
    accelerator: &str,
) -> Result<Duration> {
    let mut command = qemu(&bench.image.join(KERNEL), initramfs, cmdline, accelerator);
    let begin = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let mut console = child.stdout.take().context("console")?;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let reader = std::thread::spawn(move || {
        let (mut said, mut byte) = (Vec::<u8>::new(), [0_u8; 256]);
        while let Ok(n @ 1..) = console.read(&mut byte) {
            said.extend(byte.iter().take(n));
            if said
                .windows(READY.len())
                .any(|window| window == READY.as_bytes())
            {
                tell.send(begin.elapsed()).ok();
                break;
            }
        }
    });
    let ready = told.recv_timeout(BOUND);
    child.kill().context("cannot end QEMU")?;
    child.wait().context("cannot wait for QEMU")?;
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    ready.context("the bare system never said its word")
}

/// The machine that the launcher makes, without the devices that only the agent needs.
pub(super) fn qemu(kernel: &Path, initramfs: &Path, cmdline: &str, accelerator: &str) -> Command {
    let mut command = shell::command("qemu-system-x86_64", ["-M", "q35", "-m", "2048"]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    let engine: &[&str] = if accelerator == "kvm" {
        &["-accel", "kvm", "-cpu", "host"]
    } else {
        &["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"]
    };
    command.args(engine).args(["-smp", "2", "-serial", "stdio"]);
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    command.args(["-append", cmdline]);
    command
}
