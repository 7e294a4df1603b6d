//! System calls that have no safe wrapper elsewhere, and nothing else.
//!
//! **Law:** all unsafe code of the agent is here. Each function takes and returns owned or borrowed
//! descriptors and plain values, so that no caller can break a promise of a SAFETY comment.
#![expect(
    unsafe_code,
    reason = "raw system calls; the only such module of the agent"
)]

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;

/// First descriptor number that is free in a program started by [`spawn`]: those below are passed to
/// it.
pub(crate) const SPAWN_FDS: RawFd = 16;

/// `CLONE_INTO_CGROUP`, which does not fit into the type that `libc` gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`spawn`] starts.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// The program; an open descriptor of it.
    pub(crate) program: BorrowedFd<'a>,
    /// Its arguments.
    pub(crate) args: &'a [&'a CStr],
    /// Descriptors that it gets as 0, 1, 2, …; each must be numbered [`SPAWN_FDS`] or above.
    pub(crate) files: &'a [BorrowedFd<'a>],
    /// Cgroup in which it starts.
    pub(crate) cgroup: BorrowedFd<'a>,
    /// New namespaces, as `CLONE_NEW*`.
    pub(crate) namespaces: libc::c_int,
}

/// Starts a program in a cgroup and new namespaces. Its environment is empty.
pub(crate) fn spawn(spawn: &Spawn<'_>) -> Result<(Pid, OwnedFd), Errno> {
    let mut files = spawn.files.iter().chain([&spawn.program]);
    if files.any(|file| file.as_raw_fd() < SPAWN_FDS) {
        return Err(Errno::EBADF);
    }
    // Everything that the child reads is prepared before the fork, since the child may not allocate.
    let mut args: Vec<*const libc::c_char> = spawn.args.iter().map(|arg| arg.as_ptr()).collect();
    args.push(std::ptr::null());
    let mut pidfd: RawFd = -1;
    let clone = libc::clone_args {
        flags: u64::from((libc::CLONE_PIDFD | spawn.namespaces).cast_unsigned())
            | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(spawn.cgroup.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: `clone` is initialised and its size is passed; without CLONE_VM and with a null stack
    // this is a fork, so the child goes on with a copy of this thread's memory. `pidfd` outlives
    // the call. The child calls `exec_child`, which only makes async-signal-safe system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of_val(&clone)) };
    match Errno::result(pid)? {
        0 => exec_child(spawn, &args),
        pid => {
            // SAFETY: the kernel stored a new descriptor there because of CLONE_PIDFD, and nobody
            // else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
            Ok((Pid::from_raw(pid), pidfd))
        }
    }
}

/// The child's side of [`spawn`]: no allocation, no lock, no panic.
fn exec_child(spawn: &Spawn<'_>, args: &[*const libc::c_char]) -> ! {
    for (number, file) in (0..).zip(spawn.files) {
        // SAFETY: plain numbers. The targets are below all sources, so none is overwritten early.
        if unsafe { libc::dup2(file.as_raw_fd(), number) } < 0 {
            // SAFETY: ends this process at once, without running anything of the parent's.
            unsafe { libc::_exit(126) };
        }
    }
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: `args` ends in a null pointer and its strings are borrowed through `spawn`; the
    // environment is one null pointer; the empty path is a literal that ends in NUL.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            spawn.program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    // SAFETY: as above.
    unsafe { libc::_exit(127) }
}

/// Takes ownership of descriptors that [`spawn`] passed to this program, from number `first` on.
///
/// Call it once for each number, before anything else in the program opens or closes a descriptor.
pub(crate) fn inherited<const N: usize>(first: RawFd) -> [OwnedFd; N] {
    let mut number = first;
    [(); N].map(|()| {
        // SAFETY: `spawn` put open descriptors at these numbers and nothing in this program has
        // claimed them, since it calls this first and only once.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        number += 1;
        file
    })
}

/// A duplicate of a descriptor, numbered [`SPAWN_FDS`] or above.
pub(crate) fn duplicate_above(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let number = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(SPAWN_FDS))?;
    // SAFETY: the kernel has just returned this new descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes all descriptors from `first` on, of which this program must own none.
pub(crate) fn close_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, 0)
}

/// Sets close-on-exec for all descriptors from `first` on.
pub(crate) fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: RawFd, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: plain numbers. Callers close only what nobody owns.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    Errno::result(done).map(drop)
}

/// A detached copy of a mount or file, to be attached with [`move_mount`].
pub(crate) fn open_tree(path: &CStr) -> Result<OwnedFd, Errno> {
    open_tree_at(libc::AT_FDCWD, path, 0)
}

