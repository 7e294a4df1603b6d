//! The network of steps against QEMU's user network: throughput both ways, and connections.
//!
//! The same busybox runs the same script in both: as a step of a build, and as the only program of a
//! VM with the same kernel and QEMU's user network, which no builder VM has. It talks to the same
//! servers of this process, and they measure.

mod servers;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vmimage::{Archive, Module};

use super::table::{Report, Row};
use super::{Bench, Spread, boot, ms};
use crate::image;
use crate::shell;
use crate::workspace::Workspace;
use servers::{Measured, Servers};

/// What the bare system prints when its script has ended.
const DONE: &str = "cofferdam-bench-done";

/// No run takes this long, not even an emulated one on a busy machine.
const BOUND: Duration = Duration::from_secs(1800);

pub(super) fn run(workspace: &Workspace, bench: &Bench) -> Result<Report> {
    let (mib, connections, rounds) = if bench.quick {
        (8, 50, 3)
    } else {
        (64, 300, 5)
    };
    let servers = Servers::start(mib << 20, connections)?;
    let script = script(&servers, mib, connections);
    let context = context(bench, &script)?;
    let (mut flows, mut slirp) = (Measured::default(), Measured::default());
    let mut accelerator = String::new();
    // In turns: a machine is not equally fast all the time.
    for _ in 0..rounds {
        accelerator = by_flows(bench, &servers, &context)?;
        flows.add(servers.take()?);
        by_slirp(workspace, bench, &script, &accelerator)?;
        slirp.add(servers.take()?);
    }
    let mut report = Report::new("net");
    for (name, measured) in [("flows", &flows), ("QEMU's user network", &slirp)] {
        rows(&mut report, name, &accelerator, mib, connections, measured)?;
    }
    for (ratio, of) in RATIOS {
        let time =
            |measured: &Measured| Ok::<_, anyhow::Error>(ms(Spread::of(of(measured))?.median));
        report.ratio(ratio, time(&slirp)? / time(&flows)?);
    }
    Ok(report)
}

type Times = fn(&Measured) -> Vec<Duration>;

/// How many times faster flows are.
const RATIOS: [(&str, Times); 3] = [
    ("flows_vs_slirp_down", |measured| measured.down.clone()),
    ("flows_vs_slirp_up", |measured| measured.up.clone()),
    ("flows_vs_slirp_connect", Measured::connect_alone),
];

fn rows(
    report: &mut Report,
    name: &str,
    accelerator: &str,
    mib: u64,
    connections: u32,
    measured: &Measured,
) -> Result<()> {
    let row = |what: String| Row::new(&what).text("accelerator", accelerator);
    for (way, times) in [("down", &measured.down), ("up", &measured.up)] {
        let spread = Spread::of(times.clone())?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let speed = mib as f64 / spread.median.as_secs_f64();
        let what = format!("{name}, {mib} MiB {way}");
        report.row(row(what).spread(spread).number("mib_s", speed));
    }
    for (what, times) in [
        ("connections in a row", &measured.connect),
        ("programs that connect to nobody", &measured.start),
    ] {
        let spread = Spread::of(times.clone())?;
        let rate = f64::from(connections) / spread.median.as_secs_f64();
        let what = format!("{name}, {connections} {what}");
        report.row(row(what).spread(spread).number("per_s", rate));
    }
    Ok(())
}

/// What both systems run. The host is 10.0.2.2 in both. `dd` moves the bytes in large pieces; `nc` itself
/// reads a kilobyte at a time, and its system calls would hide the network. As many programs as make
/// connections start once more without one, so that the time of their start can be subtracted.
fn script(servers: &Servers, mib: u64, connections: u32) -> String {
    let Servers {
        down,
        up,
        many,
        none,
        ..
    } = servers;
    let many_times =
        |what: &str| format!("n=0\nwhile [ $n -lt {connections} ]; do {what}; n=$((n+1)); done\n");
    let connect = many_times(&format!("nc 10.0.2.2 {many} </dev/null"));
    let only_start = many_times("nc 127.0.0.1 1 </dev/null 2>/dev/null || :");
    format!(
        "set -e\n\
         nc 10.0.2.2 {down} -e dd of=/dev/null bs=65536 2>/dev/null\n\
         nc 10.0.2.2 {up} -e dd if=/dev/zero bs=65536 count={blocks} 2>/dev/null\n\
         {connect}\
         nc 10.0.2.2 {none} </dev/null\n{only_start}nc 10.0.2.2 {none} </dev/null\n",
        blocks = mib * 16,
    )
}

