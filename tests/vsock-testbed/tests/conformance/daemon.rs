//! The host's side of `vhost-device-vsock`: a daemon between monitor and host, which the host reaches
//! through Unix sockets, as with Firecracker.
//!
//! A connection of the guest to port P arrives at the socket `UDS_P`. To connect to port P of the guest,
//! the host connects to the socket `UDS` and writes `CONNECT P`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vsock_guest::conformance::{ByteStream, Connection, Listener, Side, TIMEOUT};

use crate::suite::Faults;

/// The variable with the path of the daemon, set by `cargo xtask test`.
const PROGRAM: &str = "COFFERDAM_STOCK_DEVICE";

/// The daemon refuses receive buffers that are larger than its own, and our driver has slots of 1 MiB.
const BUFFER: &str = "1048576";

/// Known faults of version 0.3.0.
pub(crate) const FAULTS: Faults = Faults {
    // `enq_rst` in its src/thread_backend.rs is a TODO.
    drops_refusals: true,
    // https://github.com/rust-vmm/vhost-device/issues/874
    no_half_close: true,
    // `send_pkt` in its src/vsock_conn.rs answers a shutdown only if its own buffer is empty, and
    // never tries again.
    forgets_to_close: true,
    // `process_rx_queue` in its src/vhu_vsock_thread.rs stops at the first connection that has
    // nothing to send after all, with others still in its queue, and continues at the next event.
    needs_nudges: true,
};

/// A running daemon.
pub(crate) struct Daemon {
    process: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let program = std::env::var_os(PROGRAM);
        let program = program.expect("COFFERDAM_STOCK_DEVICE is set; run `cargo xtask test`");
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["--guest-cid", "3", "--tx-buffer-size", BUFFER]);
        command.arg("--socket").arg(dir.path().join("device"));
        command.arg("--uds-path").arg(dir.path().join("host"));
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let daemon = Self { process, dir };
        daemon.wait_until_it_listens();
        daemon
    }

    /// Where a monitor connects.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    /// The sockets of the host.
    pub(crate) fn host(&self) -> UnixHost {
        UnixHost {
            uds: self.dir.path().join("host"),
        }
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// It does not say when it is ready, and it would take a trial connection for the monitor.
    fn wait_until_it_listens(&self) {
        let deadline = Instant::now() + TIMEOUT;
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

/// Whether a process listens at a socket, from the kernel's table (proc(5), net/unix: flag
/// `__SO_ACCEPTCON`).
fn is_listening(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let wanted = path.to_str().unwrap();
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.next_back() == Some(wanted)
    })
}

/// The sockets of a daemon, as the side of the host.
pub(crate) struct UnixHost {
    uds: PathBuf,
}

impl Side for UnixHost {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        let stream = UnixStream::connect(&self.uds)?;
        stream.set_read_timeout(Some(timeout))?;
        Write::write_all(&mut &stream, format!("CONNECT {port}\n").as_bytes())?;
        // The reply is `OK` and a number, or the end of the stream.
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            if Read::read(&mut &stream, &mut byte)? == 0 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        with_timeouts(stream)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Listener>> {
        let path = format!("{}_{port}", self.uds.display()).into();
        let listener = UnixListener::bind(&path)?;
        Ok(Box::new(BoundListener { listener, path }))
    }
}

struct BoundListener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener for BoundListener {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        let mut caller = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(TIMEOUT).unwrap();
        if poll(&mut caller, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        with_timeouts(self.listener.accept()?.0)
    }
}

impl Drop for BoundListener {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn with_timeouts(stream: UnixStream) -> io::Result<Box<dyn Connection>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(Box::new(DaemonStream(stream)))
}

struct DaemonStream(UnixStream);

impl ByteStream for DaemonStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &self.0, buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        Write::write_all(&mut &self.0, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn reset(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Both)
    }
}
