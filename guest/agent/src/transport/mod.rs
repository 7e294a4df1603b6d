//! Connections to the host, and the transfers that run on them.
//!
//! The agent only connects, it never listens. Each transfer has a connection of its own, so vsock's
//! credit is the only flow control: whoever reads slowly makes the other end wait.

mod ring;
mod socket;

use std::fmt;
use std::io::{self, BufRead, IoSlice, Read as _, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wire::frame::{Body, HEADER_LEN, Header, ReadError};
use wire::limits::MAX_BODY;
use wire::{Attach, Event, Failure, Kind, Receiver, Sender, frame, message};

use crate::archive::Fill;
use crate::boot::Modules;
use crate::fault;

pub(crate) use ring::Ring;
#[cfg(test)]
pub(crate) use socket::Socket;
pub(crate) use socket::Vsock;

/// How long the host may do nothing: not accept a connection, or not take a packet. Longer than
/// anybody lets a build sleep: a host that was stopped goes on where it was, and so must we. One that
/// died takes the monitor with it, and one that lives has limits of its own.
const HOST_SLEEPS: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a refused connection is tried: at boot the host may be later than we are.
const CONNECT_ATTEMPTS: u32 = 100;

/// How long after a refusal.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection to the host: a stream of bytes, on which reading and writing wait. It lends the
/// memory into which bytes come and from which they go, so that they are not copied in between.
pub(crate) trait Connection: BufRead + Write + Send + fmt::Debug {
    /// A buffer whose beginning [`Self::send`] sends. It is the same until then; and until then
    /// this connection must not be written to otherwise.
    fn room(&mut self) -> io::Result<&mut [u8]>;

    /// Sends the first `n` bytes of [`Self::room`]; with none, gives it back if it is lent.
    fn send(&mut self, n: usize) -> io::Result<()>;

    /// A second handle, to write or to close while another thread reads: what this one has
    /// received and not handed out stays here.
    fn handle(&self) -> io::Result<Box<dyn Connection>>;

    /// Ends our direction. The connection may be gone already; then the host knows.
    fn finish(&self);

    /// Ends both directions: whoever waits on another handle goes on.
    fn close(&self);
}

/// Makes connections to the host.
pub(crate) trait Connect: Send + Sync + fmt::Debug {
    /// A new connection.
    fn connect(&self) -> Result<Box<dyn Connection>>;
}

/// Connects by `attempt`, again and again while nobody listens there yet.
fn patiently<C: Connection + 'static>(
    mut attempt: impl FnMut() -> io::Result<C>,
) -> Result<Box<dyn Connection>> {
    let refused = |err: &io::Error| {
        matches!(
            err.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
        )
    };
    let mut attempts = 1;
    loop {
        match attempt() {
            Err(err) if refused(&err) && attempts < CONNECT_ATTEMPTS => {
                attempts += 1;
                thread::sleep(ATTEMPT_PAUSE);
            }
            Ok(connection) => return Ok(Box::new(connection)),
            Err(err) => return Err(err).context("cannot connect to the host"),
        }
    }
}

/// Connects by our own driver or by the kernel's, each with the modules that it needs: `wanted` says
/// which, and by default it is our own if it can have the device.
pub(crate) fn choose(
    wanted: Wanted,
    ring: Modules,
    kernel: Modules,
) -> Result<(Arc<dyn Connect>, u64)> {
    if wanted != Wanted::Kernel {
        match ring.load().and_then(|()| Ring::start()) {
            Ok(ring) => return Ok((Arc::new(ring), wire::FEATURE_RING)),
            Err(err) if wanted == Wanted::Ring => return Err(err.context("our own vsock driver")),
            Err(err) => log::warn!("the kernel's vsock driver is used: {err:#}"),
        }
    }
    kernel.load()?;
    Ok((Arc::new(Vsock), 0))
}

/// Which driver of the vsock device the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Best,
    Ring,
    Kernel,
}

