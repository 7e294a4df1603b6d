//! Files that may keep their user waiting: pipes whose other end nobody has opened, or nobody reads.
//!
//! The law: no wait is longer than a [`TICK`](crate::TICK) without a look at whether to stop. A read
//! or write moves no more than the file takes at once.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::wait::poll;

/// What a writable pipe takes without making the writer wait: `PIPE_BUF`.
const PIECE: usize = 4096;

/// A file whose reads and writes fail as soon as `stop` says so. Regular files never wait.
pub struct InterruptibleFile<'a> {
    file: File,
    regular: bool,
    stop: &'a dyn Fn() -> bool,
}

impl<'a> InterruptibleFile<'a> {
    /// Takes an open file. To be interruptible, it was opened with `O_NONBLOCK`; a pipe that is read need
    /// not have a writer yet.
    ///
    /// # Errors
    /// If its type cannot be read.
    pub fn new(file: File, stop: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        Ok(Self {
            file,
            regular,
            stop,
        })
    }

    /// Opens a device or pipe for writing; waits until a pipe has a reader.
    ///
    /// # Errors
    /// If it cannot be opened, or `stop` says so first.
    pub fn create(path: &Path, stop: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let mut options = File::options();
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = poll(
            || check(stop),
            |tick| match options.write(true).custom_flags(flags.bits()).open(path) {
                Err(err) if err.raw_os_error() == Some(Errno::ENXIO as i32) => {
                    std::thread::sleep(tick);
                    None
                }
                opened => Some(opened),
            },
        );
        Self::new(opened??, stop)
    }

    /// Waits until the file is ready, or one of its ends is gone.
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        if self.regular {
            return Ok(());
        }
        check(self.stop)?;
        poll(
            || check(self.stop),
            |tick| {
                let mut fds = [PollFd::new(self.file.as_fd(), what)];
                let tick = PollTimeout::try_from(tick).unwrap_or(PollTimeout::ZERO);
                match nix::poll::poll(&mut fds, tick) {
                    Ok(0) | Err(Errno::EINTR) => None,
                    Ok(_) => Some(Ok(())),
                    Err(errno) => Some(Err(errno.into())),
                }
            },
        )?
    }
}

impl fmt::Debug for InterruptibleFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptibleFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn check(stop: &dyn Fn() -> bool) -> io::Result<()> {
    if stop() {
        return Err(io::Error::other("cancelled"));
    }
    Ok(())
}

/// Repeats `attempt` while the file turns out not to be ready after all.
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

impl Read for InterruptibleFile<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        ready(|| (&self.file).read(buf), || self.wait(PollFlags::POLLIN))
    }
}

impl Write for InterruptibleFile<'_> {
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

    /// Opens a pipe for reading.
    fn open<'a>(path: &Path, stop: &'a dyn Fn() -> bool) -> io::Result<InterruptibleFile<'a>> {
        let mut options = File::options();
        let flags = OFlag::O_NONBLOCK.bits();
        let file = options.read(true).custom_flags(flags).open(path)?;
        InterruptibleFile::new(file, stop)
    }

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
        stopped(|pipe, stop| open(pipe, stop)?.read_to_end(&mut Vec::new()).map(drop));
        stopped(|pipe, stop| InterruptibleFile::create(pipe, stop).map(drop));
    }

    #[test]
    fn a_pipe_that_nobody_reads_can_be_given_up() {
        stopped(|pipe, stop| {
            let _reader = open(pipe, stop)?;
            InterruptibleFile::create(pipe, stop)?.write_all(&vec![0; 1 << 20])
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
            let writer = scope.spawn(|| InterruptibleFile::create(&pipe, &go_on)?.write_all(&data));
            open(&pipe, &go_on).unwrap().read_to_end(&mut read).unwrap();
            writer.join().unwrap().unwrap();
        });
        assert_eq!(read, data);
    }
}
