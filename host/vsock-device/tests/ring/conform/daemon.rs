//! The side of `vhost-device-vsock`: a daemon between monitor and host, whose host is a set of Unix
//! sockets, in the way of Firecracker's.
//!
//! What the guest connects to port P arrives at the socket `UDS_P`; who wants to reach port P of the
//! guest connects to the socket `UDS` and writes `CONNECT P`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::laws::Faults;
use super::side::{Door, End, PATIENCE, Side, Stream};

/// Where `cargo xtask test` says that the daemon is.
const PROGRAM: &str = "COFFERDAM_STOCK_DEVICE";

/// The daemon refuses receive buffers that are larger than what it has to send from, and ours have
/// slots of 1 MiB.
const BUFFER: &str = "1048576";

/// What version 0.3.0 is known to do wrong.
pub(crate) const FAULTS: Faults = Faults {
    // `enq_rst` in its src/thread_backend.rs is a TODO.
    drops_refusals: true,
    // https://github.com/rust-vmm/vhost-device/issues/874
    no_half_close: true,
    // `send_pkt` in its src/vsock_conn.rs answers a shutdown only if its own buffer is empty, and
    // comes back to it never.
    forgets_to_close: true,
    // `process_rx_queue` in its src/vhu_vsock_thread.rs stops at the first connection that has
    // nothing to say after all, with the others still in its queue, and looks there again at the
    // next event.
    needs_nudges: true,
};

/// A daemon at work.
pub(crate) struct Daemon {
    process: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts one, or says that there is none.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = std::env::var_os(PROGRAM) else {
            eprintln!(
                "skipped: needs {PROGRAM}, the path of vhost-device-vsock; `cargo xtask test` installs it"
            );
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["--guest-cid", "3", "--tx-buffer-size", BUFFER]);
        command.arg("--socket").arg(dir.path().join("device"));
        command.arg("--uds-path").arg(dir.path().join("host"));
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let daemon = Self { process, dir };
        daemon.wait_until_it_listens();
        Some(daemon)
    }

    /// Where a monitor connects.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    /// What it is to the host.
    pub(crate) fn host(&self) -> UnixHost {
        UnixHost {
            uds: self.dir.path().join("host"),
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// It says nothing when it is ready, and a trial connection would be taken for the monitor's.
    fn wait_until_it_listens(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !is_listening(&self.socket()) {
            assert!(Instant::now() < deadline, "the daemon does not listen");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Whether somebody listens at a socket, from the kernel's table of them (proc(5), net/unix: flag
/// `__SO_ACCEPTCON`).
fn is_listening(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let wanted = path.to_str().unwrap();
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.next_back() == Some(wanted)
    })
}

/// The sockets of a daemon.
pub(crate) struct UnixHost {
    uds: PathBuf,
}

impl Side for UnixHost {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn End>> {
        let stream = UnixStream::connect(&self.uds)?;
        stream.set_read_timeout(Some(timeout))?;
        Write::write_all(&mut &stream, format!("CONNECT {port}\n").as_bytes())?;
        // It answers `OK` and a number, or hangs up.
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            if Read::read(&mut &stream, &mut byte)? == 0 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        patient(stream)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Door>> {
        let path = format!("{}_{port}", self.uds.display()).into();
        let listener = UnixListener::bind(&path)?;
        Ok(Box::new(UnixDoor { listener, path }))
    }
}

struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl Door for UnixDoor {
    fn accept(&self) -> io::Result<Box<dyn End>> {
        let mut caller = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        if poll(&mut caller, patience)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        patient(self.listener.accept()?.0)
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn patient(stream: UnixStream) -> io::Result<Box<dyn End>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

impl Stream for UnixStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        Write::write_all(&mut &*self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn reset(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }
}
