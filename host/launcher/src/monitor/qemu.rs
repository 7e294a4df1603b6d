//! QEMU: where it is, which one it is, and how it is told to run a builder VM.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::patience::{Clock, Patience};

/// The program, looked up in `PATH` unless another one is named.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The first version that has everything that a builder VM is made of.
pub const MINIMUM: (u32, u32) = (6, 0);

/// Printing a version takes milliseconds; a host that swaps takes longer.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// A QEMU that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version, as it prints it: with the packager's own part.
    pub version: String,
}

/// Why no QEMU can be used.
#[derive(Debug, Error)]
pub enum QemuError {
    /// There is none.
    #[error("`{}` is not installed (Debian, Ubuntu: apt install qemu-system-x86; Fedora: dnf install qemu-system-x86)", .0.display())]
    Missing(PathBuf),
    /// It cannot be started.
    #[error("cannot run `{}`", .0.display())]
    Unusable(PathBuf, #[source] io::Error),
    /// It says something else than its version.
    #[error("`{}` does not say its version: `{said}`", program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// How its answer begins.
        said: String,
    },
    /// It is too old.
    #[error("`{}` is version {version}; at least {}.{} is needed", program.display(), MINIMUM.0, MINIMUM.1)]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: String,
    },
}

impl Qemu {
    /// Asks `program` for its version.
    ///
    /// # Errors
    /// If it cannot be run, or is too old.
    pub fn find(program: &Path) -> Result<Self, QemuError> {
        let text = version_text(program).map_err(|err| {
            if err.kind() == io::ErrorKind::NotFound {
                QemuError::Missing(program.into())
            } else {
                QemuError::Unusable(program.into(), err)
            }
        })?;
        let Some((version, number)) = parse_version(&text) else {
            let said = text.chars().take(100).collect();
            return Err(QemuError::NoVersion {
                program: program.into(),
                said,
            });
        };
        if number < MINIMUM {
            return Err(QemuError::TooOld {
                program: program.into(),
                version,
            });
        }
        Ok(Self {
            program: program.into(),
            version,
        })
    }
}

fn version_text(program: &Path) -> io::Result<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let clock = Clock::default();
    let mut patience = Patience::new(VERSION_LIMIT, clock.now());
    // Two lines fit into any pipe, so the program can end before they are read.
    while child.try_wait()?.is_none() {
        if patience.ends(clock.now()) {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child
        .stdout
        .take()
        .map_or_else(|| Ok(String::new()), io::read_to_string)
}

/// Splits `QEMU emulator version 7.2.22 (Debian …)` into the text of the version and its number.
fn parse_version(text: &str) -> Option<(String, (u32, u32))> {
    let line = text.lines().next()?;
    let (_, version) = line.split_once("version ")?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((version.trim().to_owned(), number))
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The processor.
    Kvm,
    /// An emulator.
    Tcg,
}

/// Who makes the vsock device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vsock<'a> {
    /// Somebody behind this vhost-user socket.
    Socket(&'a Path),
    /// The host's kernel, for a guest with this context id.
    Host(u32),
}

/// A builder VM, as QEMU is to make it.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) engine: Engine,
    pub(crate) memory_mib: u64,
    pub(crate) cpus: usize,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) disk: &'a Path,
    pub(crate) vsock: Vsock<'a>,
    /// Steps may reach the outside.
    pub(crate) network: bool,
}

impl Machine<'_> {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        self.board(&mut args);
        self.boot(&mut args);
        self.vsock(&mut args);
        self.disk(&mut args);
        self.network(&mut args);
        args.0
    }

    fn board(&self, args: &mut Arguments) {
        let (accel, cpu) = match self.engine {
            Engine::Kvm => ("kvm", "host"),
            // The emulator executes `rep movsb` byte by byte; a guest that believes the processor
            // has no fast form of it copies in another way, twice as fast.
            Engine::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
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
        // use when the host lost power is thrown away.
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

    fn network(&self, args: &mut Arguments) {
        // QEMU cannot hide the host's loopback (its gateway address) from a guest that may reach
        // the outside, so the agent refuses it to steps; a build without network gets none at all.
        // IPv6 is off because the host's loopback would have a second name there.
        let restrict = if self.network { "off" } else { "on" };
        args.pair(
            "-netdev",
            format!("user,id=net,ipv6=off,restrict={restrict}"),
        );
        args.pair(
            "-device",
            "virtio-net-pci,netdev=net,disable-legacy=on,romfile=",
        );
    }
}

/// Arguments in the making.
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

/// `prefix` and a path, in which QEMU wants commas doubled.
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

    fn arguments(engine: Engine, network: bool, disk: &str) -> Vec<String> {
        let machine = Machine {
            engine,
            memory_mib: 1536,
            cpus: 2,
            kernel: Path::new("/i/vmlinuz"),
            initramfs: Path::new("/i/initramfs.cpio"),
            cmdline: "console=ttyS0 quiet",
            disk: Path::new(disk),
            vsock: Vsock::Socket(Path::new("vsock")),
            network,
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
        let args = arguments(Engine::Tcg, true, "/d");
        check(&args, "-accel", "tcg,thread=multi");
        check(&args, "-cpu", "max,-erms,-fsrm");
    }

    #[test]
    fn under_kvm_the_guest_sees_the_processor_as_it_is() {
        let args = arguments(Engine::Kvm, true, "/d");
        check(&args, "-accel", "kvm");
        check(&args, "-cpu", "host");
    }

    #[test]
    fn memory_is_shared_and_stated_twice_alike() {
        let args = arguments(Engine::Tcg, true, "/d");
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
    fn nothing_that_is_not_asked_for_is_in_the_machine() {
        let args = arguments(Engine::Tcg, true, "/d");
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            assert!(args.iter().any(|arg| arg == flag), "{flag}");
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        let args = arguments(Engine::Tcg, true, "/a,b/disk");
        assert!(
            args.iter().any(|arg| arg.ends_with("filename=/a,,b/disk")),
            "{args:#?}"
        );
    }

    #[test]
    fn without_network_the_guest_reaches_nothing() {
        check(
            &arguments(Engine::Tcg, false, "/d"),
            "-netdev",
            "user,id=net,ipv6=off,restrict=on",
        );
        check(
            &arguments(Engine::Tcg, true, "/d"),
            "-netdev",
            "user,id=net,ipv6=off,restrict=off",
        );
    }

    #[test]
    fn the_hosts_kernel_is_told_the_context_id() {
        let machine = Machine {
            engine: Engine::Kvm,
            memory_mib: 512,
            cpus: 1,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            cmdline: "",
            disk: Path::new("/d"),
            vsock: Vsock::Host(4711),
            network: false,
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

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let read = |text| parse_version(text).map(|(_, number)| number);
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)";
        assert_eq!(read(debian), Some((7, 2)));
        assert_eq!(read("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(
            read("QEMU emulator version 9.1.50 (v9.1.0-5-gabc)"),
            Some((9, 1))
        );
        assert_eq!(read("bash: command not found"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn a_missing_program_comes_with_what_to_install() {
        let text = Qemu::find(Path::new("/nonexistent/qemu"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("apt install"), "{text}");
    }

    #[test]
    fn a_program_that_says_something_else_is_not_taken_for_qemu() {
        let refused = Qemu::find(Path::new("echo")).unwrap_err();
        assert!(matches!(refused, QemuError::NoVersion { .. }));
    }
}
