//! The host's side: it sends the commands that the guest executes, and measures.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vsock_device::{Bytes, Stream};
use vsock_guest::bench::{BLOCK, Checker, MESSAGE, STREAMS, TIMEOUT, block};

use crate::figures::{Case, Meter};
use crate::{Outcome, Plan};

/// Messages for the median of a round trip.
const ROUNDS: usize = 1000;

/// The same beside two streams at full speed.
const LOADED_ROUNDS: usize = 200;

/// How long the idle time is that is measured.
const IDLE: Duration = Duration::from_secs(3);

/// A connection, independent of the transport.
pub(crate) trait HostStream: Sync {
    /// Limits every wait to [`TIMEOUT`].
    fn set_timeouts(&self) -> io::Result<()>;
    /// Sends all of `data`, by reference where that is possible.
    fn send(&self, data: Bytes) -> io::Result<()>;
    /// Receives some bytes.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Shuts down sending.
    fn finish(&self) -> io::Result<()>;
}

impl HostStream for Stream {
    fn set_timeouts(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TIMEOUT));
        self.set_write_timeout(Some(TIMEOUT));
        Ok(())
    }

    fn send(&self, data: Bytes) -> io::Result<()> {
        Self::send(self, data)
    }

    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Self::read(self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown_write()
    }
}

impl HostStream for UnixStream {
    fn set_timeouts(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TIMEOUT))?;
        self.set_write_timeout(Some(TIMEOUT))
    }

    fn send(&self, data: Bytes) -> io::Result<()> {
        Write::write_all(&mut &*self, &data)
    }

    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// The connections of one guest, and the `helpers`: processes whose CPU time counts as well.
#[derive(Clone, Copy)]
pub(crate) struct Benchmark<'a> {
    pub(crate) streams: [&'a dyn HostStream; STREAMS],
    pub(crate) helpers: &'a [u32],
}

impl Benchmark<'_> {
    /// Measures everything, and ends the guest.
    pub(crate) fn run(self, plan: &Plan) -> Outcome<()> {
        let [first, second, third] = self.hosts()?;
        first.run(plan)?;
        two_at_once(&first, &second, plan, "to-guest")?;
        two_at_once(&first, &second, plan, "to-host")?;
        let meter = Meter::start(self.helpers);
        let median = under_load([&first, &second], &third, plan)?;
        meter
            .stop()
            .report_round_trip(&plan.path, "round-trip-under-load", MESSAGE, median);
        let meter = Meter::start(self.helpers);
        thread::sleep(IDLE);
        meter.stop().report_idle(&plan.path);
        self.finish()
    }

    /// Measures the memory of both sides for a short and a long transfer, and ends the guest.
    pub(crate) fn run_long(self, plan: &Plan) -> Outcome<()> {
        let [host, ..] = self.hosts()?;
        host.to_guest(BLOCK as u64, BLOCK, false)?;
        for gib in [1, plan.bytes >> 30] {
            let meter = Meter::start(self.helpers);
            host.to_guest(gib << 30, BLOCK, false)?;
            let cost = meter.stop();
            cost.report_memory(&plan.path, gib, host.guest_peak_rss()?);
        }
        self.finish()
    }

    fn hosts(&self) -> Outcome<[Host<'_>; STREAMS]> {
        for stream in self.streams {
            stream.set_timeouts()?;
        }
        let block = Bytes::from(block());
        Ok(self.streams.map(|stream| Host {
            stream,
            helpers: self.helpers,
            block: block.clone(),
        }))
    }

    fn finish(&self) -> Outcome<()> {
        for stream in self.streams {
            stream.finish()?;
        }
        Ok(())
    }
}

/// Two streams at the same time, in the largest pieces, with bytes that are not read. `split` is the
/// speed of the slower stream relative to the faster one.
fn two_at_once(first: &Host<'_>, second: &Host<'_>, plan: &Plan, direction: &str) -> Outcome<()> {
    let chunk = plan.largest();
    let begin = Barrier::new(2);
    let go = |host: &Host<'_>| {
        begin.wait();
        let began = Instant::now();
        if direction == "to-guest" {
            host.to_guest(plan.bytes, chunk, false)?;
        } else {
            host.to_host(2, plan.bytes, chunk, false)?;
        }
        Outcome::Ok(began.elapsed().as_secs_f64())
    };
    let meter = Meter::start(first.helpers);
    let times = thread::scope(|scope| {
        let other = scope.spawn(|| go(second));
        let mine = go(first);
        let other = other.join().map_err(|_| "a thread panicked")?;
        Outcome::Ok([mine?, other?])
    })?;
    let cost = meter.stop();
    let [mine, other] = times;
    cost.report_two(
        Case {
            path: &plan.path,
            direction,
            consume: "discard",
            chunk,
        },
        2 * plan.bytes,
        mine.min(other) / mine.max(other),
    );
    Ok(())
}