/// The same of an open file or directory.
pub(crate) fn copy_mount(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_tree_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn open_tree_at(at: RawFd, path: &CStr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | flags).cast_unsigned();
    // SAFETY: the path ends in NUL and is only read.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just returned this new descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets attributes of a detached mount, as `MOUNT_ATTR_*`.
pub(crate) fn restrict_mount(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: `attributes` is initialised, lives until the call returns, and its size is passed.
    // The path is a literal that ends in NUL.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(done).map(drop)
}

/// Attaches a detached mount at `path`. A symbolic link there is covered, not followed.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both paths end in NUL and are only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

mod request {
    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
}

/// Grows the ext4 file system of `dir` to this many blocks.
pub(crate) fn ext4_resize(dir: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads one u64 from the pointer.
    unsafe { request::ext4_resize(dir.as_raw_fd(), &raw const blocks) }.map(drop)
}

/// Clears the flags of an inode that forbid changing or deleting it.
pub(crate) fn clear_immutable(file: BorrowedFd<'_>) -> Result<(), Errno> {
    const PROTECTED: libc::c_long = 0x10 | 0x20; // FS_IMMUTABLE_FL, FS_APPEND_FL
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int, which fits into the long that it is declared to be.
    unsafe { request::get_flags(file.as_raw_fd(), &raw mut flags) }?;
    flags &= !PROTECTED;
    // SAFETY: the kernel reads an int from the pointer.
    unsafe { request::set_flags(file.as_raw_fd(), &raw const flags) }.map(drop)
}

/// Whether the kernel knows vsock. If in doubt, it does.
pub(crate) fn has_vsock() -> bool {
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Errno::last() != Errno::EAFNOSUPPORT;
    }
    // SAFETY: the kernel has just returned this new descriptor to us alone.
    drop(unsafe { OwnedFd::from_raw_fd(socket) });
    true
}

/// Makes a TUN device of this name, which `file` of /dev/net/tun reads and writes from now on. Packets
/// have a header of virtio, and need no checksums.
pub(crate) fn make_tun(file: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    const TUN_F_CSUM: libc::c_ulong = 1;
    #[repr(C)]
    struct Interface {
        name: [u8; 16],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut interface = Interface {
        name: [0; 16],
        flags: flags.try_into().map_err(|_| Errno::EINVAL)?,
        rest: [0; 22],
    };
    // The last byte stays zero.
    let (field, _) = interface.name.split_at_mut(15);
    if name.len() > field.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    field
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, byte)| *to = byte);
    // SAFETY: the kernel reads and writes a `struct ifreq`, whose size and layout `interface` has.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut interface) };
    Errno::result(done)?;
    // SAFETY: a plain number.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, TUN_F_CSUM) };
    Errno::result(done).map(drop)
}

/// Sends descriptors in a message of one byte.
pub(crate) fn send_files<const N: usize>(
    socket: BorrowedFd<'_>,
    files: [BorrowedFd<'_>; N],
) -> Result<(), Errno> {
    let numbers = files.map(|file| file.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&numbers)];
    let (byte, flags) = ([IoSlice::new(b"f")], MsgFlags::MSG_NOSIGNAL);
    sendmsg::<()>(socket.as_raw_fd(), &byte, &rights, flags, None).map(drop)
}

/// Receives descriptors that [`send_files`] sent. `None`: the socket was closed.
pub(crate) fn receive_files<const N: usize>(
    socket: BorrowedFd<'_>,
) -> Result<Option<[OwnedFd; N]>, Errno> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; N]);
    let mut received = Vec::new();
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            done => break done?,
        }
    };
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for us alone.
            let owned = |number| unsafe { OwnedFd::from_raw_fd(number) };
            received.extend(numbers.into_iter().map(owned));
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    received.try_into().map(Some).map_err(|_| Errno::EBADMSG)
}

/// Socket options of vsock, at the level of its address family.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// Sets the size of a vsock socket's receive buffer.
pub(crate) fn set_vsock_buffer(socket: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    // The maximum comes first, since the size is cut to it.
    set_vsock_option(socket, SO_VM_SOCKETS_BUFFER_MAX_SIZE, &size)?;
    set_vsock_option(socket, SO_VM_SOCKETS_BUFFER_SIZE, &size)
}

/// Sets how long `connect` of a vsock socket may take.
pub(crate) fn set_vsock_connect_timeout(
    socket: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<(), Errno> {
    let seconds = libc::time_t::try_from(timeout.as_secs()).map_err(|_| Errno::EINVAL)?;
    let timeout = libc::timeval {
        tv_sec: seconds,
        tv_usec: 0,
    };
    set_vsock_option(socket, SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout)
}

fn set_vsock_option<T: Copy>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &T,
) -> Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::EINVAL)?;
    let value: *const T = value;
    // SAFETY: `value` points to an initialised integer or timeval of `size` bytes that the kernel
    // reads during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            option,
            value.cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

/// Removes a capability from the bounding set. `EINVAL` means that the kernel has no capability with
/// this number.
pub(crate) fn drop_bounding(capability: u32) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let done = unsafe {
        libc::prctl(
            libc::PR_CAPBSET_DROP,
            libc::c_ulong::from(capability),
            0,
            0,
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// Sets permitted and effective capabilities to this mask and empties the inheritable ones.
pub(crate) fn set_capabilities(mask: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |shift: u32| {
        let bits = u32::try_from((mask >> shift) & u64::from(u32::MAX)).unwrap_or(0);
        Data {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the call reads one header and two data blocks of this layout.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Loads a filter for this thread without `no_new_privs`, which needs `CAP_SYS_ADMIN`.
pub(crate) fn load_filter(filter: &[sock_filter]) -> Result<(), Errno> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const sock_filter,
    }
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program {
        len,
        filter: filter.as_ptr(),
    };
    // SAFETY: `program` has the layout of the kernel's `sock_fprog`, and its pointer and length
    // are those of a slice that is borrowed for the call. The kernel checks the instructions.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    Errno::result(done).map(drop)
}

/// Replaces the parent's session keyring by a new one.
pub(crate) fn join_new_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for a new anonymous keyring.
    let done = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    Errno::result(done).map(drop)
}

/// Restores the default action of a signal.
pub(crate) fn default_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler of ours.
    if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
