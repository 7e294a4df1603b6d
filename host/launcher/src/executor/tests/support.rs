//! Support for tests of faults between the host and a real VM with its real agent, with each of the
//! two drivers of the vsock device that the guest has: its own and the kernel's.
//!
//! Every such test ends with [`Build::end`]: nothing is left over, and the store is clean. Every wait
//! has a bound: [`BOUND`], unless the test says less.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, Output, StepError, Stream};

use super::{Build, Heard, build_with, step};
use crate::Notice;
use crate::session::testing::failpoints::Failpoints;
use crate::transport::Transport;

/// Longer than anything here takes, even by emulation on a busy machine.
pub(super) const BOUND: Duration = Duration::from_secs(180);

/// How long a consumer stalls: three seconds, or `COFFERDAM_STALL` seconds.
pub(super) fn stall() -> Duration {
    let seconds = std::env::var("COFFERDAM_STALL").map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A build whose guest uses this driver.
pub(super) fn build_on(driver: Transport, failpoints: Failpoints) -> Build {
    build_with(|options| (options.transport, options.failpoints) = (driver, failpoints))
}

/// Checks which driver a VM has, and ends its build.
#[track_caller]
pub(super) fn end_on(driver: Transport, build: Build) {
    build.executor.finish();
    let report = build.executor.report();
    if let Some(report) = report {
        let name = if driver == Transport::Kernel {
            "kernel"
        } else {
            "ring"
        };
        assert_eq!(report.transport, name);
    }
    build.end();
}

/// Why VMs of this build were lost, in order.
pub(super) fn losses(build: &Build) -> Vec<String> {
    let notices = build.notices.lock().unwrap();
    let losses = notices.iter().filter_map(|notice| match notice {
        Notice::Lost(why) => Some(why.clone()),
        Notice::Booting { .. }
        | Notice::NoKvm(_)
        | Notice::NoFilter(_)
        | Notice::Waiting { .. }
        | Notice::MoreThanAll { .. }
        | Notice::Ready { .. } => None,
    });
    losses.collect()
}

/// Fails if `work` takes longer than `bound`.
#[track_caller]
pub(super) fn within<T>(bound: Duration, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    done
}

/// A gate that is shut until a test opens it.
#[derive(Debug, Default, Clone)]
pub(super) struct Gate(Arc<(Mutex<Gates>, Condvar)>);

#[derive(Debug, Default)]
struct Gates {
    waiting: bool,
    open: bool,
}

impl Gate {
    /// Waits until it is open.
    pub(super) fn pass(&self) {
        let (gates, changed) = &*self.0;
        let mut gates = gates.lock().unwrap();
        gates.waiting = true;
        changed.notify_all();
        let waited = changed.wait_timeout_while(gates, BOUND + stall(), |gates| !gates.open);
        assert!(!waited.unwrap().1.timed_out(), "the gate is never opened");
    }

    /// Waits until a thread waits for it to open.
    pub(super) fn await_waiter(&self) {
        let (gates, changed) = &*self.0;
        let gates = gates.lock().unwrap();
        let waited = changed.wait_timeout_while(gates, BOUND, |gates| !gates.waiting);
        assert!(
            !waited.unwrap().1.timed_out(),
            "nothing arrives at the gate"
        );
    }

    pub(super) fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }
}

/// A consumer of output, or of a layer, that blocks while the gate is shut. It counts the bytes.
#[derive(Debug, Default)]
pub(super) struct Gated {
    pub(super) gate: Gate,
    pub(super) taken: u64,
    pub(super) pieces: u64,
    pub(super) each: Duration,
}

impl Gated {
    pub(super) fn take(&mut self, data: &[u8]) {
        self.gate.pass();
        // The first pieces slowly, so that the other side is much faster.
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

/// A consumer of the output of `seq`: checks each line as it arrives.
#[derive(Debug)]
pub(super) struct Lines {
    gated: Gated,
    pub(super) next: u64,
    pub(super) rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(gate: Gate, each: Duration) -> Self {
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
pub(super) struct OneFile {
    head: io::Cursor<Vec<u8>>,
    pub(super) left: u64,
}

impl OneFile {
    pub(super) fn new(name: &str, size: u64) -> (Self, u64) {
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

/// Runs a step and returns its output.
#[track_caller]
pub(super) fn say(build: &Build, script: &str) -> String {
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
pub(super) fn chain(err: &StepError) -> String {
    let mut text = err.to_string();
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    text
}
