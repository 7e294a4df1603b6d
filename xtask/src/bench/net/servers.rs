//! Servers that measure who talks to them.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Servers on the loopback of this machine.
#[derive(Debug)]
pub(super) struct Servers {
    /// The port of the one that sends.
    pub(super) down: u16,
    /// The port of the one that receives.
    pub(super) up: u16,
    /// The port of the one that closes at once.
    pub(super) many: u16,
    /// The port of the one that is told when programs that connect to nobody start, and when they end.
    pub(super) none: u16,
    measured: Arc<Mutex<Measured>>,
}

/// One time for each round.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// From the accepted connection until the client has everything.
    pub(super) down: Vec<Duration>,
    /// From the accepted connection to the last byte.
    pub(super) up: Vec<Duration>,
    /// From the first of many connections to the last one.
    pub(super) connect: Vec<Duration>,
    /// As many programs, without connections.
    pub(super) start: Vec<Duration>,
}

impl Measured {
    /// Adds later rounds.
    pub(super) fn add(&mut self, more: Self) {
        self.down.extend(more.down);
        self.up.extend(more.up);
        self.connect.extend(more.connect);
        self.start.extend(more.start);
    }

    /// The connections without the programs that make them.
    pub(super) fn connect_alone(&self) -> Vec<Duration> {
        let rounds = self.connect.iter().zip(&self.start);
        rounds
            .map(|(connect, start)| connect.saturating_sub(*start))
            .collect()
    }
}

impl Servers {
    pub(super) fn start(bytes: u64, connections: u32) -> Result<Self> {
        let measured = Arc::<Mutex<Measured>>::default();
        let down = serve(&measured, move |listener, measured| {
            let (stream, begin) = accept(listener)?;
            send(stream, bytes)?;
            keep(measured, |measured| measured.down.push(begin.elapsed()));
            Ok(())
        })?;
        let up = serve(&measured, move |listener, measured| {
            let (mut stream, begin) = accept(listener)?;
            let got = std::io::copy(&mut stream, &mut std::io::sink())?;
            ensure!(got == bytes, "received {got} bytes");
            keep(measured, |measured| measured.up.push(begin.elapsed()));
            Ok(())
        })?;
        let many = serve(&measured, move |listener, measured| {
            let (first, begin) = accept(listener)?;
            drop(first);
            for _ in 1..connections {
                drop(accept(listener)?);
            }
            keep(measured, |measured| measured.connect.push(begin.elapsed()));
            Ok(())
        })?;
        let none = serve(&measured, move |listener, measured| {
            let (first, begin) = accept(listener)?;
            drop(first);
            let (last, _) = accept(listener)?;
            keep(measured, |measured| measured.start.push(begin.elapsed()));
            drop(last);
            Ok(())
        })?;
        Ok(Self {
            down,
            up,
            many,
            none,
            measured,
        })
    }

    /// What was measured since the last time.
    pub(super) fn take(&self) -> Result<Measured> {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *measured);
        let all = [&taken.down, &taken.up, &taken.connect, &taken.start];
        ensure!(
            all.iter().all(|times| !times.is_empty()),
            "nobody came: {taken:?}"
        );
        Ok(taken)
    }
}

fn keep(measured: &Mutex<Measured>, add: impl FnOnce(&mut Measured)) {
    add(&mut measured.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Does `round` again and again on a thread of its own; returns the port.
fn serve(
    measured: &Arc<Mutex<Measured>>,
    round: impl Fn(&TcpListener, &Mutex<Measured>) -> Result<()> + Send + 'static,
) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let port = listener.local_addr()?.port();
    let measured = Arc::clone(measured);
    thread::spawn(move || {
        loop {
            if let Err(error) = round(&listener, &measured) {
                // The round is missing from the figures.
                crate::shell::say(format!("a round failed: {error:#}"));
            }
        }
    });
    Ok(port)
}

fn accept(listener: &TcpListener) -> Result<(TcpStream, Instant)> {
    let (stream, _) = listener.accept()?;
    Ok((stream, Instant::now()))
}

/// Sends so many bytes, and waits until the client has read them all.
fn send(mut stream: TcpStream, bytes: u64) -> Result<()> {
    std::io::copy(&mut std::io::repeat(0x5a).take(bytes), &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // The client closes when it has everything.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}
