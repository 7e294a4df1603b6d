//! PID 1 of the VM of `cargo xtask bench transport`: connects to the host in the way that the kernel
//! command line names, and does what the host orders.
//!
//! `bench=ring` is this crate's driver, `bench=kernel` an `AF_VSOCK` socket with a large buffer. The
//! initramfs is like the agent's: modules and their order are in `/modules`.
#![expect(clippy::print_stderr, reason = "that is the console")]

mod obey;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};
use vsock_ring::{Config, Endpoint, pci};

use crate::obey::{Link, PATIENCE, obey};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Where the host listens.
const HOST: u32 = 2;
const PORT: u32 = 1024;

/// What the socket may have received and not read.
const SOCKET_BUFFER: u64 = 4 << 20;

/// How much is read from the socket at a time: as much as the ring has in a slot.
const READ: usize = 256 * 1024;

/// Options of `AF_VSOCK` sockets, from `linux/vm_sockets.h`.
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the first program of a VM: cargo xtask bench transport");
        return;
    }
    if let Err(error) = serve() {
        eprintln!("bench guest: {error}");
    }
    // Returns only if it fails, and then the kernel stops on the end of its first process.
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("bench guest: cannot power off: {errno}");
}

fn serve() -> Outcome<()> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    if cmdline.split_whitespace().any(|word| word == "bench=ring") {
        load_modules(&["first"])?;
        let config = Config::default();
        let endpoint = Endpoint::start(pci::bind(&config)?, config)?;
        let mut stream = endpoint.connect(PORT, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE));
        stream.set_write_timeout(Some(PATIENCE));
        obey(&mut stream)?;
    } else {
        load_modules(&["first", "fallback"])?;
        obey(&mut Socket::connect()?)?;
    }
    Ok(())
}

/// Loads the modules whose lines begin with one of these words.
fn load_modules(groups: &[&str]) -> Outcome<()> {
    let modules = Path::new("/modules");
    for line in fs::read_to_string(modules.join("order"))?.lines() {
        let Some((group, name)) = line.split_once(' ') else {
            continue;
        };
        if groups.contains(&group) {
            let file = File::open(modules.join(name))?;
            finit_module(&file, c"", ModuleInitFlags::empty())
                .map_err(|errno| format!("cannot load {name}: {errno}"))?;
        }
    }
    Ok(())
}

/// A connection through the kernel's driver.
struct Socket {
    file: File,
    buffer: Vec<u8>,
}

impl Socket {
    fn connect() -> Outcome<Self> {
        let kind = SockType::Stream;
        let fd = socket(AddressFamily::Vsock, kind, SockFlag::SOCK_CLOEXEC, None)?;
        for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
            set_vsock_option(fd.as_fd(), option, SOCKET_BUFFER)?;
        }
        connect(fd.as_raw_fd(), &VsockAddr::new(HOST, PORT))?;
        bound_waits(&fd, PATIENCE)?;
        Ok(Self {
            file: fd.into(),
            buffer: vec![0; READ],
        })
    }
}

fn bound_waits(fd: &OwnedFd, patience: Duration) -> Outcome<()> {
    let limit = TimeVal::seconds(patience.as_secs().try_into()?);
    setsockopt(fd, ReceiveTimeout, &limit)?;
    setsockopt(fd, SendTimeout, &limit)?;
    Ok(())
}

#[expect(unsafe_code, reason = "nix has no options of AF_VSOCK")]
fn set_vsock_option(fd: BorrowedFd<'_>, option: i32, value: u64) -> Outcome<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value))?;
    let value: *const u64 = &value;
    // SAFETY: `value` points to an initialised integer of `size` bytes that the kernel reads during
    // the call.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::AF_VSOCK, option, value.cast(), size) };
    Errno::result(done)?;
    Ok(())
}

impl Link for Socket {
    fn next(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let n = self.file.read(&mut self.buffer)?;
        look(self.buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
