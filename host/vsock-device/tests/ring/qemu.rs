//! The machine in which both ends of a vsock device are looked at.

use std::path::Path;
use std::process::Command;

/// A machine like the launcher's, without disk and network. Its console is its standard output;
/// `device` is the socket of the vsock device.
pub(crate) fn machine(device: &Path, mib: u32) -> Command {
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