impl Wanted {
    /// Reads the kernel command line.
    pub(crate) fn from_cmdline(cmdline: &str) -> Self {
        let word = cmdline
            .split_whitespace()
            .find_map(|word| word.strip_prefix("cofferdam.transport="));
        match word {
            Some("ring") => Self::Ring,
            Some("kernel") => Self::Kernel,
            Some(_) | None => Self::Best,
        }
    }
}

/// Opens the connections of transfers.
#[derive(Debug)]
pub(crate) struct Transfers {
    connect: Arc<dyn Connect>,
    nonce: [u8; 16],
}

impl Transfers {
    /// Transfers of the VM that was given this nonce.
    pub(crate) fn new(connect: Arc<dyn Connect>, nonce: [u8; 16]) -> Self {
        Self { connect, nonce }
    }

    /// Attaches to a transfer in which the host sends `size` bytes.
    pub(crate) fn receive(&self, transfer: u64, size: u64) -> Result<Incoming> {
        let connection = self.attach(transfer)?;
        Ok(Incoming {
            connection,
            receiver: Receiver::new(transfer, size),
            size,
            body: None,
            piece: 0,
        })
    }

    /// Attaches to a transfer in which we send.
    pub(crate) fn send(&self, transfer: u64) -> Result<Outgoing> {
        let connection = self.attach(transfer)?;
        Ok(Outgoing {
            connection,
            sender: Sender::new(transfer),
            used: 0,
        })
    }

    fn attach(&self, transfer: u64) -> Result<Box<dyn Connection>> {
        let mut connection = self.connect.connect()?;
        let attach = message::encode(
            transfer,
            &Attach {
                nonce: self.nonce,
                transfer,
            },
        )?;
        connection
            .write_all(&attach)
            .context("cannot attach to a transfer")?;
        Ok(connection)
    }
}

/// The receiving end of a transfer: a reader whose end is the verified end of the transfer. What it
/// lends lies where the connection received it. A piece is hashed before it is lent, but the
/// checksum of its frame may come later: nothing that was read counts before [`Self::finish`].
#[derive(Debug)]
pub(crate) struct Incoming {
    connection: Box<dyn Connection>,
    receiver: Receiver,
    size: u64,
    /// The data frame that is being received.
    body: Option<Body>,
    /// How much of what the connection lends is data, was hashed, and was not consumed yet.
    piece: usize,
}

impl Incoming {
    /// Reads to the end of the transfer, throws away what comes, and compares the length.
    pub(crate) fn finish(mut self) -> Result<()> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let received = self.receiver.received();
        ensure!(
            received == self.size,
            fault::violation(format!("{received} bytes came instead of {}", self.size))
        );
        Ok(())
    }

    /// Receives a piece of data, or what stands between two of them.
    fn next(&mut self) -> Result<()> {
        match self.body.take() {
            Some(body) => self.next_piece(body),
            None => self.next_header(),
        }
    }

    fn next_piece(&mut self, mut body: Body) -> Result<()> {
        let lent = self.connection.fill_buf().context("cannot receive")?;
        ensure!(!lent.is_empty(), ReadError::<io::Error>::Cut);
        self.piece = body.take(lent).len();
        if body.left() > 0 {
            self.body = Some(body);
        } else {
            self.receiver.finish(body)?;
        }
        Ok(())
    }

    fn next_header(&mut self) -> Result<()> {
        let connection = &mut self.connection;
        let header = frame::read_header(|room| retry(|| connection.read(room)));
        let Some(header) = header.context("cannot receive")? else {
            return Ok(self.receiver.handle_eof()?);
        };
        if header.kind == Kind::Data {
            self.body = Some(self.receiver.begin(header)?);
            return Ok(());
        }
        self.last_frame(header)
    }

    /// Takes a frame after which none may come.
    fn last_frame(&mut self, header: Header) -> Result<()> {
        let (connection, mut buf) = (&mut self.connection, Vec::new());
        let frame = frame::read_body(header, &mut buf, |room| retry(|| connection.read(room)));
        match self.receiver.handle(&frame.context("cannot receive")?)? {
            Event::Data { .. } | Event::End { .. } => Ok(()),
            Event::Abort(failure) => {
                Err(fault::reported(failure).context("the host gave up the transfer"))
            }
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece == 0 && !self.receiver.ended() {
            self.next().map_err(fault::carry)?;
        }
        if self.piece == 0 {
            return Ok(&[]);
        }
        Ok(self
            .connection
            .fill_buf()?
            .get(..self.piece)
            .unwrap_or_default())
    }
    fn consume(&mut self, n: usize) {
        let n = n.min(self.piece);
        self.piece -= n;
        self.connection.consume(n);
    }
}

