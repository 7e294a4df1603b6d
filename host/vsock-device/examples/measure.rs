//! Measures the device with a real guest: `measure SOCKET COMMAND...` starts the monitor with
//! `COMMAND...`, whose guest runs a pool of processes. Each connects to port 2 of the host, obeys
//! the order that it gets, closes, and connects again.
//!
//! An order is `op: u32, piece: u32, bytes: u64`, little-endian: 0 read to the end, verify, and
//! answer with the count and the number of wrong reads (two `u64`); 3 the same unverified; 1 send
//! `bytes` bytes of the pattern and end; 4 the same with constant bytes; 2 echo to the end; 5 power
//! off. The pattern is word k = k × 0x9E37_79B9_7F4A_7C15, little-endian.
#![expect(clippy::print_stdout, reason = "it reports to who runs it")]

use std::error::Error;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use vsock_device::{Bytes, Config, Device, GuestCid, Listener, Stream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MIB: u64 = 1024 * 1024;
const CHUNK: usize = 1024 * 1024;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, program, rest @ ..] = args.as_slice() else {
        return Err("usage: measure SOCKET COMMAND...".into());
    };
    let device = Device::start(Path::new(socket), Config::new(GuestCid::try_from(3)?))?;
    let listener = device.listen(2)?;
    let mut monitor = Command::new(program).args(rest).spawn()?;
    let outcome = measure(&device, &listener, &mut monitor);
    monitor.kill().ok();
    monitor.wait()?;
    println!("{:#?}", device.counters());
    println!("failure: {:?}", device.failure());
    outcome
}

fn measure(device: &Device, listener: &Listener, monitor: &mut Child) -> Outcome<()> {
    let started = Instant::now();
    let first = listener.accept(Some(Duration::from_secs(60)))?;
    println!(
        "first connection after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let mut lab = Lab {
        device,
        listener,
        monitor: monitor.id(),
        spare: Some(first),
    };
    lab.timed("to guest, verified, 1 connection", 1, 64 * MIB, |s, n| {
        to_guest(s, n, 0)
    })?;
    lab.timed("to guest, 1 connection", 1, 256 * MIB, |s, n| {
        to_guest(s, n, 3)
    })?;
    lab.timed("to guest, 8 connections", 8, 32 * MIB, |s, n| {
        to_guest(s, n, 3)
    })?;
    lab.timed("to guest, verified, 32 connections", 32, 2 * MIB, |s, n| {
        to_guest(s, n, 0)
    })?;
    lab.timed("from guest, verified, 1 connection", 1, 64 * MIB, |s, n| {
        from_guest(s, n, 1)
    })?;
    lab.timed("from guest, 1 connection", 1, 256 * MIB, |s, n| {
        from_guest(s, n, 4)
    })?;
    lab.timed("from guest, 8 connections", 8, 32 * MIB, |s, n| {
        from_guest(s, n, 4)
    })?;
    lab.timed(
        "from guest, verified, 32 connections",
        32,
        2 * MIB,
        |s, n| from_guest(s, n, 1),
    )?;
    lab.timed("echo, 4 connections", 4, 16 * MIB, echo)?;
    connect_to_guest(device)?;
    lab.drop_early()?;
    lab.round_trips()?;
    lab.kill(monitor)
}

struct Lab<'a> {
    device: &'a Device,
    listener: &'a Listener,
    monitor: u32,
    spare: Option<Stream>,
}

