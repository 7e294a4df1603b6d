//! PID 1 of the VM of `cargo xtask bench transport`: connects to the host in the way that the kernel
//! command line names, and does what the host orders.
//!
//! `bench=ring` is this crate's driver, `bench=kernel` an `AF_VSOCK` socket with a large buffer. The
//! initramfs is like the agent's: modules and their order are in `/modules`.
#![expect(clippy::print_stderr, reason = "that is the console")]

mod obey;
mod vm;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use nix::sys::socket::{VsockAddr, connect};
use vsock_driver::{Config, Endpoint, pci};

use crate::obey::{Link, PATIENCE, STREAMS, obey_all};
use crate::vm::Outcome;

/// Where the host listens.
const HOST: u32 = 2;
const PORT: u32 = 1024;

/// How much is read from the socket at a time, as by the agent.
const READ: usize = 256 * 1024;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the first program of a VM: cargo xtask bench transport");
        return;
    }
    if let Err(error) = serve() {
        eprintln!("bench guest: {error}");
    }
    let errno = vm::end();
    eprintln!("bench guest: cannot power off: {errno}");
}

fn serve() -> Outcome<()> {
    if vm::begin("bench=ring")? {
        let config = Config::default();
        let endpoint = Endpoint::start(pci::bind(&config)?, config)?;
        let connect = |_| {
            let stream = endpoint.connect(PORT, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE));
            stream.set_write_timeout(Some(PATIENCE));
            io::Result::Ok(stream)
        };
        let streams = (0..STREAMS).map(connect).collect::<Result<Vec<_>, _>>()?;
        obey_all(streams)?;
    } else {
        let sockets = (0..STREAMS).map(|_| Socket::connect());
        obey_all(sockets.collect::<Result<Vec<_>, _>>()?)?;
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
        let fd = vm::vsock_socket()?;
        connect(fd.as_raw_fd(), &VsockAddr::new(HOST, PORT))?;
        vm::bound_waits(&fd, PATIENCE)?;
        Ok(Self {
            file: fd.into(),
            buffer: vec![0; READ],
        })
    }
}

impl Link for Socket {
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
