//! A guest that is played by a test, over socket pairs.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use exec::Cancel;
use wire::frame::{self, Kind};
use wire::{Attach, Hello, Reply, Request, message, transfer};

use crate::session::{
    GuestConnection, GuestListener, Heartbeat, Limits, Lost, Session, SessionConfig,
};
use crate::time_budget::Clock;

pub(crate) const NONCE: [u8; 16] = [7; 16];

impl GuestConnection for UnixStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        (&*self).write_all(&data)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn reset(&self) {
        self.shutdown(Shutdown::Both).ok();
    }
}

#[derive(Debug)]
struct QueueListener(Receiver<Arc<dyn GuestConnection>>);

impl GuestListener for QueueListener {
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn GuestConnection>> {
        self.0.recv_timeout(timeout).map_err(|err| match err {
            RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
            RecvTimeoutError::Disconnected => io::ErrorKind::NotConnected.into(),
        })
    }
}

/// The guest's end.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) control: UnixStream,
    pub(crate) connections: Sender<Arc<dyn GuestConnection>>,
}

/// The host's end, before the hello.
#[derive(Debug)]
pub(crate) struct Host {
    control: UnixStream,
    listener: QueueListener,
    /// The clock of the session.
    pub(crate) clock: Clock,
    /// The build's cancel.
    pub(crate) cancel: Cancel,
}

/// Limits short enough for a test to wait for.
pub(crate) fn short_limits() -> Limits {
    let limit = Duration::from_millis(400);
    Limits {
        hello: limit,
        attach: limit,
        open: limit,
        eof: limit,
        grace: limit / 4,
        kill: limit / 4,
        short: limit,
        files: limit,
        output: limit,
        stall: limit,
    }
}

pub(crate) fn pair() -> (Host, Guest) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, receiver) = bounded(8);
    (
        Host {
            control: ours,
            listener: QueueListener(receiver),
            clock: Clock::default(),
            cancel: Cancel::new(),
        },
        Guest {
            control: theirs,
            connections: sender,
        },
    )
}

impl Host {
    pub(crate) fn open_with(self, limits: Limits, heartbeat: Heartbeat) -> Result<Session, Lost> {
        let config = SessionConfig {
            nonce: NONCE,
            limits,
            heartbeat,
            clock: self.clock,
            cancel: self.cancel,
        };
        Session::open(Arc::new(self.control), Box::new(self.listener), config)
    }

    pub(crate) fn open(self) -> Result<Session, Lost> {
        self.open_with(short_limits(), Heartbeat::default())
    }
}

impl Guest {
    /// Reads the host's hello and answers with this one.
    pub(crate) fn hello(&mut self, protocol: u16, nonce: [u8; 16]) {
        let mut buf = Vec::new();
        let frame = read(&mut buf, &mut self.control).expect("the host says hello first");
        let theirs: Hello = message::decode(&frame).unwrap();
        assert_eq!(theirs.protocol, wire::PROTOCOL);
        let software = "agent of a test".into();
        let hello = Hello {
            protocol,
            software,
            nonce,
            ..theirs
        };
        self.control
            .write_all(&message::encode(0, &hello).unwrap())
            .unwrap();
    }

    /// The next request, with its number; answers heartbeats meanwhile. `None` when the host is gone.
    pub(crate) fn request(&mut self) -> Option<(u64, Request)> {
        self.request_within(u32::MAX)
    }

    /// As [`Self::request`], but gives up after so many heartbeats.
    pub(crate) fn request_within(&mut self, heartbeats: u32) -> Option<(u64, Request)> {
        let mut buf = Vec::new();
        for _ in 0..heartbeats {
            let frame = read(&mut buf, &mut self.control)?;
            if frame.kind != Kind::Ping {
                return Some((frame.id, message::decode(&frame).unwrap()));
            }
            let pong = frame::encode(Kind::Pong, 0, frame.id, 0, &[]).unwrap();
            // A host that gave up may be gone between its last heartbeat and this answer.
            self.control.write_all(&pong).ok()?;
        }
        None
    }

    pub(crate) fn reply(&mut self, id: u64, reply: &Reply) {
        self.control
            .write_all(&message::encode(id, reply).unwrap())
            .unwrap();
    }

    /// Opens a transfer.
    pub(crate) fn attach(&self, transfer: u64, nonce: [u8; 16]) -> UnixStream {
        let mut theirs = self.open();
        let attach = Attach { nonce, transfer };
        theirs
            .write_all(&message::encode(transfer, &attach).unwrap())
            .unwrap();
        theirs
    }

    /// Opens a connection and sends nothing.
    pub(crate) fn open(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections.send(Arc::new(ours)).unwrap();
        theirs
    }

    /// Sends a whole transfer.
    pub(crate) fn send(&self, transfer: u64, pieces: &[(u8, &[u8])]) {
        let mut connection = self.attach(transfer, NONCE);
        let mut sender = transfer::Sender::new(transfer);
        for (flags, piece) in pieces {
            connection
                .write_all(&sender.data(*flags, piece).unwrap())
                .unwrap();
            connection.write_all(piece).unwrap();
        }
        connection.write_all(&sender.end().unwrap()).unwrap();
    }

    /// Receives a whole transfer.
    pub(crate) fn receive(&self, transfer: u64) -> Vec<u8> {
        receive_from(self.attach(transfer, NONCE), transfer)
    }
}

/// Receives a whole transfer on the connection opened for it.
pub(crate) fn receive_from(mut connection: UnixStream, transfer: u64) -> Vec<u8> {
    let mut receiver = transfer::Receiver::new(transfer, u64::MAX);
    let (mut bytes, mut buf) = (Vec::new(), Vec::new());
    loop {
        let frame = read(&mut buf, &mut connection).expect("a transfer ends with its end mark");
        match receiver.handle(&frame).unwrap() {
            transfer::Event::Data { bytes: piece, .. } => bytes.extend_from_slice(piece),
            transfer::Event::End { .. } => return bytes,
            transfer::Event::Abort(failure) => panic!("{}", failure.text),
        }
    }
}

fn read<'a>(buf: &'a mut Vec<u8>, connection: &mut UnixStream) -> Option<frame::Frame<'a>> {
    frame::read(buf, |buf| Read::read(connection, buf))
        .ok()
        .flatten()
}
