//! PID 1 of the VM of `cargo xtask bench transport`: connects to the host and executes its commands.
//!
//! On the kernel command line, `bench=ring` selects `vsock-driver`, and `bench=kernel` an `AF_VSOCK`
//! socket with a large buffer. The initramfs is like the agent's: modules and their order are in
//! `/modules`.
#![expect(clippy::print_stderr, reason = "that is the console")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use nix::sys::socket::{VsockAddr, connect};
use vsock_driver::{Config, Endpoint, pci};
use vsock_guest::bench::{BenchStream, STREAMS, TIMEOUT, serve_all};
use vsock_guest::init::{self, Outcome};

/// Context id and port where the host listens.
const HOST: u32 = 2;
const PORT: u32 = 1024;

/// Bytes per read from the socket, as in the agent.
const READ: usize = 256 * 1024;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a VM; run `cargo xtask bench transport`");
        return;
    }
    if let Err(error) = serve() {
        eprintln!("bench guest: {error}");
    }
    let errno = init::end();
    eprintln!("bench guest: cannot power off: {errno}");
}

fn serve() -> Outcome<()> {
    if init::begin("bench=ring")? {
        let config = Config::default();
        let endpoint = Endpoint::start(pci::bind(&config)?, config)?;
        let connect = |_| {
            let stream = endpoint.connect(PORT, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT));
            stream.set_write_timeout(Some(TIMEOUT));
            io::Result::Ok(stream)
        };
        let streams = (0..STREAMS).map(connect).collect::<Result<Vec<_>, _>>()?;
        serve_all(streams)?;
    } else {
        let sockets = (0..STREAMS).map(|_| Socket::connect());
        serve_all(sockets.collect::<Result<Vec<_>, _>>()?)?;
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
        let fd = init::vsock_socket()?;
        connect(fd.as_raw_fd(), &VsockAddr::new(HOST, PORT))?;
        init::set_timeouts(&fd, TIMEOUT)?;
        Ok(Self {
            file: fd.into(),
            buffer: vec![0; READ],
        })
    }
}

impl BenchStream for Socket {
    fn next(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let n = self.file.read(&mut self.buffer)?;
        look(self.buffer.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn send_file(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize> {
        let most = most.min(self.buffer.len());
        let n = file.read_at(self.buffer.get_mut(..most).unwrap_or_default(), at)?;
        self.file
            .write_all(self.buffer.get(..n).unwrap_or_default())?;
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
