//! Transfers between the agent and a fake host.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use wire::frame::HEADER_LEN;
use wire::{Attach, Event, Failure, FailureKind, Kind, Receiver, Sender, frame, message};

use super::*;
use crate::fault;
use crate::testing::host;

/// Reads the attach frame and then all of the transfer.
fn host_receives(mut stream: UnixStream) -> Result<Vec<u8>, String> {
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |buf| stream.read(buf))
        .unwrap()
        .unwrap();
    let attach: Attach = message::decode(&frame).unwrap();
    assert_eq!(attach.nonce, [7; 16]);
    let mut receiver = Receiver::new(attach.transfer, u64::MAX);
    let mut bytes = Vec::new();
    loop {
        let frame = frame::read(&mut buf, |buf| stream.read(buf)).unwrap();
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
fn written_bytes_arrive_whole() {
    let (transfers, accepted) = host();
    let data: Vec<u8> = (0..=250)
        .cycle()
        .take(3 * socket::SEND_BUFFER + 5)
        .collect();
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

/// A connection like that of our own driver: while its buffer is lent, a write would block forever.
#[derive(Debug, Default)]
struct Lending {
    buffer: Vec<u8>,
    is_lent: bool,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Connection for Lending {
    fn send_buffer(&mut self) -> io::Result<&mut [u8]> {
        self.is_lent = true;
        self.buffer.resize(HEADER_LEN + 5, 0);
        Ok(&mut self.buffer)
    }

    fn send(&mut self, n: usize) -> io::Result<()> {
        self.is_lent = false;
        let mut sent = self.sent.lock().unwrap();
        sent.extend_from_slice(&self.buffer[..n]);
        Ok(())
    }

    fn try_clone(&self) -> io::Result<Box<dyn Connection>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn finish(&self) {}

    fn close(&self) {}
}

impl Write for Lending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.is_lent, "this would block forever");
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
fn a_lent_but_empty_buffer_does_not_block_the_end() {
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
        let mut outgoing = Outgoing::new(Box::new(connection), 4);
        outgoing.write_all(b"whole").unwrap();
        // The buffer is full, so this sends it and lends another one.
        assert_eq!(outgoing.space().unwrap().len(), 5);
        end(outgoing);
        let sent = sent.lock().unwrap();
        let (first, rest) = frame::decode(&sent).unwrap().unwrap();
        assert_eq!((first.kind, first.body), (Kind::Data, &b"whole"[..]));
        let (second, rest) = frame::decode(rest).unwrap().unwrap();
        assert_eq!((second.kind, rest), (kind, &b""[..]));
    }
}

/// Lets the host send these bytes; returns what the agent receives.
fn agent_receives(size: u64, stream: Vec<u8>) -> Result<Vec<u8>> {
    let (transfers, accepted) = host();
    let mut incoming = transfers.receive(4, size)?;
    let mut host = accepted.recv()?;
    let sending = thread::spawn(move || {
        // Closing with bytes unread would reset the connection.
        frame::read(&mut Vec::new(), |buf| host.read(buf)).unwrap();
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
