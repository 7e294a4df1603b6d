//! The same in a VM.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vsock::{Config, Device, GuestCid};

use crate::host::Lab;
use crate::obey::STREAMS;
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
    let mut command = qemu(socket);
    command.args(["-kernel", kernel, "-initrd", initramfs, "-append", cmdline]);
    command.stdout(File::create(console)?);
    Ok(Process(command.stdin(Stdio::null()).spawn()?))
}

/// A machine like the launcher's, without the devices that only builds need.
fn qemu(socket: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,memory-backend=mem,vmport=off,usb=off"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"]);
    command.args(["-smp", "2", "-m", "1024M", "-object"]);
    command.arg("memory-backend-memfd,id=mem,share=on,size=1024M");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio", "-chardev"]);
    command.arg(format!("socket,id=vsock,path={}", socket.display()));
    command.args([
        "-device",
        "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
    ]);
    command
}

/// A process that ends with its owner.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
