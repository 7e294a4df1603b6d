//! What goes wrong between the host and a real VM with its real agent, on each of the paths that the
//! guest has: its own driver of the vsock device, and the kernel's.
//!
//! Every test ends with [`Build::end`]: nothing is left over, and the store is whole. Every wait has
//! a bound: [`BOUND`], unless the test says less.

mod broken;
mod cut;
mod long;
mod pressure;
mod stopped;

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, Output, StepError, Stream};

use super::tests::{Build, Heard, build_with, step};
use crate::Notice;
use crate::session::proxy::Seam;
use crate::transport::Transport;

/// Longer than anything here takes, even by emulation on a busy machine.
const BOUND: Duration = Duration::from_secs(180);

/// How long a consumer that stalls stands still: three seconds, or `COFFERDAM_STALL` seconds.
fn stall() -> Duration {
    let seconds = std::env::var("COFFERDAM_STALL").map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A build whose guest uses this driver; `None` if this run has no image.
fn build_on(path: Transport, seam: Seam) -> Option<Build> {
    let build = build_with(|options| (options.transport, options.seam) = (path, seam))?;
    Some(build)
}

/// Checks which driver a VM has, and ends its build.
#[track_caller]
fn end_on(path: Transport, build: Build) {
    build.executor.finish();
    let report = build.executor.report();
    if let Some(report) = report {
        let name = if path == Transport::Kernel {
            "kernel"
        } else {
            "ring"
        };
        assert_eq!(report.transport, name);
    }
    build.end();
}

/// Why VMs of this build were lost, in order.
fn losses(build: &Build) -> Vec<String> {
    let notices = build.notices.lock().unwrap();
    let losses = notices.iter().filter_map(|notice| match notice {
        Notice::Lost(why) => Some(why.clone()),
        Notice::Booting { .. } | Notice::NoKvm(_) | Notice::Ready { .. } => None,
    });
    losses.collect()
}

/// Fails if `work` takes longer than `bound`.
#[track_caller]
fn within<T>(bound: Duration, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    done
}

/// Something that is shut until somebody opens it.
#[derive(Debug, Default, Clone)]
struct Gate(Arc<(Mutex<Gates>, Condvar)>);

#[derive(Debug, Default)]
struct Gates {
    waiting: bool,
    open: bool,
}

impl Gate {
    /// Waits until it is open.
    fn pass(&self) {
        let (gates, changed) = &*self.0;
        let mut gates = gates.lock().unwrap();
        gates.waiting = true;
        changed.notify_all();
        let waited = changed.wait_timeout_while(gates, BOUND + stall(), |gates| !gates.open);
        assert!(!waited.unwrap().1.timed_out(), "nobody opens the gate");
    }

    /// Waits until somebody stands before it.
    fn await_somebody(&self) {
        let (gates, changed) = &*self.0;
        let gates = gates.lock().unwrap();
        let waited = changed.wait_timeout_while(gates, BOUND, |gates| !gates.waiting);
        assert!(!waited.unwrap().1.timed_out(), "nobody comes to the gate");
    }

    fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }
}

/// Output, or a layer, that is taken only while the gate is open. What is counted is everything;
/// what is kept is the beginning and the end.
#[derive(Debug, Default)]
struct Gated {
    gate: Gate,
    taken: u64,
    pieces: u64,
    each: Duration,
}

impl Gated {
    fn take(&mut self, data: &[u8]) {
        self.gate.pass();
        // Some of them slowly, so that the other side is the faster one by far.
        if self.pieces < 64 {
            std::thread::sleep(self.each);
        }
        self.pieces += 1;
        self.taken += data.len() as u64;
    }
}

impl Write for Gated {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.take(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Numbered lines, checked as they come: `seq -w` of so many.
#[derive(Debug)]
struct Lines {
    gated: Gated,
    next: u64,
    rest: Vec<u8>,
}

impl Lines {
    fn new(gate: Gate, each: Duration) -> Self {
        Self {
            gated: Gated {
                gate,
                each,
                ..Gated::default()
            },
            next: 1,
            rest: Vec::new(),
        }
    }
}

impl Output for Lines {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        assert_eq!(stream, Stream::Stdout, "{}", String::from_utf8_lossy(data));
        self.gated.take(data);
        self.rest.extend_from_slice(data);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |end| end + 1));
        let lines = std::mem::replace(&mut self.rest, rest);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            assert_eq!(line, format!("{}\n", self.next).as_bytes());
            self.next += 1;
        }
    }
}

/// A tar of one file of `size` bytes: a layer that is made as it is read.
struct OneFile {
    head: io::Cursor<Vec<u8>>,
    left: u64,
}

impl OneFile {
    fn new(name: &str, size: u64) -> (Self, u64) {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        let left = size.next_multiple_of(512) + 1024;
        let file = Self {
            head: io::Cursor::new(header.as_bytes().to_vec()),
            left,
        };
        (file, left + 512)
    }
}

impl Read for OneFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.head.read(buf)?;
        if n > 0 {
            return Ok(n);
        }
        let n = buf
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        buf[..n].fill(0);
        self.left -= n as u64;
        Ok(n)
    }
}

/// Runs a step and returns what it said.
#[track_caller]
fn say(build: &Build, script: &str) -> String {
    let heard = Heard::default();
    let run = build.executor.run(
        &step(&[build.base], script),
        &mut heard.clone(),
        &Cancel::new(),
    );
    run.unwrap_or_else(|err| panic!("{err:?}: {}", heard.text()));
    heard.text()
}

/// The text of an error with its causes.
fn chain(err: &StepError) -> String {
    let mut text = err.to_string();
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    text
}
