//! The thread of one step in the process `net`: it moves packets and frames until PID 1 ends that.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{self, Duration};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::time::Instant;
use wire::HEADER_LEN;
use wire::flow::MAX_FLOW_DATA;
use wire::frame;

use super::stack::Stack;
use super::tun::{self, Tun};

/// Most packets that are taken before frames are looked at again.
const BATCH: usize = 64;

/// How long the last frames of a step may take on their way to PID 1.
const FAREWELL: Duration = Duration::from_secs(1);

/// Length of the longest frame.
const LONGEST: usize = HEADER_LEN + MAX_FLOW_DATA as usize;

/// Serves a step until PID 1 closes the stream.
pub(super) fn serve(tun: Tun, stream: UnixStream, seed: u64) -> Result<()> {
    stream.set_nonblocking(true)?;
    let mut step = Step {
        tun: Some(tun),
        packet: tun::new_buffer(),
        stream,
        stack: Stack::new(seed),
        inbox: Inbox::default(),
        start: time::Instant::now(),
    };
    while step.round()? {}
    step.farewell()
}

/// The time since the step's start, as the stack counts it.
fn now(start: time::Instant) -> Instant {
    let micros = i64::try_from(start.elapsed().as_micros());
    Instant::from_micros(micros.unwrap_or(i64::MAX))
}

struct Step {
    /// `None` once the namespace of the step is gone.
    tun: Option<Tun>,
    /// The packet that was received last.
    packet: Vec<u8>,
    stream: UnixStream,
    stack: Stack,
    inbox: Inbox,
    start: time::Instant,
}

impl Step {
    /// Waits for something, and does it. Returns whether there may be more.
    fn round(&mut self) -> Result<bool> {
        let (packets, frames) = self.wait()?;
        if packets {
            self.packets();
        }
        let open = !frames || self.frames()?;
        if let Some(tun) = &mut self.tun {
            self.stack.settle(now(self.start), tun);
        }
        let written = self.stack.frames().write(&self.stream);
        written.context("cannot send frames to PID 1")?;
        Ok(open)
    }

    /// Returns whether there are packets, and whether there are frames or their end.
    fn wait(&mut self) -> Result<(bool, bool)> {
        let timeout = self.timeout();
        let frames = self.stack.frames();
        let mut to_stream = PollFlags::POLLIN;
        to_stream.set(PollFlags::POLLOUT, !frames.is_empty());
        let stream = PollFd::new(self.stream.as_fd(), to_stream);
        // Packets wait in the kernel while frames wait here.
        let tun = self.tun.as_ref().filter(|_| !frames.is_full());
        let tun = tun.map(|tun| PollFd::new(tun.as_fd(), PollFlags::POLLIN));
        let mut files: Vec<PollFd<'_>> = std::iter::once(stream).chain(tun).collect();
        match poll(&mut files, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |at: usize, flags| {
            let found = files.get(at).and_then(PollFd::revents);
            found.is_some_and(|found| found.intersects(flags))
        };
        let ended = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok((ready(1, ended), ready(0, ended)))
    }

    fn timeout(&self) -> PollTimeout {
        // Without a device, time makes no difference any more.
        let at = self.tun.as_ref().and_then(|_| self.stack.poll_at());
        let Some(at) = at else {
            return PollTimeout::NONE;
        };
        let now = now(self.start);
        let left = if at > now {
            at - now
        } else {
            smoltcp::time::Duration::ZERO
        };
        // Rounded up: a moment too early would be looked at twice.
        let millis = left.total_micros().div_ceil(1000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    }

    /// Takes packets of the step.
    fn packets(&mut self) {
        let now = now(self.start);
        for _ in 0..BATCH {
            let Some(tun) = &mut self.tun else { return };
            match tun.receive(&mut self.packet) {
                Ok(Some(packet)) => self.stack.packet(now, packet, tun),
                Ok(None) => return,
                Err(err) => {
                    // The namespace is gone, and the step with it. PID 1 will say so.
                    log::debug!("the device of the step is gone: {err}");
                    self.tun = None;
                }
            }
        }
    }

    /// Takes frames of the host. Returns whether there may be more.
    fn frames(&mut self) -> Result<bool> {
        let now = now(self.start);
        let open = self.inbox.read(&self.stream)?;
        let mut rest = self.inbox.bytes();
        let whole = rest.len();
        while let Some((frame, after)) = frame::decode(rest)? {
            rest = after;
            if let Some(tun) = &mut self.tun {
                self.stack.frame(now, &frame, tun)?;
            }
        }
        let used = whole - rest.len();
        self.inbox.consume(used);
        Ok(open)
    }

    /// Sends what the step has left behind.
    fn farewell(mut self) -> Result<()> {
        self.packets();
        let now = now(self.start);
        if let Some(tun) = &mut self.tun {
            self.stack.settle(now, tun);
        }
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(FAREWELL))?;
        // If PID 1 does not take it, nobody wants it.
        if let Err(err) = self.stack.frames().write(&self.stream) {
            log::debug!("the last frames of a step are lost: {err}");
        }
        Ok(())
    }
}

/// Bytes of frames that have arrived.
struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buffer: vec![0; 8 * LONGEST],
            start: 0,
            end: 0,
        }
    }
}

impl Inbox {
    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. Returns whether the stream goes on.
    fn read(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        if self.start > 0 && self.buffer.len() - self.end < LONGEST {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        match stream.read(space) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.end += n;
                Ok(true)
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(err) => Err(err),
        }
    }
}
