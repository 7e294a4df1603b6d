//! The host's side of the connections on which the guest obeys.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vsock_device::{Bytes, Stream};

use crate::figures::{Case, Meter};
use crate::obey::{BLOCK, Checker, MESSAGE, PATIENCE, STREAMS, block};
use crate::{Outcome, Plan};

/// Messages that go there and back.
const ROUNDS: usize = 1000;

/// Messages beside two streams that take all there is.
const LOADED_ROUNDS: usize = 200;

/// How long nothing happens when that is what is measured.
const IDLE: Duration = Duration::from_secs(3);

/// A connection, whatever it is made of.
pub(crate) trait Link: Sync {
    /// No wait is longer than [`PATIENCE`].
    fn be_patient(&self) -> io::Result<()>;
    /// Sends all of this, by reference where that is possible.
    fn send(&self, data: Bytes) -> io::Result<()>;
    /// Receives something.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Ends sending.
    fn finish(&self) -> io::Result<()>;
}

impl Link for Stream {
    fn be_patient(&self) -> io::Result<()> {
        self.set_read_timeout(Some(PATIENCE));
        self.set_write_timeout(Some(PATIENCE));
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

impl Link for UnixStream {
    fn be_patient(&self) -> io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))?;
        self.set_write_timeout(Some(PATIENCE))
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

/// What is measured on the connections of one guest; `helpers` are processes whose time counts as
/// well.
#[derive(Clone, Copy)]
pub(crate) struct Lab<'a> {
    pub(crate) links: [&'a dyn Link; STREAMS],
    pub(crate) helpers: &'a [u32],
}

impl Lab<'_> {
    /// Measures everything, and lets the guest go.
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

    /// Measures the memory of both sides when little and when much goes from one to the other, and
    /// lets the guest go.
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
        for link in self.links {
            link.be_patient()?;
        }
        let block = Bytes::from(block());
        Ok(self.links.map(|stream| Host {
            stream,
            helpers: self.helpers,
            block: block.clone(),
        }))
    }

    fn finish(&self) -> Outcome<()> {
        for link in self.links {
            link.finish()?;
        }
        Ok(())
    }
}

/// Two streams at the same time, in the largest pieces, with bytes that nobody looks at. `split` is
/// the speed of the slower one, with that of the faster as one.
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

/// The median time of a message on one connection while two others carry all they can.
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

/// Who gives the orders on one connection.
struct Host<'a> {
    stream: &'a dyn Link,
    helpers: &'a [u32],
    block: Bytes,
}

impl Host<'_> {
    /// Measures what needs only one.
    fn run(&self, plan: &Plan) -> Outcome<()> {
        // Once for nothing: pages are touched and, in a VM, code is translated.
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

    /// Gives an order and waits until the guest has understood it.
    fn order(&self, order: [u64; 3]) -> Outcome<()> {
        let words = order.map(u64::to_le_bytes);
        self.stream.send(words.as_flattened().to_vec().into())?;
        self.read_exact(&mut [0])
    }

    fn read_exact(&self, mut buf: &mut [u8]) -> Outcome<()> {
        while !buf.is_empty() {
            match self.stream.read(buf)? {
                0 => return Err("the guest hung up".into()),
                n => buf = buf.get_mut(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn to_guest(&self, bytes: u64, chunk: usize, is_verified: bool) -> Outcome<()> {
        self.order([u64::from(is_verified), bytes, 0])?;
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

    /// Receives; `op` says where the guest gets it from.
    fn to_host(&self, op: u64, bytes: u64, chunk: usize, is_verified: bool) -> Outcome<()> {
        let mut buffer = vec![0; chunk];
        let mut checker = Checker::default();
        self.order([op, bytes, chunk as u64])?;
        let mut left = bytes;
        while left > 0 {
            let n = self.stream.read(&mut buffer)?;
            if n == 0 {
                return Err("the guest hung up".into());
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

    /// The median time of a message there and back: a mean would tell about the few that met with
    /// another process.
    fn round_trip(&self, rounds: usize) -> Outcome<Duration> {
        self.order([3, rounds as u64, 0])?;
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
        self.order([4, 0, 0])?;
        let mut answer = [0; 8];
        self.read_exact(&mut answer)?;
        Ok(u64::from_le_bytes(answer))
    }
}
