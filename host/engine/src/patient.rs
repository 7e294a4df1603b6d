//! Files that may keep us waiting: pipes whose other end nobody has, or nobody reads.
//!
//! The law: no wait here is longer than a tick without a look at whether to stop. What is read or
//! written is never more than the file takes at once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a wait lasts before the next look, in milliseconds.
const TICK: u8 = 50;

/// What a pipe that can be written to takes without making the writer wait: `PIPE_BUF`.
const PIECE: usize = 4096;

/// A file and whether to stop waiting for it.
pub(crate) struct Patient<'a> {
    file: File,
    regular: bool,
    stop: &'a dyn Fn() -> bool,
}

impl<'a> Patient<'a> {
    /// Takes an open file.
    pub(crate) fn new(file: File, stop: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        Ok(Self {
            file,
            regular,
            stop,
        })
    }

    /// Opens a file for reading; a pipe need not have a writer yet.
    pub(crate) fn open(path: &Path, stop: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let mut options = File::options();
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        Self::new(
            options.read(true).custom_flags(flags.bits()).open(path)?,
            stop,
        )
    }

    /// Opens a device or pipe for writing; waits until a pipe has a reader.
    pub(crate) fn create(path: &Path, stop: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let mut options = File::options();
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        loop {
            match options.write(true).custom_flags(flags.bits()).open(path) {
                Err(err) if err.raw_os_error() == Some(Errno::ENXIO as i32) && !stop() => {
                    std::thread::sleep(std::time::Duration::from_millis(TICK.into()));
                }
                opened => return Self::new(opened?, stop),
            }
        }
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        if self.regular {
            return Ok(());
        }
        loop {
            if (self.stop)() {
                return Err(io::Error::other("cancelled"));
            }
            let mut fds = [PollFd::new(self.file.as_fd(), what)];
            match poll(&mut fds, PollTimeout::from(TICK)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Does it again when the file was not ready after all.
fn ready<T>(
    mut attempt: impl FnMut() -> io::Result<T>,
    mut wait: impl FnMut() -> io::Result<()>,
) -> io::Result<T> {
    loop {
        wait()?;
        match attempt() {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        ready(|| (&self.file).read(buf), || self.wait(PollFlags::POLLIN))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let most = if self.regular { buf.len() } else { PIECE };
        let piece = buf.get(..most).unwrap_or(buf);
        ready(
            || (&self.file).write(piece),
            || self.wait(PollFlags::POLLOUT),
        )
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// Runs `work` on a pipe and tells it to stop after a while.
    #[track_caller]
    fn stopped(work: impl FnOnce(&Path, &dyn Fn() -> bool) -> io::Result<()> + Send) {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let flag = AtomicBool::new(false);
        let done = thread::scope(|scope| {
            let worker = scope.spawn(|| work(&pipe, &|| flag.load(Ordering::SeqCst)));
            thread::sleep(Duration::from_millis(200));
            assert!(!worker.is_finished(), "there was nothing to wait for");
            flag.store(true, Ordering::SeqCst);
            worker.join().unwrap()
        });
        done.unwrap_err();
    }

    #[test]
    fn a_pipe_without_another_end_can_be_given_up() {
        stopped(|pipe, stop| {
            Patient::open(pipe, stop)?
                .read_to_end(&mut Vec::new())
                .map(drop)
        });
        stopped(|pipe, stop| Patient::create(pipe, stop).map(drop));
    }

    #[test]
    fn a_pipe_that_nobody_reads_can_be_given_up() {
        stopped(|pipe, stop| {
            let _reader = Patient::open(pipe, stop)?;
            Patient::create(pipe, stop)?.write_all(&vec![0; 1 << 20])
        });
    }

    #[test]
    fn what_goes_through_a_pipe_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let data: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut read, go_on) = (Vec::new(), || false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| Patient::create(&pipe, &go_on)?.write_all(&data));
            Patient::open(&pipe, &go_on)
                .unwrap()
                .read_to_end(&mut read)
                .unwrap();
            writer.join().unwrap().unwrap();
        });
        assert_eq!(read, data);
    }
}