impl Lab<'_> {
    fn next(&mut self) -> io::Result<Stream> {
        match self.spare.take() {
            Some(stream) => Ok(stream),
            None => self.listener.accept(Some(Duration::from_secs(20))),
        }
    }

    fn timed(
        &mut self,
        what: &str,
        connections: usize,
        bytes: u64,
        run: impl Fn(&Stream, u64) -> Outcome<()> + Sync,
    ) -> Outcome<()> {
        let streams = (0..connections)
            .map(|_| self.next())
            .collect::<io::Result<Vec<_>>>()?;
        let before = (
            cpu(self.monitor),
            cpu(std::process::id()),
            self.device.counters(),
        );
        let started = Instant::now();
        thread::scope(|scope| {
            let running: Vec<_> = streams
                .iter()
                .map(|stream| scope.spawn(|| run(stream, bytes)))
                .collect();
            running
                .into_iter()
                .try_for_each(|run| run.join().map_err(|_| "panic")?)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let after = self.device.counters();
        let mib = (bytes * connections as u64 / MIB) as f64;
        println!(
            "{what:40} {:7.1} MiB/s   CPU s per GiB: monitor {:5.2} here {:5.2}   packets {} interrupts {}",
            mib / seconds,
            (cpu(self.monitor) - before.0) * 1024.0 / mib,
            (cpu(std::process::id()) - before.1) * 1024.0 / mib,
            after.packets_to_guest + after.packets_from_guest
                - before.2.packets_to_guest
                - before.2.packets_from_guest,
            after.interrupts - before.2.interrupts,
        );
        Ok(())
    }

    fn round_trips(&mut self) -> Outcome<()> {
        let stream = self.next()?;
        order(&stream, 2, 0)?;
        let started = Instant::now();
        let rounds = 500;
        for _ in 0..rounds {
            stream.write_all(b"ping")?;
            (&stream).read_exact(&mut [0; 4])?;
        }
        println!(
            "round trip: {:.0} µs",
            started.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
        );
        Ok(())
    }

    /// The host hangs up while the guest has most of the bytes still to read. The guest says on its
    /// console how many it got.
    fn drop_early(&mut self) -> Outcome<()> {
        let stream = self.next()?;
        order(&stream, 0, 0)?;
        stream.send(pattern(0, 3 * CHUNK))?;
        drop(stream);
        Ok(())
    }

    /// The monitor dies in the middle of transfers both ways: everybody must learn it at once.
    fn kill(&mut self, monitor: &mut Child) -> Outcome<()> {
        let (sink, source) = (self.next()?, self.next()?);
        thread::scope(|scope| {
            let writer = scope.spawn(|| to_guest(&sink, 1 << 40, 3));
            let reader = scope.spawn(|| from_guest(&source, 1 << 40, 4));
            thread::sleep(Duration::from_secs(1));
            monitor.kill()?;
            let killed = Instant::now();
            println!("writer: {:?}", writer.join().map_err(|_| "panic")?.err());
            println!("reader: {:?}", reader.join().map_err(|_| "panic")?.err());
            println!("after the kill: {:?}", killed.elapsed());
            Ok(())
        })
    }
}

fn order(stream: &Stream, op: u32, bytes: u64) -> io::Result<()> {
    let mut order = Vec::with_capacity(16);
    order.extend_from_slice(&op.to_le_bytes());
    order.extend_from_slice(&0_u32.to_le_bytes());
    order.extend_from_slice(&bytes.to_le_bytes());
    stream.send(order)
}

fn to_guest(stream: &Stream, bytes: u64, op: u32) -> Outcome<()> {
    order(stream, op, 0)?;
    let same = Bytes::from(vec![1; CHUNK]);
    let mut sent = 0;
    while sent < bytes {
        let n = usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK);
        let chunk = if op == 0 {
            pattern(sent, n).into()
        } else {
            same.slice(..n)
        };
        stream.send(chunk)?;
        sent += n as u64;
    }
    stream.shutdown_write()?;
    let mut answer = [0; 16];
    { stream }.read_exact(&mut answer)?;
    let expected = [bytes.to_le_bytes(), 0_u64.to_le_bytes()].concat();
    if answer != *expected {
        Err(format!("the guest answered {answer:?}").into())
    } else {
        Ok(())
    }
}

fn from_guest(stream: &Stream, bytes: u64, op: u32) -> Outcome<()> {
    order(stream, op, bytes)?;
    let mut buf = vec![0; CHUNK];
    let mut got = 0;
    loop {
        let n = stream.read(&mut buf)?;
        let read = buf.get(..n).unwrap_or_default();
        if op == 1 && read != pattern(got, n) {
            return Err(format!("wrong bytes near {got}").into());
        }
        got += n as u64;
        if n == 0 {
            return if got == bytes {
                Ok(())
            } else {
                Err(format!("{got} of {bytes}").into())
            };
        }
    }
}

fn echo(stream: &Stream, bytes: u64) -> Outcome<()> {
    order(stream, 2, 0)?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || -> Outcome<()> {
            for from in (0..bytes).step_by(CHUNK) {
                stream.send(pattern(from, CHUNK))?;
            }
            Ok(stream.shutdown_write()?)
        });
        let mut buf = vec![0; CHUNK];
        let mut got = 0;
        loop {
            let n = stream.read(&mut buf)?;
            if buf.get(..n) != Some(&pattern(got, n)) {
                return Err(format!("wrong bytes near {got}").into());
            }
            got += n as u64;
            if n == 0 {
                break;
            }
        }
        if got == bytes {
            writer.join().map_err(|_| "panic")?
        } else {
            Err("short echo".into())
        }
    })
}

fn connect_to_guest(device: &Device) -> Outcome<()> {
    let stream = device.connect(5000, Duration::from_secs(5))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    (&stream).read_exact(&mut answer)?;
    let refused = device.connect(5001, Duration::from_secs(5)).map(drop);
    println!(
        "connect to guest: {:?}; to a closed port: {refused:?}",
        str::from_utf8(&answer)
    );
    Ok(())
}

fn pattern(from: u64, len: usize) -> Vec<u8> {
    let words = from / 8..(from + len as u64).div_ceil(8);
    let skip = usize::try_from(from % 8).unwrap_or(0);
    let word = |k: u64| k.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    words.flat_map(word).skip(skip).take(len).collect()
}

/// Seconds of processor time that a process has used.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(11)
        .take(2);
    fields
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}
