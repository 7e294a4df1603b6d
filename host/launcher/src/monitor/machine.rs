//! The machine: how QEMU is told to run a builder VM.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

/// What provides the vsock device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vsock<'a> {
    /// A vhost-user device at this socket.
    Socket(&'a Path),
    /// The host's kernel, for a guest with this context id.
    Host(u32),
}

/// A builder VM, as QEMU is to create it.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) memory_mib: u64,
    pub(crate) cpus: usize,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) disk: &'a Path,
    pub(crate) vsock: Vsock<'a>,
}

impl Machine<'_> {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        self.board(&mut args);
        self.boot(&mut args);
        self.vsock(&mut args);
        self.disk(&mut args);
        args.0
    }

    fn board(&self, args: &mut Arguments) {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // The emulator executes `rep movsb` byte by byte; a guest that does not see the fast form
            // of it copies in another way, twice as fast.
            Accelerator::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        };
        args.pair("-machine", "q35,memory-backend=mem,vmport=off,usb=off");
        args.pair("-accel", accel);
        args.pair("-cpu", cpu);
        args.pair("-smp", self.cpus.to_string());
        args.pair("-m", format!("{}M", self.memory_mib));
        // The device of this process reads and writes guest memory, so it must be shared.
        let size = self.memory_mib;
        args.pair(
            "-object",
            format!("memory-backend-memfd,id=mem,share=on,size={size}M"),
        );
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.flag(flag);
        }
        args.pair("-display", "none");
        args.pair("-object", "rng-random,id=rng,filename=/dev/urandom");
        args.pair("-device", "virtio-rng-pci,rng=rng,disable-legacy=on");
        // The console goes to standard output, which the launcher drains: neither memory nor disk
        // of the host grows with what the guest writes there.
        args.pair("-chardev", "file,id=console,path=/dev/fd/1,append=on");
        args.pair("-serial", "chardev:console");
    }

    fn boot(&self, args: &mut Arguments) {
        args.pair("-kernel", self.kernel);
        args.pair("-initrd", self.initramfs);
        args.pair("-append", self.cmdline);
    }

    fn vsock(&self, args: &mut Arguments) {
        match self.vsock {
            Vsock::Socket(path) => {
                args.pair("-chardev", option("socket,id=vsock,path=", path));
                args.pair(
                    "-device",
                    "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on",
                );
            }
            Vsock::Host(cid) => args.pair(
                "-device",
                format!("vhost-vsock-pci,guest-cid={cid},disable-legacy=on"),
            ),
        }
    }

    fn disk(&self, args: &mut Arguments) {
        // No flush ever reaches the host's disk: the guest disk is a cache, and one that was in
        // use when the host lost power is discarded.
        let file = "driver=file,node-name=file,aio=threads,discard=unmap,cache.direct=off,cache.no-flush=on,filename=";
        args.pair("-blockdev", option(file, self.disk));
        args.pair(
            "-blockdev",
            "driver=raw,node-name=disk,file=file,discard=unmap,cache.no-flush=on",
        );
        args.pair("-object", "iothread,id=disk-thread");
        // A full host disk must fail the guest's write: by default QEMU would stop the VM, which
        // looks like a hang.
        args.pair(
            "-device",
            "virtio-blk-pci,drive=disk,iothread=disk-thread,disable-legacy=on,write-cache=on,\
             werror=report,rerror=report",
        );
    }
}

/// A list of arguments.
#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn pair(&mut self, flag: &str, value: impl AsRef<OsStr>) {
        self.0.extend([flag.into(), value.as_ref().to_owned()]);
    }
}

/// `prefix` and a path, whose commas QEMU wants doubled.
fn option(prefix: &str, path: &Path) -> OsString {
    let mut text = prefix.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        if *byte == b',' {
            text.push(b',');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(accelerator: Accelerator, disk: &str) -> Vec<String> {
        let machine = Machine {
            accelerator,
            memory_mib: 1536,
            cpus: 2,
            kernel: Path::new("/i/vmlinuz"),
            initramfs: Path::new("/i/initramfs.cpio"),
            cmdline: "console=ttyS0 quiet",
            disk: Path::new(disk),
            vsock: Vsock::Socket(Path::new("vsock")),
        };
        machine
            .arguments()
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[track_caller]
    fn check(args: &[String], flag: &str, want: &str) {
        let found = args
            .windows(2)
            .any(|pair| pair[0] == flag && pair[1] == want);
        assert!(found, "{flag} {want} is not in {args:#?}");
    }

    #[test]
    fn an_emulated_machine_hides_the_slow_copy_instructions() {
        let args = arguments(Accelerator::Tcg, "/d");
        check(&args, "-accel", "tcg,thread=multi");
        check(&args, "-cpu", "max,-erms,-fsrm");
    }

    #[test]
    fn under_kvm_the_guest_sees_the_processor_as_it_is() {
        let args = arguments(Accelerator::Kvm, "/d");
        check(&args, "-accel", "kvm");
        check(&args, "-cpu", "host");
    }

    #[test]
    fn memory_is_shared_and_its_two_sizes_are_equal() {
        let args = arguments(Accelerator::Tcg, "/d");
        check(&args, "-m", "1536M");
        check(
            &args,
            "-object",
            "memory-backend-memfd,id=mem,share=on,size=1536M",
        );
        check(
            &args,
            "-machine",
            "q35,memory-backend=mem,vmport=off,usb=off",
        );
    }

    #[test]
    fn the_machine_has_no_default_devices() {
        let args = arguments(Accelerator::Tcg, "/d");
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            assert!(args.iter().any(|arg| arg == flag), "{flag}");
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        let args = arguments(Accelerator::Tcg, "/a,b/disk");
        assert!(
            args.iter().any(|arg| arg.ends_with("filename=/a,,b/disk")),
            "{args:#?}"
        );
    }

    #[test]
    fn the_machine_has_no_network() {
        let args = arguments(Accelerator::Tcg, "/d");
        // Without it QEMU would make a network of its own for lack of another one.
        assert!(args.iter().any(|arg| arg == "-nodefaults"));
        for word in ["-netdev", "-nic", "-net", "virtio-net", "netdev="] {
            assert!(!args.iter().any(|arg| arg.contains(word)), "{word}");
        }
    }

    #[test]
    fn the_hosts_kernel_is_told_the_context_id() {
        let machine = Machine {
            accelerator: Accelerator::Kvm,
            memory_mib: 512,
            cpus: 1,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            cmdline: "",
            disk: Path::new("/d"),
            vsock: Vsock::Host(4711),
        };
        let args = machine.arguments().into_iter();
        let args: Vec<_> = args.map(|arg| arg.into_string().unwrap()).collect();
        let device = "vhost-vsock-pci,guest-cid=4711,disable-legacy=on";
        check(&args, "-device", device);
        assert!(
            !args.iter().any(|arg| arg.contains("vhost-user")),
            "{args:#?}"
        );
    }
}