/// The median round trip on one connection while two others transfer at full speed.
fn under_load(bulk: [&Host<'_>; 2], control: &Host<'_>, plan: &Plan) -> Outcome<Duration> {
    let done = AtomicBool::new(false);
    let load = |host: &Host<'_>| {
        while !done.load(Ordering::Relaxed) {
            host.to_guest(plan.bytes, plan.largest(), false)?;
        }
        Outcome::Ok(())
    };
    thread::scope(|scope| {
        let loads = bulk.map(|host| scope.spawn(|| load(host)));
        let median = control.round_trip(LOADED_ROUNDS);
        done.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().map_err(|_| "a thread panicked")??;
        }
        median
    })
}

/// The host's end of one connection.
struct Host<'a> {
    stream: &'a dyn HostStream,
    helpers: &'a [u32],
    block: Bytes,
}

impl Host<'_> {
    /// Measures what needs only one connection.
    fn run(&self, plan: &Plan) -> Outcome<()> {
        // A warm-up: pages are touched and, in a VM, code is translated.
        self.to_guest(BLOCK as u64, BLOCK, true)?;
        self.to_host(2, BLOCK as u64, BLOCK, true)?;
        for &chunk in &plan.chunks {
            for consume in ["discard", "verify"] {
                let case = |direction| Case {
                    path: &plan.path,
                    direction,
                    consume,
                    chunk,
                };
                let is_verified = consume == "verify";
                let meter = Meter::start(self.helpers);
                self.to_guest(plan.bytes, chunk, is_verified)?;
                meter.stop().report(case("to-guest"), plan.bytes);
                for (op, direction) in [(2, "to-host"), (5, "file-to-host")] {
                    let meter = Meter::start(self.helpers);
                    self.to_host(op, plan.bytes, chunk, is_verified)?;
                    meter.stop().report(case(direction), plan.bytes);
                }
            }
        }
        let chunk = plan.largest();
        let case = Case {
            path: &plan.path,
            direction: "to-host",
            consume: "unwritten",
            chunk,
        };
        let meter = Meter::start(self.helpers);
        self.to_host(6, plan.bytes, chunk, false)?;
        meter.stop().report(case, plan.bytes);
        let meter = Meter::start(self.helpers);
        let median = self.round_trip(ROUNDS)?;
        meter
            .stop()
            .report_round_trip(&plan.path, "round-trip", MESSAGE, median);
        Ok(())
    }

    /// Sends a command and waits for the acknowledgement.
    fn command(&self, command: [u64; 3]) -> Outcome<()> {
        let words = command.map(u64::to_le_bytes);
        self.stream.send(words.as_flattened().to_vec().into())?;
        self.read_exact(&mut [0])
    }

    fn read_exact(&self, mut buf: &mut [u8]) -> Outcome<()> {
        while !buf.is_empty() {
            match self.stream.read(buf)? {
                0 => return Err("the guest closed the connection".into()),
                n => buf = buf.get_mut(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn to_guest(&self, bytes: u64, chunk: usize, is_verified: bool) -> Outcome<()> {
        self.command([u64::from(is_verified), bytes, 0])?;
        let mut left = bytes;
        let pieces = (0..BLOCK).step_by(chunk).cycle();
        for from in pieces {
            if left == 0 {
                break;
            }
            let piece = self.block.slice(from..BLOCK.min(from + chunk));
            left = left.saturating_sub(piece.len() as u64);
            self.stream.send(piece)?;
        }
        let mut answer = [0; 8];
        self.read_exact(&mut answer)?;
        match u64::from_le_bytes(answer) {
            got if got == bytes => Ok(()),
            u64::MAX => Err("the guest got wrong bytes".into()),
            got => Err(format!("the guest got {got} of {bytes} bytes").into()),
        }
    }

    /// Receives; `op` says how the guest sends.
    fn to_host(&self, op: u64, bytes: u64, chunk: usize, is_verified: bool) -> Outcome<()> {
        let mut buffer = vec![0; chunk];
        let mut checker = Checker::default();
        self.command([op, bytes, chunk as u64])?;
        let mut left = bytes;
        while left > 0 {
            let n = self.stream.read(&mut buffer)?;
            if n == 0 {
                return Err("the guest closed the connection".into());
            }
            if is_verified {
                checker.take(buffer.get(..n).unwrap_or_default());
            }
            left = left.saturating_sub(n as u64);
        }
        if checker.is_wrong {
            return Err("the guest sent wrong bytes".into());
        }
        Ok(())
    }

    /// The median time of a round trip: a mean would be dominated by the few that another process
    /// interrupted.
    fn round_trip(&self, rounds: usize) -> Outcome<Duration> {
        self.command([3, rounds as u64, 0])?;
        let sent = Bytes::from_static(&[7; MESSAGE]);
        let mut message = [0; MESSAGE];
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let began = Instant::now();
            self.stream.send(sent.clone())?;
            self.read_exact(&mut message)?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok(times.get(rounds / 2).copied().unwrap_or_default())
    }

    fn guest_peak_rss(&self) -> Outcome<u64> {
        self.command([4, 0, 0])?;
        let mut answer = [0; 8];
        self.read_exact(&mut answer)?;
        Ok(u64::from_le_bytes(answer))
    }
}
