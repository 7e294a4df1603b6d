//! The host's side of a connection on which the guest obeys.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vsock::{Bytes, Stream};

use crate::figures::{Case, Meter};
use crate::obey::{BLOCK, Checker, MESSAGE, PATIENCE, block};
use crate::{Outcome, Plan};

/// Messages that go there and back.
const ROUNDS: usize = 1000;

/// A connection, whatever it is made of.
pub(crate) trait Link {
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

/// Who gives the orders.
pub(crate) struct Host<'a> {
    stream: &'a dyn Link,
    /// Processes whose time counts as well.
    helpers: &'a [u32],
    block: Bytes,
}

impl<'a> Host<'a> {
    /// On a connection that the guest has made.
    pub(crate) fn new(stream: &'a dyn Link, helpers: &'a [u32]) -> Outcome<Self> {
        stream.be_patient()?;
        Ok(Self {
            stream,
            helpers,
            block: block().into(),
        })
    }

    /// Measures everything, and lets the guest go.
    pub(crate) fn run(&self, plan: &Plan) -> Outcome<()> {
        // Once for nothing: pages are touched and, in a VM, code is translated.
        self.to_guest(BLOCK as u64, BLOCK, true)?;
        self.to_host(BLOCK as u64, BLOCK, true)?;
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
                let meter = Meter::start(self.helpers);
                self.to_host(plan.bytes, chunk, is_verified)?;
                meter.stop().report(case("to-host"), plan.bytes);
            }
        }
        let meter = Meter::start(self.helpers);
        let median = self.round_trip()?;
        meter.stop().report_round_trip(&plan.path, MESSAGE, median);
        Ok(self.stream.finish()?)
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

    fn to_host(&self, bytes: u64, chunk: usize, is_verified: bool) -> Outcome<()> {
        let mut buffer = vec![0; chunk];
        let mut checker = Checker::default();
        self.order([2, bytes, chunk as u64])?;
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
    fn round_trip(&self) -> Outcome<Duration> {
        self.order([3, ROUNDS as u64, 0])?;
        let sent = Bytes::from_static(&[7; MESSAGE]);
        let mut message = [0; MESSAGE];
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            self.stream.send(sent.clone())?;
            self.read_exact(&mut message)?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok(times.get(ROUNDS / 2).copied().unwrap_or_default())
    }
}