impl io::Read for Incoming {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(room)?;
        self.consume(n);
        Ok(n)
    }
}

/// The sending end of a transfer: a writer that collects data frames, each in a buffer that the
/// connection lends, behind the place of its header.
#[derive(Debug)]
pub(crate) struct Outgoing {
    connection: Box<dyn Connection>,
    sender: Sender,
    /// Bytes of data in the buffer.
    used: usize,
}

impl Outgoing {
    /// Sends a piece, as a frame with these flags, behind what waits in the buffer.
    pub(crate) fn send_flagged(&mut self, flags: u8, piece: &[u8]) -> Result<()> {
        self.flush()?;
        for piece in piece.chunks(usize::try_from(MAX_BODY).unwrap_or(usize::MAX)) {
            let header = self.sender.data(flags, piece)?;
            write_both(&mut *self.connection, &header, piece)?;
        }
        Ok(())
    }

    /// Sends the rest and the end mark; returns how many bytes the transfer had.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let total = self.sender.sent();
        self.connection.write_all(&self.sender.end()?)?;
        self.connection.finish();
        Ok(total)
    }

    /// Tells the host that the transfer will not end well.
    pub(crate) fn abort(mut self, failure: &Failure) -> Result<()> {
        // What waits in the buffer was perhaps half a piece, but goes first: the buffer is lent.
        self.flush()?;
        self.connection.write_all(&self.sender.abort(failure)?)?;
        self.connection.finish();
        Ok(())
    }

    /// Where in the connection's buffer the next data belongs; empty if the buffer is full.
    fn rest(&mut self) -> io::Result<&mut [u8]> {
        let room = self.connection.room()?;
        let len = room.len();
        let rest = room.get_mut(HEADER_LEN + self.used..).unwrap_or_default();
        if self.used == 0 && rest.is_empty() {
            return Err(io::Error::other(format!(
                "the host has room for {len} bytes at a time, which is not even a header"
            )));
        }
        Ok(rest)
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room()?;
        let n = room.write(bytes)?;
        self.filled(n);
        Ok(n)
    }

    /// Also gives back a buffer in which nothing is: as long as it is lent, nothing else is sent.
    fn flush(&mut self) -> io::Result<()> {
        if self.used == 0 {
            return self.connection.send(0);
        }
        let room = self.connection.room()?;
        let (header, data) = room
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(io::ErrorKind::WriteZero)?;
        let data = data.get(..self.used).unwrap_or_default();
        *header = self.sender.data(0, data).map_err(io::Error::other)?;
        let len = HEADER_LEN + std::mem::take(&mut self.used);
        self.connection.send(len)
    }
}

impl Fill for Outgoing {
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.rest()?.is_empty() {
            self.flush()?;
        }
        self.rest()
    }
    fn filled(&mut self, n: usize) {
        self.used += n;
    }
}

