//! The same in a VM.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use vsock_device::{Config, Device, GuestCid};

use crate::host::Lab;
use crate::obey::STREAMS;
use crate::qemu::machine;
use crate::{Outcome, PORT, Plan, links};

/// No boot takes this long, not even an emulated one on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// Starts a VM whose first program obeys, and measures.
pub(crate) fn run(
    plan: &Plan,
    kernel: &str,
    initramfs: &str,
    cmdline: &str,
    measure: impl FnOnce(Lab<'_>, &Plan) -> Outcome<()>,
) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("vsock");
    let console = dir.path().join("console");
    let device = Device::start(&socket, Config::new(GuestCid::try_from(3)?))?;
    let listener = device.listen(PORT)?;
    let monitor = boot(&socket, &console, [kernel, initramfs, cmdline])?;
    let accept = |_| listener.accept(Some(BOOT));
    let streams: Result<Vec<_>, _> = (0..STREAMS).map(accept).collect();
    let measured = streams.map_err(Into::into).and_then(|streams| {
        let helpers = &[monitor.0.id()];
        let links = links(&streams)?;
        measure(Lab { links, helpers }, plan)
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
    let mut command = machine(socket, 1024);
    command.args(["-kernel", kernel, "-initrd", initramfs, "-append", cmdline]);
    command.stdout(File::create(console)?);
    Ok(Process(command.stdin(Stdio::null()).spawn()?))
}

/// A process that ends with its owner.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
