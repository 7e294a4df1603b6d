//! The process `net`, in which the packets of steps end.
//!
//! It is the agent's own program, started by PID 1 at boot in namespaces of its own. It gives up
//! everything before it looks at the first packet: it has no files, no network, no capabilities and
//! few system calls. All that it ever gets are, for each step, the descriptor of a TUN device and that
//! of a stream to PID 1.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use wire::limits::MAX_STEPS;

use super::serve::serve;
use super::tun::Tun;
use super::{calls, receive_step};
use crate::{sandbox, sys};

/// The name under which the agent starts itself as this program.
pub(crate) const NAME: &str = "net";

/// The descriptor on which steps arrive.
const CONTROL_FD: i32 = 3;

/// A user and group that own nothing.
const NOBODY: u32 = 65_533;

/// Where the empty root is assembled.
const STAGING: &str = "/mnt";

/// The main function.
pub(crate) fn main() -> ! {
    let [control] = sys::inherited(CONTROL_FD);
    let status = match run(&control) {
        Ok(()) => 0,
        Err(err) => {
            // PID 1 reads this; if not, it sees the exit status.
            writeln!(std::io::stderr(), "{err:#}").ok();
            1
        }
    };
    std::process::exit(status)
}

/// Serves steps until PID 1 is gone.
fn run(control: &OwnedFd) -> Result<()> {
    confine().context("cannot give up privileges")?;
    while let Some([tun, stream]) = receive_step(control.as_fd())? {
        let (tun, stream) = (Tun::new(tun)?, UnixStream::from(stream));
        let seed = RandomState::new().hash_one(0);
        thread::Builder::new().name("step".into()).spawn(move || {
            if let Err(err) = serve(tun, stream, seed) {
                // PID 1 sees the end of the stream, and fails the step.
                writeln!(std::io::stderr(), "{err:#}").ok();
            }
        })?;
    }
    Ok(())
}

/// Gives up everything that steps' packets need not.
fn confine() -> Result<()> {
    leave_root().context("cannot enter an empty root directory")?;
    let files = 2 * MAX_STEPS as u64 + 16;
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, files),
        (Resource::RLIMIT_NPROC, MAX_STEPS as u64 + 1),
    ] {
        setrlimit(resource, most, most).context("cannot set a resource limit")?;
    }
    sandbox::drop_bounding(&[])?;
    setgroups(&[]).context("cannot set the groups")?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(gid, gid, gid).context("cannot set the group")?;
    setresuid(uid, uid, uid).context("cannot set the user")?;
    sys::set_capabilities(0).context("cannot give up capabilities")?;
    prctl::set_no_new_privs().context("cannot give up new privileges")?;
    sys::load_filter(&calls::filter()?).context("cannot load the seccomp filter")
}

/// Makes an empty directory that nobody can write to the root of this process.
fn leave_root() -> Result<(), Errno> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(
        Some("tmpfs"),
        STAGING,
        Some("tmpfs"),
        flags,
        Some("size=4k,mode=555"),
    )?;
    chdir(STAGING)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
