//! What PID 1 does first and last, and sockets of the kernel's vsock driver.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// The result of a guest program.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes that a socket may have received and not read.
const SOCKET_BUFFER: u64 = 4 << 20;

/// Options of `AF_VSOCK` sockets, from `linux/vm_sockets.h`.
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;

/// Mounts the file systems that programs need, and loads the modules of one of the two drivers. Returns
/// whether that is `vsock-driver`: if the kernel command line has `word`.
///
/// # Errors
/// If a file system cannot be mounted, or a module not loaded.
pub fn begin(word: &str) -> Outcome<bool> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let own_driver = cmdline.split_whitespace().any(|it| it == word);
    let groups: &[&str] = if own_driver {
        &["first", "ring"]
    } else {
        &["first", "fallback"]
    };
    load_modules(groups)?;
    Ok(own_driver)
}

/// Powers off. Returns only if that fails; the kernel then panics when PID 1 returns.
pub fn end() -> Errno {
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    errno
}

/// Loads the modules of these groups of the initramfs.
///
/// # Errors
/// If one cannot be loaded.
pub fn load_modules(groups: &[&str]) -> Outcome<()> {
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

/// An `AF_VSOCK` socket with a large buffer.
///
/// # Errors
/// If the kernel has no vsock driver.
pub fn vsock_socket() -> Result<OwnedFd, Errno> {
    let kind = SockType::Stream;
    let fd = socket(AddressFamily::Vsock, kind, SockFlag::SOCK_CLOEXEC, None)?;
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        set_vsock_option(&fd, option, &SOCKET_BUFFER)?;
    }
    Ok(fd)
}

/// Limits how long reading and writing may wait.
///
/// # Errors
/// If the kernel refuses the option.
pub fn set_timeouts(fd: &OwnedFd, timeout: Duration) -> Result<(), Errno> {
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let limit = TimeVal::seconds(seconds);
    setsockopt(fd, ReceiveTimeout, &limit)?;
    setsockopt(fd, SendTimeout, &limit)
}

/// Sets an option of `AF_VSOCK` whose value has the type `T`.
///
/// # Errors
/// If the kernel refuses the option.
#[expect(unsafe_code, reason = "nix has no options of AF_VSOCK")]
pub fn set_vsock_option<T: Copy>(fd: &OwnedFd, option: i32, value: &T) -> Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of_val(value)).map_err(|_| Errno::EINVAL)?;
    let value: *const T = value;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `value` points to an initialised value of `size` bytes that the kernel reads during
    // the call.
    let done = unsafe { libc::setsockopt(fd, libc::AF_VSOCK, option, value.cast(), size) };
    Errno::result(done).map(drop)
}
