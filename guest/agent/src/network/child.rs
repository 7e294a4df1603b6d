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

/// A user and group that own nothing, and that no image has.
const NOBODY: u32 = 0x7000_cfda;

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
    give_up()
}

/// Gives up resources, identity, capabilities and system calls.
fn give_up() -> Result<()> {
    let files = 2 * MAX_STEPS as u64 + 16;
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, files),
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
    sys::load_filter(&calls::filter()).context("cannot load the seccomp filter")
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::signal::kill;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::unistd::Pid;

    use super::*;

    /// Gives up everything, as the process does, and then tries what it should not be able to do.
    #[test]
    #[ignore = "a process of another test"]
    fn helper_gives_up_everything() {
        if std::env::var_os("HELPER_GIVES_UP").is_none() {
            return;
        }
        let tries = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let null = File::open("/dev/null").unwrap();
            leave_root().unwrap();
            assert_eq!(fs::read_dir("/").unwrap().count(), 0);
            assert_eq!(
                File::create("/x").unwrap_err().kind(),
                ErrorKind::ReadOnlyFilesystem
            );
            give_up().unwrap();
            let denied = ErrorKind::PermissionDenied;
            assert_eq!(File::open("/").unwrap_err().kind(), denied);
            assert!(Command::new("/x").spawn().is_err());
            assert_eq!(setresuid(0.into(), 0.into(), 0.into()), Err(Errno::EPERM));
            assert_eq!(kill(Pid::from_raw(1), None), Err(Errno::EPERM));
            for family in [
                AddressFamily::Inet,
                AddressFamily::Vsock,
                AddressFamily::Unix,
            ] {
                let made = socket(family, SockType::Stream, SockFlag::empty(), None);
                assert_eq!(made.unwrap_err(), Errno::EPERM);
            }
            // What it does need is left.
            let sum = thread::spawn(|| vec![1_u64; 4 << 20].iter().sum::<u64>());
            assert_eq!(sum.join().unwrap(), 4 << 20);
            drop(null);
        });
        tries.join().unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn as_root_the_process_net_gives_up_everything() {
        let name = "network::child::tests::helper_gives_up_everything";
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", name, "--test-threads=1"])
            .env("HELPER_GIVES_UP", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }
}
