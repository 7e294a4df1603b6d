//! The VM of the tests and the benchmark.

use std::path::Path;
use std::process::Command;

/// A QEMU command for a VM like the launcher's, without disk and network, with `mib` MiB of memory. Its
/// console is its standard output; `device` is the socket of the vsock device.
#[must_use]
pub fn qemu(device: &Path, mib: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,memory-backend=mem,vmport=off,usb=off"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"]);
    command.args(["-smp", "2", "-m", &format!("{mib}M"), "-object"]);
    command.arg(format!("memory-backend-memfd,id=mem,share=on,size={mib}M"));
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio", "-chardev"]);
    command.arg(format!("socket,id=vsock,path={}", device.display()));
    command.args([
        "-device",
        "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
    ]);
    command
}
