//! The machine: how QEMU is told to run a builder VM.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::confine::{Inherited, Source};
use super::qemu::SANDBOX;
use crate::accel;
use crate::vsock::VsockBackend;

/// Numbers of the descriptors that a monitor inherits. They are far above those that a process gets by
/// itself, and below any limit.
pub(crate) mod descriptor {
    pub(crate) const CONSOLE: i32 = 100;
    pub(crate) const KERNEL: i32 = 101;
    pub(crate) const INITRAMFS: i32 = 102;
    pub(crate) const DISK: i32 = 103;
    pub(crate) const VSOCK: i32 = 104;
}

/// The first version whose PS/2 controller can be left out.
const WITHOUT_PS2: (u32, u32) = (7, 1);

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
    /// Version of QEMU.
    pub(crate) qemu: (u32, u32),
    /// QEMU filters its own system calls.
    pub(crate) sandbox: bool,
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
        if self.sandbox {
            args.pair("-sandbox", SANDBOX);
        }
        self.board(&mut args);
        self.boot(&mut args);
        self.vsock(&mut args);
        self.disk(&mut args);
        args.0
    }

    /// The descriptors that the arguments name.
    pub(crate) fn inherited(&self) -> Vec<Inherited> {
        let inherited = |number, source| Inherited { number, source };
        let mut all = vec![
            inherited(descriptor::CONSOLE, Source::Output),
            inherited(descriptor::KERNEL, Source::Read(self.kernel.into())),
            inherited(descriptor::INITRAMFS, Source::Read(self.initramfs.into())),
            inherited(descriptor::DISK, Source::ReadWrite(self.disk.into())),
        ];
        if let Vsock::Socket(path) = self.vsock {
            all.push(inherited(descriptor::VSOCK, Source::Connect(path.into())));
        }
        all
    }

    fn board(&self, args: &mut Arguments) {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // The emulator executes `rep movsb` byte by byte; a guest that does not see the fast form
            // of it copies in another way, twice as fast.
            Accelerator::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        };
        args.pair("-machine", self.machine());
        args.pair("-accel", accel);
        args.pair("-cpu", cpu);
        args.pair("-smp", self.cpus.to_string());
        args.pair("-m", format!("{}M", self.memory_mib));
        // The device of this process reads and writes guest memory, so it must be shared.
        let size = self.memory_mib;
        args.pair(
            "-object",
            format!("memory-backend-memfd,id=mem,share=on,dump=off,size={size}M"),
        );
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.flag(flag);
        }
        args.pair("-display", "none");
        args.pair("-object", "rng-builtin,id=rng");
        args.pair("-device", "virtio-rng-pci,rng=rng,disable-legacy=on");
        // The console goes to standard output, which the launcher drains: neither memory nor disk
        // of the host grows with what the guest writes there.
        let console = args.set_of(descriptor::CONSOLE);
        args.pair(
            "-chardev",
            format!("file,id=console,path={console},append=on"),
        );
        args.pair("-serial", "chardev:console");
    }

    /// The board, without the devices that no boot needs: each is code that a guest can attack.
    /// `graphics=off` would add one: the firmware then writes to the console, and a guest that hangs
    /// no longer shows by its silence.
    fn machine(&self) -> String {
        let mut machine = String::from("q35,memory-backend=mem,dump-guest-core=off");
        for device in ["usb", "sata", "smbus", "hpet", "smm", "vmport"] {
            machine.push_str(&format!(",{device}=off"));
        }
        if self.qemu >= WITHOUT_PS2 {
            machine.push_str(",i8042=off");
        }
        machine
    }

    fn boot(&self, args: &mut Arguments) {
        // QEMU opens these two by name, and not through its sets of descriptors.
        args.pair("-kernel", again(descriptor::KERNEL));
        args.pair("-initrd", again(descriptor::INITRAMFS));
        args.pair("-append", self.cmdline);
    }

    fn vsock(&self, args: &mut Arguments) {
        match self.vsock {
            Vsock::Socket(_) => {
                let socket = descriptor::VSOCK;
                args.pair("-chardev", format!("socket,id=vsock,fd={socket}"));
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
        let disk = args.set_of(descriptor::DISK);
        args.pair("-blockdev", format!("{file}{disk}"));
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

    /// Makes a set of this descriptor, and returns the name under which QEMU opens it.
    fn set_of(&mut self, descriptor: i32) -> String {
        self.pair("-add-fd", format!("fd={descriptor},set={descriptor}"));
        format!("/dev/fdset/{descriptor}")
    }
}

/// The name under which a process opens the file of one of its descriptors again.
fn again(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}

/// The devices of the host that a monitor opens by name.
pub(crate) fn devices(accelerator: Accelerator, vsock: &VsockBackend) -> Vec<PathBuf> {
    let kvm = (accelerator == Accelerator::Kvm).then_some(accel::DEVICE);
    let vsock = (*vsock == VsockBackend::Host).then_some("/dev/vhost-vsock");
    kvm.into_iter().chain(vsock).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accelerator: Accelerator) -> Machine<'static> {
        Machine {
            qemu: (7, 2),
            sandbox: true,
            accelerator,
            memory_mib: 1536,
            cpus: 2,
            kernel: Path::new("/i/vmlinuz"),
            initramfs: Path::new("/i/initramfs.cpio"),
            cmdline: "console=ttyS0 quiet",
            disk: Path::new("/a,b/disk"),
            vsock: Vsock::Socket(Path::new("vm.socket")),
        }
    }

    fn words(machine: &Machine<'_>) -> Vec<String> {
        let args = machine.arguments().into_iter();
        args.map(|arg| arg.into_string().unwrap()).collect()
    }

    fn arguments(accelerator: Accelerator) -> Vec<String> {
        words(&machine(accelerator))
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
        let args = arguments(Accelerator::Tcg);
        check(&args, "-accel", "tcg,thread=multi");
        check(&args, "-cpu", "max,-erms,-fsrm");
    }

    #[test]
    fn under_kvm_the_guest_sees_the_processor_as_it_is() {
        let args = arguments(Accelerator::Kvm);
        check(&args, "-accel", "kvm");
        check(&args, "-cpu", "host");
    }

    #[test]
    fn memory_is_shared_is_in_no_core_dump_and_its_two_sizes_are_equal() {
        let args = arguments(Accelerator::Tcg);
        check(&args, "-m", "1536M");
        check(
            &args,
            "-object",
            "memory-backend-memfd,id=mem,share=on,dump=off,size=1536M",
        );
        check(
            &args,
            "-machine",
            "q35,memory-backend=mem,dump-guest-core=off,usb=off,sata=off,smbus=off,hpet=off,smm=off,\
             vmport=off,i8042=off",
        );
    }

    #[test]
    fn an_older_qemu_is_not_told_what_it_does_not_know() {
        let older = Machine {
            qemu: (6, 2),
            sandbox: false,
            ..machine(Accelerator::Tcg)
        };
        let args = words(&older);
        assert!(!args.iter().any(|arg| arg.contains("i8042")), "{args:#?}");
        assert!(!args.iter().any(|arg| arg == "-sandbox"), "{args:#?}");
    }

    #[test]
    fn system_calls_are_filtered() {
        let args = arguments(Accelerator::Tcg);
        let filter = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        check(&args, "-sandbox", filter);
    }

    #[test]
    fn the_machine_has_no_default_devices() {
        let args = arguments(Accelerator::Tcg);
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            assert!(args.iter().any(|arg| arg == flag), "{flag}");
        }
    }

    #[test]
    fn no_file_of_the_user_is_opened_by_name() {
        let machine = machine(Accelerator::Tcg);
        let args = words(&machine);
        for inherited in machine.inherited() {
            let number = inherited.number.to_string();
            assert!(
                args.iter().any(|arg| arg.contains(&number)),
                "{inherited:?}"
            );
            if let Source::Read(path) | Source::ReadWrite(path) | Source::Connect(path) =
                inherited.source
            {
                let path = path.to_str().unwrap();
                assert!(!args.iter().any(|arg| arg.contains(path)));
            }
        }
    }

    #[test]
    fn only_devices_that_are_used_are_within_reach() {
        let none: [PathBuf; 0] = [];
        let embedded = VsockBackend::Embedded;
        assert_eq!(devices(Accelerator::Tcg, &embedded), none);
        assert_eq!(
            devices(Accelerator::Kvm, &embedded),
            [Path::new("/dev/kvm")]
        );
        let both = ["/dev/kvm", "/dev/vhost-vsock"].map(PathBuf::from);
        assert_eq!(devices(Accelerator::Kvm, &VsockBackend::Host), both);
    }

    #[test]
    fn the_machine_has_no_network() {
        let args = arguments(Accelerator::Tcg);
        // Without it QEMU would make a network of its own for lack of another one.
        assert!(args.iter().any(|arg| arg == "-nodefaults"));
        for word in ["-netdev", "-nic", "-net", "virtio-net", "netdev="] {
            assert!(!args.iter().any(|arg| arg.contains(word)), "{word}");
        }
    }

    #[test]
    fn the_hosts_kernel_is_told_the_context_id() {
        let machine = Machine {
            vsock: Vsock::Host(4711),
            ..machine(Accelerator::Kvm)
        };
        let args = words(&machine);
        let device = "vhost-vsock-pci,guest-cid=4711,disable-legacy=on";
        check(&args, "-device", device);
        assert!(
            !args.iter().any(|arg| arg.contains("vhost-user")),
            "{args:#?}"
        );
    }
}
