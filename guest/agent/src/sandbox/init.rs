//! The first program of a step: it sets up the sandbox around itself, then executes the step's
//! program.
//!
//! It is the agent's own binary, started in new namespaces and in the step's cgroup. It has one
//! thread, and no descriptors but those it was given, so nothing of the agent can leak into the step.
//! It makes its own program impossible to execute before it looks at anything of the image: paths
//! such as `/proc/self/exe`, also behind `#!`, would lead there until the step's program has taken
//! its place. Nothing else of the step can see it then: it is alone in its process namespace.
//!
//! It reports on a pipe: [`wire::Reply::Done`] when the sandbox is ready, a [`wire::Failure`] if
//! something fails. The pipe closes when the step's program starts.

use std::convert::Infallible;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, dup2_stdin, fchown, sethostname, setsid};
use wire::{Reply, Request, RunStep, frame, message};

use super::{exec, implicit, privileges, rootfs};
use crate::disk;
use crate::fault;
use crate::network::{self, StepNetwork};
use crate::sys;

/// The name under which the agent starts itself as this program.
pub(crate) const NAME: &str = "sandbox-init";

/// The argument with which it sets up a network.
pub(super) const NETWORK: &CStr = c"network";

/// Descriptors that it is given besides the standard ones: the step, the pipe for reports and the
/// mount of its own program, and for a network the socket of the process that serves it and the step's
/// stream.
const FIRST_FD: i32 = 3;
const NETWORK_FD: i32 = 6;

/// Where the root file system is assembled, in the mount namespace of the step.
const STAGING: &str = "/mnt";

/// The main function. Its only argument says whether the step has a network.
pub(crate) fn main(network: Option<&OsStr>) -> ! {
    let [spec, errors, program] = sys::inherited(FIRST_FD);
    let network = network.filter(|word| word.as_bytes() == NETWORK.to_bytes());
    let network = network.map(|_| {
        let [control, theirs] = sys::inherited(NETWORK_FD);
        StepNetwork { control, theirs }
    });
    let mut errors = File::from(errors);
    let err = match run(spec, program, network, &mut errors) {
        Err(err) => err,
        Ok(never) => match never {},
    };
    report(&mut errors, &err);
    std::process::exit(127)
}

/// Reports an error to the agent. If that fails too, the agent only learns the exit status.
fn report(errors: &mut File, err: &anyhow::Error) {
    if let Ok(frame) = message::encode(0, &fault::failure(err)) {
        errors.write_all(&frame).ok();
    }
}

fn run(
    spec: OwnedFd,
    program: OwnedFd,
    network: Option<StepNetwork>,
    report: &mut File,
) -> Result<Infallible> {
    let end = NETWORK_FD + if network.is_some() { 2 } else { 0 };
    sys::close_from(end).context("cannot close descriptors")?;
    sys::close_on_exec_from(FIRST_FD).context("cannot close descriptors")?;
    lock_out(program)?;
    let step = read_spec(File::from(spec))?;
    // When memory runs out, the kernel may kill a step, but not the agent.
    fs::write("/proc/self/oom_score_adj", "0")?;
    setsid()?;
    // Entered from inside the cgroup, so that it shows this cgroup as the root.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot enter a new cgroup namespace")?;
    sethostname(&step.hostname).context("cannot set the host name")?;
    network::set_up_step(network)?;
    make_staging(&step)?;
    rootfs::apply(&rootfs::plan(&step), |merged| {
        implicit::apply(&step, merged)
    })?;
    // The one that it was given is the agent's: with its mode a step could spoil that of other steps.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(null)?;
    rootfs::enter_cwd(Path::new(OsStr::from_bytes(&step.cwd)))?;
    for standard in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        // So that other users than root can open /dev/stdout.
        fchown(
            standard,
            Some(Uid::from_raw(step.uid)),
            Some(Gid::from_raw(step.gid)),
        )?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // A Rust program ignores SIGPIPE; other programs expect it to end them.
    sys::default_signal(libc::SIGPIPE)?;
    privileges::set_limits()?;
    privileges::give_up(&step)?;
    report.write_all(&message::encode(0, &Reply::Done)?)?;
    exec::exec(&step.args, &step.env)
}

/// Makes it impossible to execute the program of this process again, or to write to it. `program` is
/// a mount of it alone, through which it was started.
fn lock_out(program: OwnedFd) -> Result<()> {
    let attributes = libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    sys::restrict_mount(program.as_fd(), attributes).context("cannot lock the agent's program")
}

fn read_spec(mut spec: File) -> Result<RunStep> {
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |buf| spec.read(buf)).context("cannot read the step")?;
    let request = message::decode(&frame.context("the step is missing")?)?;
    let Request::Run(step) = request else {
        return Err(fault::violation("this is not a step"));
    };
    Ok(step)
}

/// Collects the parts of the root file system under short names, in a private mount.
fn make_staging(step: &RunStep) -> Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("tmpfs"),
        STAGING,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    std::env::set_current_dir(STAGING)?;
    for (number, layer) in step.layers.iter().enumerate() {
        symlink(disk::layer_dir(layer)?, number.to_string())?;
    }
    symlink(disk::SKELETON, "skeleton")?;
    let dir = disk::step_dir(step.step);
    for name in ["upper", "work"] {
        symlink(dir.join(name), name)?;
    }
    fs::create_dir("merged")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    /// Says to the helper under which number it has the mount of its program, if it shall lock it.
    const MOUNT: &str = "TEST_PROGRAM_MOUNT";

    /// Starts this test program through a mount of it alone. Says which ways to start it again work
    /// from inside.
    fn ways_in(lock: bool) -> Vec<String> {
        let program = File::open("/proc/self/exe").unwrap();
        let mount = sys::copy_mount(program.as_fd()).unwrap();
        fcntl(&mount, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        command.args(["--exact", "--ignored", "--nocapture"]);
        command.arg("sandbox::init::tests::helper_tries_to_start_itself");
        command.envs(lock.then(|| (MOUNT, mount.as_raw_fd().to_string())));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let ways = text
            .lines()
            .filter_map(|line| line.strip_prefix("way in: "));
        ways.map(str::to_owned).collect()
    }

    #[test]
    #[ignore = "needs root"]
    fn as_root_a_process_that_locked_itself_out_starts_its_program_on_no_way() {
        assert_eq!(ways_in(false), ["direct", "thread", "link", "script"]);
        assert_eq!(ways_in(true), Vec::<String>::new());
    }

    #[test]
    #[ignore = "started by another test"]
    fn helper_tries_to_start_itself() {
        if let Ok(number) = std::env::var(MOUNT) {
            let [mount] = sys::inherited(number.parse().unwrap());
            lock_out(mount).unwrap();
        }
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        symlink("/proc/self/exe", path("link")).unwrap();
        fs::write(path("script"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(path("script"), PermissionsExt::from_mode(0o755)).unwrap();
        for (way, program) in [
            ("direct", "/proc/self/exe".to_owned()),
            ("thread", "/proc/thread-self/exe".to_owned()),
            ("link", path("link")),
            ("script", path("script")),
        ] {
            let started = Command::new(program)
                .arg("no such test")
                .stdout(Stdio::null())
                .status();
            match started {
                Ok(_) => writeln!(io::stdout(), "way in: {way}").unwrap(),
                Err(err) => assert_eq!(err.kind(), io::ErrorKind::PermissionDenied, "{way}"),
            }
        }
    }
}
