//! PID 1's part in the network of a step: it moves bytes between the process `net` and the host, and
//! reads none of them.
//!
//! **Law:** if either end is lost while the step runs, the step is killed and fails; it never waits
//! for a network that is gone.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use crossbeam_channel::{Receiver, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::transport::{Connection, retry};

/// How long the host may take to close the connection of a step that has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// The two threads of a step.
#[derive(Debug)]
pub(crate) struct Pump {
    socket: UnixStream,
    connection: Box<dyn Connection>,
    shared: Arc<Shared>,
    up: JoinHandle<()>,
    down: JoinHandle<()>,
    /// Ends when the host has closed the connection.
    host_closed: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The step has ended, so its network may.
    ending: AtomicBool,
    /// One end was lost before.
    lost: AtomicBool,
}

impl Shared {
    fn ended(&self, kill: &dyn Fn()) {
        if !self.ending.load(Ordering::SeqCst) {
            self.lost.store(true, Ordering::SeqCst);
            kill();
        }
    }
}

impl Pump {
    /// Starts to move bytes between `socket`, whose other end has the process `net`, and `connection`.
    /// `kill` is called if either is lost.
    pub(crate) fn start(
        socket: UnixStream,
        connection: Box<dyn Connection>,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let kill: Arc<dyn Fn() + Send + Sync> = Arc::new(kill);
        let (tell, host_closed) = bounded(0);
        let up = {
            let (socket, connection) = (socket.try_clone()?, connection.try_clone()?);
            let (shared, kill) = (Arc::clone(&shared), Arc::clone(&kill));
            let pump = move || {
                let connection = up(&socket, connection);
                shared.ended(&*kill);
                connection.finish();
            };
            thread::Builder::new().name("net-up".into()).spawn(pump)?
        };
        let down = {
            let (socket, connection) = (socket.try_clone()?, connection.try_clone()?);
            let (shared, kill) = (Arc::clone(&shared), kill);
            let pump = move || {
                down(connection, &socket);
                shared.ended(&*kill);
                // The other end may be gone already.
                socket.shutdown(Shutdown::Write).ok();
                drop(tell);
            };
            thread::Builder::new().name("net-down".into()).spawn(pump)?
        };
        Ok(Self {
            socket,
            connection,
            shared,
            up,
            down,
            host_closed,
        })
    }

    /// Ends the network of a step that has ended, after what it sent is on its way.
    ///
    /// # Errors
    /// If it was lost before.
    pub(crate) fn end(self) -> Result<()> {
        self.shared.ending.store(true, Ordering::SeqCst);
        // The process `net` sends what it has, and closes its end. It may be gone already.
        self.socket.shutdown(Shutdown::Write).ok();
        self.up
            .join()
            .map_err(|_| anyhow!("the network thread panicked"))?;
        // Ends at once or not in time; then the rest is lost, as the step is over.
        self.host_closed.recv_timeout(FAREWELL).ok();
        self.connection.close();
        self.down
            .join()
            .map_err(|_| anyhow!("the network thread panicked"))?;
        let lost = self.shared.lost.load(Ordering::SeqCst);
        ensure!(!lost, "the network of the step was lost");
        Ok(())
    }
}

/// Moves bytes to the host until the socket ends, or either is lost.
fn up(socket: &UnixStream, mut connection: Box<dyn Connection>) -> Box<dyn Connection> {
    if let Err(err) = try_up(socket, &mut *connection) {
        log::debug!("the network of a step ends: {err:#}");
        socket.shutdown(Shutdown::Both).ok();
    }
    connection
}

fn try_up(mut socket: &UnixStream, connection: &mut dyn Connection) -> Result<()> {
    loop {
        // The connection lends little memory to all steps together, so none is taken to wait with.
        wait(socket)?;
        let buffer = connection.send_buffer()?;
        let n = match retry(|| socket.read(buffer)) {
            Ok(n) => n,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => 0,
            Err(err) => {
                connection.send(0)?;
                return Err(err).context("cannot read from the process net");
            }
        };
        connection.send(n)?;
        if n == 0 {
            return Ok(());
        }
    }
}

/// Waits until there is something to read, or the end.
fn wait(socket: &UnixStream) -> Result<(), Errno> {
    let mut files = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut files, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// Moves bytes from the host until either ends.
fn down(mut connection: Box<dyn Connection>, mut socket: &UnixStream) {
    loop {
        let n = match connection.fill_buf() {
            Ok([]) => return,
            Ok(bytes) => match socket.write_all(bytes) {
                Ok(()) => bytes.len(),
                Err(err) => return log::debug!("the network of a step ends: {err}"),
            },
            Err(err) => return log::debug!("the network of a step ends: {err}"),
        };
        connection.consume(n);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::transport::Socket;

    /// A pump, the process `net`'s end, the host's end, and what is told when it kills.
    fn start() -> (Pump, UnixStream, UnixStream, Receiver<()>) {
        let (socket, net) = UnixStream::pair().unwrap();
        let (guest, host) = UnixStream::pair().unwrap();
        let (tell, killed) = bounded(2);
        let connection = Box::new(Socket::from(OwnedFd::from(guest)));
        let kill = move || tell.send(()).unwrap();
        (
            Pump::start(socket, connection, kill).unwrap(),
            net,
            host,
            killed,
        )
    }

    fn bytes(from: u8) -> Vec<u8> {
        (0..3_000_000_u32)
            .map(|at| from ^ (at % 251).to_le_bytes()[0])
            .collect()
    }

    #[test]
    fn bytes_pass_both_ways_and_the_last_ones_before_the_end() {
        let (pump, mut net, mut host, killed) = start();
        let mut to_net = host.try_clone().unwrap();
        let sending = thread::spawn(move || to_net.write_all(&bytes(1)).unwrap());
        let mut got = vec![0; bytes(1).len()];
        net.read_exact(&mut got).unwrap();
        assert!(got == bytes(1));
        sending.join().unwrap();
        let serving = thread::spawn(move || {
            // The step is over; the process `net` sends what is left.
            assert_eq!(net.read(&mut [0]).unwrap(), 0);
            net.write_all(&bytes(2)).unwrap();
        });
        let hosting = thread::spawn(move || {
            let mut got = Vec::new();
            host.read_to_end(&mut got).unwrap();
            assert!(got == bytes(2));
        });
        pump.end().unwrap();
        serving.join().unwrap();
        hosting.join().unwrap();
        assert!(killed.try_recv().is_err());
    }

    #[test]
    fn a_step_whose_network_is_lost_at_either_end_is_killed_and_fails() {
        for host_is_lost in [false, true] {
            let (pump, net, host, killed) = start();
            let left = if host_is_lost {
                drop(host);
                net
            } else {
                drop(net);
                host
            };
            killed.recv_timeout(Duration::from_secs(20)).unwrap();
            // The other end learns of it, too: here it closes when it does.
            let following = thread::spawn(move || {
                let mut left = left;
                left.read_to_end(&mut Vec::new()).ok();
            });
            let err = pump.end().unwrap_err();
            assert_eq!(err.to_string(), "the network of the step was lost");
            following.join().unwrap();
        }
    }
}