/// Writes a header and its body with as few calls as the kernel allows.
fn write_both(connection: &mut dyn Connection, header: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(header), IoSlice::new(body)];
    let mut slices = slices.as_mut_slice();
    while !slices.is_empty() {
        match retry(|| connection.write_vectored(slices))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => IoSlice::advance_slices(&mut slices, n),
        }
    }
    Ok(())
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A host made of Unix sockets.

    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Hands out one end of each pair and keeps the other for the test.
    #[derive(Debug)]
    pub(crate) struct FakeHost(pub(crate) crossbeam_channel::Sender<UnixStream>);

    impl Connect for FakeHost {
        fn connect(&self) -> Result<Box<dyn Connection>> {
            let (ours, theirs) = UnixStream::pair()?;
            self.0.send(theirs).context("the fake host is gone")?;
            Ok(Box::new(Socket::from(OwnedFd::from(ours))))
        }
    }

    /// Connections that arrive at the host in order.
    pub(crate) fn host() -> (Transfers, crossbeam_channel::Receiver<UnixStream>) {
        let (sender, receiver) = crossbeam_channel::bounded(16);
        (
            Transfers::new(Arc::new(FakeHost(sender)), [7; 16]),
            receiver,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use wire::{FailureKind, Kind};

    use super::fake::host;
    use super::*;

    /// Reads the attach frame and then all of the transfer.
    fn host_receives(mut stream: UnixStream) -> Result<Vec<u8>, String> {
        let mut buf = Vec::new();
        let frame = frame::read(&mut buf, |room| stream.read(room))
            .unwrap()
            .unwrap();
        let attach: Attach = message::decode(&frame).unwrap();
        assert_eq!(attach.nonce, [7; 16]);
        let mut receiver = Receiver::new(attach.transfer, u64::MAX);
        let mut bytes = Vec::new();
        loop {
            let frame = frame::read(&mut buf, |room| stream.read(room)).unwrap();
            let Some(frame) = frame else {
                return receiver
                    .handle_eof()
                    .map(|()| bytes)
                    .map_err(|err| err.to_string());
            };
            match receiver.handle(&frame).unwrap() {
                Event::Data { bytes: piece, .. } => bytes.extend_from_slice(piece),
                Event::End { total } => assert_eq!(total, bytes.len() as u64),
                Event::Abort(failure) => return Err(failure.text),
            }
        }
    }

    #[test]
    fn what_is_written_arrives_whole() {
        let (transfers, accepted) = host();
        let data: Vec<u8> = (0..=250).cycle().take(3 * socket::ROOM + 5).collect();
        let want = data.clone();
        let sending = thread::spawn(move || {
            let mut outgoing = transfers.send(4).unwrap();
            for piece in data.chunks(70_000) {
                outgoing.write_all(piece).unwrap();
            }
            outgoing.finish().unwrap()
        });
        assert_eq!(host_receives(accepted.recv().unwrap()).unwrap(), want);
        assert_eq!(sending.join().unwrap(), want.len() as u64);
    }

    #[test]
    fn a_sender_that_vanishes_is_not_an_end() {
        let (transfers, accepted) = host();
        let mut outgoing = transfers.send(4).unwrap();
        outgoing.write_all(b"abc").unwrap();
        outgoing.flush().unwrap();
        drop(outgoing);
        assert!(host_receives(accepted.recv().unwrap()).is_err());
    }

    #[test]
    fn an_abort_reaches_the_host_with_its_reason() {
        let (transfers, accepted) = host();
        let outgoing = transfers.send(4).unwrap();
        outgoing
            .abort(&Failure::new(FailureKind::Internal, "odd"))
            .unwrap();
        assert_eq!(host_receives(accepted.recv().unwrap()), Err("odd".into()));
    }

    /// A connection like the ring's: while its buffer is lent, whoever writes would wait for ever.
    #[derive(Debug, Default)]
    struct Lending {
        room: Vec<u8>,
        is_lent: bool,
        sent: Arc<Mutex<Vec<u8>>>,
    }

    impl Connection for Lending {
        fn room(&mut self) -> io::Result<&mut [u8]> {
            self.is_lent = true;
            self.room.resize(HEADER_LEN + 5, 0);
            Ok(&mut self.room)
        }

        fn send(&mut self, n: usize) -> io::Result<()> {
            self.is_lent = false;
            self.sent.lock().unwrap().extend_from_slice(&self.room[..n]);
            Ok(())
        }

        fn handle(&self) -> io::Result<Box<dyn Connection>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn finish(&self) {}

        fn close(&self) {}
    }

    impl Write for Lending {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!self.is_lent, "this would wait for ever");
            self.sent.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Lending {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl BufRead for Lending {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            Ok(&[])
        }

        fn consume(&mut self, _: usize) {}
    }

    #[test]
    fn a_buffer_that_is_lent_and_empty_stops_no_end() {
        let ends: [fn(Outgoing); 3] = [
            |outgoing| {
                let failure = Failure::new(FailureKind::Internal, "odd");
                outgoing.abort(&failure).unwrap();
            },
            |outgoing| assert_eq!(outgoing.finish().unwrap(), 5),
            |mut outgoing| outgoing.send_flagged(1, b"more").unwrap(),
        ];
        for (end, kind) in ends.into_iter().zip([Kind::Abort, Kind::End, Kind::Data]) {
            let connection = Lending::default();
            let sent = Arc::clone(&connection.sent);
            let mut outgoing = Outgoing {
                connection: Box::new(connection),
                sender: Sender::new(4),
                used: 0,
            };
            outgoing.write_all(b"whole").unwrap();
            // The buffer is full, so this sends it and lends the next one.
            assert_eq!(outgoing.room().unwrap().len(), 5);
            end(outgoing);
            let sent = sent.lock().unwrap();
            let (first, rest) = frame::decode(&sent).unwrap().unwrap();
            assert_eq!((first.kind, first.body), (Kind::Data, &b"whole"[..]));
            let (second, rest) = frame::decode(rest).unwrap().unwrap();
            assert_eq!((second.kind, rest), (kind, &b""[..]));
        }
    }

    /// Lets the host send these bytes; returns what the agent makes of them.
    fn agent_receives(size: u64, stream: Vec<u8>) -> Result<Vec<u8>> {
        let (transfers, accepted) = host();
        let mut incoming = transfers.receive(4, size)?;
        let mut host = accepted.recv()?;
        let sending = thread::spawn(move || {
            // Closing with bytes unread would reset the connection.
            frame::read(&mut Vec::new(), |room| host.read(room)).unwrap();
            host.write_all(&stream)
        });
        let mut bytes = Vec::new();
        let read = incoming.read_to_end(&mut bytes);
        sending.join().expect("the host does not panic").ok();
        read?;
        incoming.finish()?;
        Ok(bytes)
    }

    fn transfer(pieces: &[&[u8]]) -> Vec<u8> {
        let mut sender = Sender::new(4);
        let mut stream = Vec::new();
        for piece in pieces {
            stream.extend(sender.data(0, piece).unwrap());
            stream.extend_from_slice(piece);
        }
        stream.extend(sender.end().unwrap());
        stream
    }

    #[test]
    fn the_end_of_the_transfer_is_the_end_of_the_reader() {
        let stream = transfer(&[b"abc", b"defg"]);
        assert_eq!(agent_receives(7, stream).unwrap(), b"abcdefg");
    }

    #[test]
    fn too_little_too_much_and_a_cut_are_violations() {
        let stream = transfer(&[b"abc", b"defg"]);
        for (size, cut) in [
            (6, stream.len()),
            (8, stream.len()),
            (7, stream.len() - 1),
            (7, 35),
        ] {
            let err = agent_receives(size, stream[..cut].to_vec()).unwrap_err();
            let failure = fault::failure(&err);
            assert_eq!(
                failure.kind,
                FailureKind::Violation,
                "{size} {cut}: {}",
                failure.text
            );
        }
    }

    #[test]
    fn the_hosts_reason_for_giving_up_is_passed_on() {
        let abort = Sender::new(4)
            .abort(&Failure::new(FailureKind::Cancelled, "stop"))
            .unwrap();
        let failure = fault::failure(&agent_receives(7, abort).unwrap_err());
        assert_eq!(failure.kind, FailureKind::Cancelled);
    }

    #[test]
    fn a_frame_of_another_kind_is_refused() {
        let ping = frame::encode(Kind::Ping, 0, 4, 0, b"").unwrap();
        assert!(agent_receives(7, ping).is_err());
    }
}
