//! The benchmark in a VM with our device.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use vsock_device::{Config, Device, GuestCid};
use vsock_guest::bench::STREAMS;
use vsock_testbed::qemu;

use crate::host::Benchmark;
use crate::{Outcome, PORT, Plan, streams};

/// No boot takes this long, not even an emulated one on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// Starts a VM with the benchmark guest, and measures.
pub(crate) fn run(
    plan: &Plan,
    kernel: &str,
    initramfs: &str,
    cmdline: &str,
    measure: impl FnOnce(Benchmark<'_>, &Plan) -> Outcome<()>,
) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("vsock");
    let console = dir.path().join("console");
    let device = Device::start(&socket, Config::new(GuestCid::try_from(3)?))?;
    let listener = device.listen(PORT)?;
    let monitor = boot(&socket, &console, [kernel, initramfs, cmdline])?;
    let accept = |_| listener.accept(Some(BOOT));
    let accepted: Result<Vec<_>, _> = (0..STREAMS).map(accept).collect();
    let measured = accepted.map_err(Into::into).and_then(|accepted| {
        let helpers = &[monitor.0.id()];
        let streams = streams(&accepted)?;
        measure(Benchmark { streams, helpers }, plan)
    });
    drop(monitor);
    measured.map_err(|error| {
        let said = std::fs::read(&console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let why = device.failure().unwrap_or_default();
        format!("{error}\n{why}\nthe guest's console:\n{said}").into()
    })
}

/// Starts a VM of these files: kernel, initramfs, and the kernel command line.
pub(crate) fn boot(socket: &Path, console: &Path, files: [&str; 3]) -> Outcome<Process> {
    let [kernel, initramfs, cmdline] = files;
    let mut command = qemu(socket, 1024);
    command.args(["-kernel", kernel, "-initrd", initramfs, "-append", cmdline]);
    command.stdout(File::create(console)?);
    Ok(Process(command.stdin(Stdio::null()).spawn()?))
}

/// A process that is killed when this is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
