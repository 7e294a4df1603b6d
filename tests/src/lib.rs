//! Support for end-to-end tests: a store for each test, a build context, the `cofferdam` binary, the
//! guest image, and the oracle (`store check`) at the end of each test.
//!
//! `cargo xtask test` and `cargo xtask vm-test` set the environment variables that name the binary
//! and the guest image (`COFFERDAM_BIN`, `COFFERDAM_VM_IMAGE`).
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

pub mod attempts;
pub mod elsewhere;
pub mod guest_image;
pub mod programs;
pub mod qemu;

use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest time that a single command of a test may take. Emulated VMs are slow, hangs take longer.
pub const BOUND: Duration = Duration::from_secs(240);

/// A Dockerfile prefix: an image with busybox as its shell and tools.
pub const BUSYBOX: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// A store, a build context, and commands on them.
#[derive(Debug)]
pub struct Bench {
    dir: TempDir,
    transport: Option<&'static str>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Done {
    /// Exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// Panics with all output unless the status is `want`.
    #[track_caller]
    #[must_use]
    pub fn expect_status(self, want: i32) -> Self {
        assert_eq!(
            self.status,
            Some(want),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless standard error holds each of `texts`.
    #[track_caller]
    pub fn says(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "no `{text}` in:\n{}",
                self.stderr
            );
        }
        self
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// An empty store, and a context that holds a static busybox.
    #[must_use]
    pub fn new() -> Self {
        let dir = TempDir::new().expect("temporary directory");
        let bench = Self {
            dir,
            transport: None,
        };
        fs::create_dir(bench.context()).expect("context");
        fs::create_dir(bench.out()).expect("outputs");
        fs::copy("/bin/busybox", bench.context().join("busybox"))
            .expect("/bin/busybox: install the package busybox-static");
        bench
    }

    /// [`Self::new`] for builds whose VMs use this driver of the vsock device.
    #[must_use]
    pub fn on(transport: &'static str) -> Self {
        Self {
            transport: Some(transport),
            ..Self::new()
        }
    }

    /// The build context.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// A directory for outputs.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Writes a file of the context.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.context().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("directories of the context");
        }
        fs::write(path, text).expect("file of the context");
    }

    /// Sets the mode of a file of the context.
    pub fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.context().join(name), fs::Permissions::from_mode(mode))
            .expect("mode of a file of the context");
    }

    /// A `cofferdam` command on this store.
    #[must_use]
    pub fn cofferdam<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(needed("COFFERDAM_BIN"));
        command
            .args(args)
            .env("COFFERDAM_STORE", self.store())
            .env("COFFERDAM_VM_IMAGE", needed("COFFERDAM_VM_IMAGE"))
            // A store remembers whether KVM works, and each test has a store of its own; so xtask
            // finds out once.
            .env(
                "COFFERDAM_ACCEL",
                std::env::var_os("COFFERDAM_ACCEL").unwrap_or_else(|| "auto".into()),
            )
            .env("NO_COLOR", "1")
            .envs(self.transport.map(|driver| ("COFFERDAM_TRANSPORT", driver)))
            .current_dir(self.context())
            .stdin(Stdio::null());
        command
    }

    /// Builds the context with this Dockerfile and further arguments.
    pub fn build(&self, dockerfile: &str, args: &[&str]) -> Done {
        self.write("Dockerfile", dockerfile);
        run(self.build_command(args))
    }

    /// The command of [`Self::build`], for a Dockerfile that exists already.
    #[must_use]
    pub fn build_command(&self, args: &[&str]) -> Command {
        self.cofferdam(
            ["build", "--progress", "plain"]
                .iter()
                .chain(args)
                .chain(&["."]),
        )
    }

    /// The oracle: nothing is left over and nothing is missing.
    #[track_caller]
    pub fn check_clean(&self) {
        let done = run(self.cofferdam(["store", "check"]));
        assert_eq!(done.status, Some(0), "{}\n{}", done.stdout, done.stderr);
        assert_eq!(self.monitors(), Vec::<u32>::new(), "a VM is left over");
    }

    /// Process ids of the VM monitors of this store: they work in a directory of it, and are told no
    /// file's name.
    #[must_use]
    pub fn monitors(&self) -> Vec<u32> {
        let store = fs::canonicalize(self.store()).unwrap_or_else(|_| self.store());
        let processes = fs::read_dir("/proc").expect("/proc");
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let dir = fs::read_link(format!("/proc/{pid}/cwd"));
                String::from_utf8_lossy(&line).contains("qemu-system")
                    && dir.is_ok_and(|dir| dir.starts_with(&store))
            })
            .collect()
    }

    /// Waits until `condition` holds, at most [`BOUND`].
    #[track_caller]
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < BOUND, "timed out: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The value of a variable that xtask sets.
#[track_caller]
fn needed(name: &str) -> PathBuf {
    std::env::var_os(name)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask vm-test`"))
}

/// Runs a command to its end, at most [`BOUND`].
#[track_caller]
pub fn run(mut command: impl BorrowMut<Command>) -> Done {
    let command = command.borrow_mut();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().expect("command starts"), command)
}

/// Waits for a started command whose output is piped, at most [`BOUND`].
#[track_caller]
pub fn finish(child: Child, command: &Command) -> Done {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    let (tell, told) = std::sync::mpsc::sync_channel::<()>(1);
    let watch = std::thread::spawn(move || {
        let late = told.recv_timeout(BOUND).is_err();
        if late {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        late
    });
    let output: Output = child.wait_with_output().expect("output of the command");
    tell.send(()).ok();
    let done = Done {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(
        !watch.join().expect("watch"),
        "{command:?} took too long:\n{done:?}"
    );
    done
}

/// Unpacks the image of an OCI layout with umoci, which shares no code with us, and lists it: path →
/// type, mode, owner, size, mtime, link target.
#[track_caller]
#[must_use]
pub fn unpack(layout: &Path, tag: &str, into: &Path) -> BTreeMap<String, String> {
    let mut umoci = Command::new("umoci");
    umoci
        .args(["unpack", "--image"])
        .arg(format!("{}:{tag}", layout.display()))
        .arg(into);
    let _unpacked = run(umoci).expect_status(0);
    list(&into.join("rootfs"))
}

/// Lists a tree in the form of [`unpack`].
#[track_caller]
#[must_use]
pub fn list(root: &Path) -> BTreeMap<String, String> {
    let mut find = Command::new("find");
    find.arg(root)
        .args(["-mindepth", "1", "-printf", r"%P\t%y %m %U:%G %s %T@ %l\n"]);
    let listing = run(find).expect_status(0).stdout;
    let entries = listing.lines().filter_map(|line| line.split_once('\t'));
    entries
        .map(|(path, facts)| {
            let mut facts: Vec<&str> = facts.split(' ').collect();
            if facts.first() == Some(&"d") {
                facts.remove(3); // the size of a directory depends on the file system
            }
            (path.to_owned(), facts.join(" ").trim_end().to_owned())
        })
        .collect()
}