/// A build whose step runs the script.
fn context(bench: &Bench, script: &str) -> Result<PathBuf> {
    let context = bench.context("net")?;
    std::fs::write(context.join("script"), script).context("script")?;
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n\
                      RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                      COPY script /\nRUN sh /script\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).context("Dockerfile")?;
    Ok(context)
}

/// Runs the build. Returns the accelerator.
fn by_flows(bench: &Bench, servers: &Servers, context: &Path) -> Result<String> {
    let metadata = bench.scratch.path().join("net.json");
    let mut command = bench.cofferdam([
        "build",
        "--no-cache",
        "--progress",
        "plain",
        "--metadata-file",
    ]);
    command.arg(&metadata);
    for port in [servers.down, servers.up, servers.many, servers.none] {
        command.arg("--allow-net").arg(format!("localhost:{port}"));
    }
    shell::output(command.arg(".").current_dir(context))?;
    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(&metadata)?)?;
    let accelerator = metadata.pointer("/cofferdam.vm/accelerator");
    let accelerator = accelerator.and_then(serde_json::Value::as_str);
    Ok(accelerator.context("the build used no VM")?.to_owned())
}

/// Runs the script in a bare VM with QEMU's user network.
fn by_slirp(workspace: &Workspace, bench: &Bench, script: &str, accelerator: &str) -> Result<()> {
    let (kernel, modules) = image::kernel_with(workspace, &["virtio_pci", "virtio_net"])?;
    let initramfs = bench.scratch.path().join("net.cpio");
    std::fs::write(&initramfs, bare(script, &modules)?).context("bare initramfs")?;
    let mut command = boot::qemu(
        &kernel,
        &initramfs,
        "console=ttyS0 quiet panic=-1",
        accelerator,
    );
    command.args(["-netdev", "user,id=net", "-device"]);
    command.arg("virtio-net-pci,netdev=net,disable-legacy=on,romfile=");
    until_done(command)
}

/// An initramfs that brings the network up, runs the script, says that it has, and powers off.
fn bare(script: &str, modules: &[Module]) -> Result<Vec<u8>> {
    let busybox = std::fs::read("/bin/busybox").context("/bin/busybox: install busybox-static")?;
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "modules", "proc", "sys"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    let mut init = "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n\
                    mount -t devtmpfs none /dev; mount -t proc none /proc; mount -t sysfs none /sys\n"
        .to_owned();
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        archive.file(&path, 0o644, &module.bytes);
        init.push_str(&format!("insmod /{path}\n"));
    }
    init.push_str(
        "ifconfig lo 127.0.0.1\nifconfig eth0 10.0.2.15 netmask 255.255.255.0 up\n\
         route add default gw 10.0.2.2\n",
    );
    init.push_str(&format!(
        "if sh /script; then echo {DONE}; fi\npoweroff -f\n"
    ));
    archive.file("script", 0o644, script.as_bytes());
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}

/// Runs a VM until it powers off, and checks that its script has succeeded.
fn until_done(mut command: Command) -> Result<()> {
    let begin = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let mut console = child.stdout.take().context("console")?;
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        console.read_to_end(&mut said).map(|_| said)
    });
    while child.try_wait().context("cannot wait for QEMU")?.is_none() {
        if begin.elapsed() > BOUND {
            child.kill().context("cannot end QEMU")?;
            bail!("the bare system did not end");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains(DONE), "the bare system failed:\n{said}");
    Ok(())
}
